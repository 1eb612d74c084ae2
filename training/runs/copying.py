"""Copies of checkpoints and runs that serve elsewhere: links are resolved, and each file is what was written."""

import hashlib
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from training.runs.listing import base_of, measured, read_run
from training.runtime.errors import InputError, refusal
from training.storage.checkpoint import NAMES, Checkpoint, CheckpointError, CheckpointStore, checkpoint_name
from training.storage.files import replace_link, sync, write_synced
from training.storage.finding import find_checkpoint
from training.storage.manifest import MANIFEST, DamagedCheckpointError, manifest_of, verified_manifest
from training.storage.reading import open_file, read_yaml
from training.storage.run_folder import RunFolder

OPTIMIZER = "optimizer.safetensors"
_BLOCK = 2**20


def copy_checkpoint(source: Path, destination: Path, *, weights_only: bool = False) -> Path:
    """Copy one checkpoint, so that it is there whole or not at all.

    Args:
        source: A run, whose best checkpoint is taken, or a checkpoint, or a name of one (`best`, `last`).
        destination: The folder to make of it.
        weights_only: Leave out the optimizer's tensors: what reads the model needs none, and a resume does.

    Returns:
        The checkpoint that was copied.

    Raises:
        CheckpointError: There is none, or it is damaged.
        InputError: The destination is there already, lies in the checkpoint, or cannot be written.
    """
    found = find_checkpoint(source)
    _whole(found, destination, lambda beside: _copy_files(found, beside, weights_only=weights_only))
    return found


def copy_run(source: Path, destination: Path) -> list[str]:
    """Copy a whole run, which can go on there; damaged checkpoints, links and what is left over are left out.

    Args:
        source: The run.
        destination: The folder to make of it.

    Returns:
        What was left out, and why, one line each.

    Raises:
        InputError: It is no run, is running or begins to, or the destination is there already, lies in the run, or
            cannot be written.
    """
    run = read_run(source)
    if run.state == "running":
        raise InputError(f"{source} is running: wait for its end, or copy a checkpoint of it")
    left_out: list[str] = []

    def fill(beside: Path) -> None:
        _copy_run(RunFolder(source), beside, left_out)
        if RunFolder(source).is_running or measured(source)[0] != run.size:
            raise InputError(f"{source} went on while it was copied: wait for its end, or copy a checkpoint of it")

    _whole(source, destination, fill)
    return left_out


def _whole(source: Path, destination: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder that is there when all of it is."""
    if os.path.lexists(destination):
        raise InputError(f"{destination} is there already: name a folder to be made")
    if destination.resolve().is_relative_to(source.resolve()):
        raise InputError(f"{destination} lies in {source}, which is to be copied: name a folder outside of it")
    beside = destination.with_name(f".{destination.name}.new")
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(beside, ignore_errors=True)
        fill(beside)
        sync(beside)
        os.rename(beside, destination)
        sync(destination.parent)
    except OSError as error:
        raise InputError(f"cannot write {destination}: {refusal(error)}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _copy_files(source: Path, destination: Path, *, weights_only: bool = False) -> None:
    """Copy the files of a checkpoint, each compared with the manifest, and seal them by one."""
    checkpoint = Checkpoint(source, in_part=True)  # Names what is damaged, before anything is written.
    entries = verified_manifest(checkpoint.folder)
    if weights_only:
        entries.pop(OPTIMIZER, None)
    destination.mkdir()
    with ExitStack() as stack:  # All of them first: a run that goes on may remove the checkpoint meanwhile.
        files = {
            name: stack.enter_context(open_file(checkpoint.folder / name, size=entry.size))
            for name, entry in entries.items()
        }
        for name, file in files.items():
            if _copied(file, destination / name) != entries[name].sha256:
                raise DamagedCheckpointError(
                    f"checkpoint {checkpoint.folder} is damaged: {name} does not match its SHA-256"
                )
    sync(destination)
    write_synced(destination / MANIFEST, manifest_of(entries).encode())


def _copied(file: Any, destination: Path) -> str:
    """Write what is left of an open file to another one, flushed; the SHA-256 of that."""
    digest = hashlib.sha256()
    with destination.open("wb") as copy:
        while block := file.read(_BLOCK):
            digest.update(block)
            copy.write(block)
        copy.flush()
        os.fsync(copy.fileno())
    return digest.hexdigest()


def _copy_run(run: RunFolder, destination: Path, left_out: list[str]) -> None:
    destination.mkdir()
    for folder, names, files in os.walk(run.path):
        own = Path(folder)
        if own == run.checkpoints:
            names.clear()
            continue
        there = destination / own.relative_to(run.path)
        there.mkdir(exist_ok=True)
        for name in [*files, *(name for name in names if (own / name).is_symlink())]:
            if (own / name).is_symlink():
                left_out.append(f"{own / name}: a link")
            elif name != ".lock":
                with open_file(own / name) as file:
                    _copied(file, there / name)
    _copy_checkpoints(CheckpointStore(run.checkpoints), destination / "checkpoints", left_out)


def _copy_checkpoints(store: CheckpointStore, destination: Path, left_out: list[str]) -> None:
    if not store.folder.is_dir():
        return
    destination.mkdir()
    named = {name: found for name in NAMES if (found := store.named(name)) is not None}
    # A copy of a checkpoint, where a tool has followed links.
    copies = [found for name, found in named.items() if found == store.folder / name]
    checkpoints = [*(store.folder / checkpoint_name(step) for step in store.steps()), *copies]
    for checkpoint in checkpoints:
        try:
            _copy_files(checkpoint, destination / checkpoint.name)
        except DamagedCheckpointError as error:
            left_out.append(str(error))
            shutil.rmtree(destination / checkpoint.name, ignore_errors=True)
    for name, found in named.items():
        if found not in copies and (destination / found.name).is_dir():
            replace_link(destination / name, found.name)
    if store.steps() and not CheckpointStore(destination).steps():
        raise CheckpointError(f"{store.folder} holds no sound checkpoint: {left_out[-1]}")
    known = {path.name for path in checkpoints} | set(NAMES)
    left_out += [f"{path}: no checkpoint" for path in sorted(store.folder.iterdir()) if path.name not in known]


def needs(checkpoint: Path) -> str | None:
    """What a copy of a checkpoint cannot do without, in words; None where it is whole by itself.

    Raises:
        FileError: Its configuration cannot be read.
    """
    config = read_yaml(checkpoint / "config.yaml")
    base = base_of(config)
    if base is None:
        return None
    return (
        f"it holds an adapter alone: hand over its base {base} too (SHA-256 {config.get('init_sha256')}), to lie at "
        f"the same place, or export both as one model (launch/export.py)"
    )
