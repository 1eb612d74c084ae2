"""The manifest of a checkpoint: the size and SHA-256 of each of its files, and a seal of its own.

It is written last and read first: what it does not match is not what was written.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from training.config.sections import shown
from training.runtime.errors import InputError
from training.storage.files import doing_without, sync, write_synced
from training.storage.reading import (
    Count,
    FileError,
    MalformedFileError,
    MissingFileError,
    built,
    read_bytes,
    read_json,
)

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
FORMAT = 1


class CheckpointError(InputError):
    """A checkpoint is missing, or cannot be read or written."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is incomplete, or its content is not what was written."""


@dataclass
class _Manifest:
    format: Count
    files: dict[str, Any]
    seal: str


@dataclass
class Entry:
    """What a manifest says of a file."""

    size: Count
    sha256: str


def seal(version: int, files: Mapping[str, Any]) -> str:
    """What a manifest says of itself."""
    return hashlib.sha256(json.dumps([version, files], sort_keys=True).encode()).hexdigest()


def verified_contents(folder: Path) -> dict[str, bytes]:
    """Read all files of a checkpoint, each against the manifest.

    Raises:
        DamagedCheckpointError: It is incomplete or damaged; the message names the file.
        CheckpointError: It is missing, cannot be read, or has the format of another version.
    """
    contents = {}
    for name, expected in verified_manifest(folder).items():
        with _judging(folder, name):
            content = read_bytes(folder / name, size=expected.size)
        if hashlib.sha256(content).hexdigest() != expected.sha256:
            raise DamagedCheckpointError(f"checkpoint {folder} is damaged: {name} does not match its SHA-256")
        contents[name] = content
    return contents


def verified_manifest(folder: Path) -> dict[str, Entry]:
    """Size and SHA-256 of each file of a checkpoint. Raises: as `verified_contents`."""
    file = folder / MANIFEST
    with _judging(folder, MANIFEST):
        manifest: _Manifest = built(_Manifest, read_json(file), file)
        if manifest.seal != seal(manifest.format, manifest.files):
            raise DamagedCheckpointError(f"checkpoint {folder} is damaged: {MANIFEST} does not match its own seal")
        if manifest.format != FORMAT:
            raise CheckpointError(f"checkpoint {folder} has format {manifest.format}, this version reads {FORMAT} only")
        for name in manifest.files:
            if os.path.basename(name) != name:
                raise MalformedFileError(file, f"{shown(name)} is no name of a file")
        entries: dict[str, Entry] = built(dict[str, Entry], manifest.files, file, "files")
    return entries


@contextmanager
def _judging(folder: Path, name: str) -> Iterator[None]:
    """Raise what is wrong with a file as what is wrong with its checkpoint."""
    try:
        yield
    except MissingFileError as error:
        if not folder.exists():
            raise CheckpointError(f"checkpoint {folder} does not exist") from error
        if name == MANIFEST:
            raise DamagedCheckpointError(f"{folder} has no manifest, so it is not a complete checkpoint") from error
        raise DamagedCheckpointError(f"checkpoint {folder} is damaged: {name} is missing") from error
    except MalformedFileError as error:
        fault = f"{name} makes no sense ({error.fault})" if name == MANIFEST else f"{name}: {error.fault}"
        raise DamagedCheckpointError(f"checkpoint {folder} is damaged: {fault}") from error
    except FileError as error:
        raise CheckpointError(f"cannot read checkpoint {folder}: {name}: {error.fault}") from error


def write_sealed(
    folder: Path,
    tensors: "Mapping[str, Mapping[str, Tensor]]",
    values: "Iterator[Tensor]",
    texts: Mapping[str, str],
) -> None:
    """Write the folder of a checkpoint, flushed to the disk before its manifest is, and the manifest too.

    Args:
        folder: It must not exist.
        tensors: For each safetensors file, its tensors.
        values: Their values, as `wholes` gives them.
        texts: For each other file, its content.

    Raises:
        OSError: The disk refused.
    """
    folder.mkdir()
    for name, group in tensors.items():
        _write_tensors(folder / f"{name}.safetensors", dict(zip(group, islice(values, len(group)), strict=True)))
    for name, text in texts.items():
        write_synced(folder / name, text.encode())
    written = sorted(folder.iterdir())
    files = {file.name: {"size": file.stat().st_size, "sha256": _file_digest(file)} for file in written}
    sync(folder)
    manifest = {"format": FORMAT, "files": files, "seal": seal(FORMAT, files)}
    write_synced(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    sync(folder)


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_tensors(path: Path, tensors: "Mapping[str, Tensor]") -> None:
    """Write a safetensors file from where the tensors lie, without a copy of all of them, and flush it to the disk."""
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:
        refused = re.search(r"I/O error: (.*) \(os error (\d+)\)", str(error))
        if refused is None:
            raise
        raise OSError(int(refused[2]), refused[1], str(path)) from error
    with doing_without("modes", path.parent):  # safetensors lets nobody else read its files.
        path.chmod(path.parent.stat().st_mode & 0o666)
    sync(path)
