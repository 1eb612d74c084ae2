"""Removing runs, or checkpoints of runs: what may go, and how it goes."""

import math
import os
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from training.config.sections import shown
from training.runs.listing import Run, State, base_of, measured, walk_runs
from training.runtime.errors import InputError, refusal
from training.storage.checkpoint import Checkpoint, CheckpointStore, checkpoint_name
from training.storage.files import replace_link
from training.storage.manifest import MANIFEST, DamagedCheckpointError, verified_manifest
from training.storage.run_folder import RunFolder
from training.storage.state import saved_state
from training.sweep.record import FILE as SWEEP

HIDDEN = ".pruned-"
LINK = "it is a link, and what it leads to lies elsewhere"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which of the runs are to be pruned: those of which all holds that is given.

    Attributes:
        names: Their folders; empty for all. A link is no name of what it leads to.
        older_than: Days since their last change.
        worse_than: What their best loss is above, in nats per token; a run without one is not chosen.
        state: What they are.
        keep: How many of the newest are left alone.
        keep_best: How many of those with the lowest loss are left alone, of each text, tokenizer and way to evaluate;
            a damaged one is none of them, and is left alone where it would be.
    """

    names: Collection[Path] = ()
    older_than: float | None = None
    worse_than: float | None = None
    state: State | None = None
    keep: int = 0
    keep_best: int = 0

    def of(self, runs: Sequence[Run]) -> list[Run]:
        """The runs that are chosen of those, which are in the order of their last change."""
        runs = [run for run in runs if not run.path.is_symlink()]
        names = {path.resolve() for path in self.names if not path.is_symlink()}
        best = {run.path for run in _best(runs, self.keep_best)}
        return [
            run
            for run in runs[self.keep :]
            if run.path not in best
            and (not self.names or run.path.resolve() in names)
            and (self.older_than is None or time.time() - run.changed > self.older_than * 86_400)
            and (self.worse_than is None or (run.best is not None and run.best > self.worse_than))
            and self.state in (None, run.state)
        ]


def _best(runs: Iterable[Run], count: int) -> Iterator[Run]:
    """Of the runs whose losses compare, those up to the so many-th sound one; each kind apart."""
    kinds: dict[Any, list[tuple[float, Run]]] = {}
    for run in runs:
        loss = run.val_loss if run.best is None else run.best
        if loss is not None:
            # The SHA-256 tells tokenizers apart too, so that nats per token compare.
            kind = run.model, run.data_sha256, run.eval_every, run.best is None
            kinds.setdefault(kind, []).append((loss, run))
    for alike in kinds.values():
        left = count
        for _, run in sorted(alike, key=lambda each: (math.isnan(each[0]), each[0])):
            if left == 0:
                break
            yield run
            left -= run.state != "damaged"


def obstacle(run: Run, runs: Iterable[Run], *, whole: bool = True) -> str | None:
    """Why a run is never removed, in words; None where it may be.

    Args:
        run: The run.
        runs: All that are there: one may need the weights of another.
        whole: Whether all of it is to go, or checkpoints alone.
    """
    if run.state == "running":
        return "it is running"
    if run.state == "unknown":
        return "it may be running, which cannot be told without locks: end it, and remove the folder yourself"
    if run.path.is_symlink():
        return LINK
    if whole and (inner := next(walk_runs(run.path), None)) is not None:
        return f"the run {inner} lies in it"
    if whole and (foreign := RunFolder(run.path).foreign_entries()):
        return f"{shown(foreign[0])} lies in it, which no run writes: take it out, or remove the folder yourself"
    sweep = run.path.resolve().parent
    if whole and (sweep / SWEEP).exists() and RunFolder(sweep).is_running:
        return "its sweep is running"
    for other in runs:
        if other.path.resolve() != run.path.resolve() and _needs(other, run):
            return f"{other.path} needs its weights"
    return None


def _needs(other: Run, run: Run) -> bool:
    """Whether a run cannot do without another one: as an adapter for it, or because nothing of it is saved yet."""
    source = other.config.get("init_from")
    nothing_saved = not any(saved.fault is None for saved in other.checkpoints)
    if not isinstance(source, str) or not (base_of(other.config) or nothing_saved):
        return False
    own = run.path.resolve()
    # A place that is not absolute was meant from where the training was started, which nothing tells.
    starts = (Path.cwd(), *other.path.resolve().parents)
    all_found = [found for start in starts if os.path.exists(found := start / os.path.expanduser(source))]
    if all_found:
        return any(found.resolve().is_relative_to(own) for found in all_found)
    return other.config.get("init_sha256") in _weights(run)  # One of the two has been moved.


def _weights(run: Run) -> set[str]:
    """The SHA-256 of each file of weights among its checkpoints."""
    found = set()
    for saved in run.checkpoints:
        with suppress(InputError, OSError):
            entries = verified_manifest(run.path / "checkpoints" / checkpoint_name(saved.step))
            found |= {entries[name].sha256 for name in ("model.safetensors", "ema.safetensors") if name in entries}
    return found


def remove_run(path: Path, size: int | None = None) -> None:
    """Remove a run's folder; links in it are removed, not followed.

    Args:
        path: The folder.
        size: What it held when it was looked at, in bytes: one that has changed since is not removed.

    Raises:
        InputError: A process is writing to it, it has changed, or it cannot be removed.
    """
    if path.is_symlink():
        raise InputError(f"{path} is a link: remove it yourself, and what it leads to")
    if not path.is_dir():
        raise InputError(f"{path} is gone: nothing of it was removed")
    resolved = path.resolve()
    run, hidden = RunFolder(path), resolved.with_name(f"{HIDDEN}{resolved.name}")
    run.claim()
    try:
        _check_unchanged(path, size)
        if hidden.exists():
            shutil.rmtree(hidden)
        os.rename(resolved, hidden)  # First, so that no half of it is left under its name.
        run.release()
        shutil.rmtree(hidden)
    except OSError as error:
        raise InputError(f"cannot remove {path}: {refusal(error)}") from error
    finally:
        run.release()


def remove_hidden(folder: Path, *, dry_run: bool) -> Iterator[Path]:
    """Go on with removals below a folder that were interrupted, each of which is told before.

    Raises:
        InputError: One cannot be removed.
    """
    for hidden in sorted(folder.rglob(f"{HIDDEN}*")):
        if hidden.is_dir() and not hidden.is_symlink():
            yield hidden
            if not dry_run:
                try:
                    shutil.rmtree(hidden)
                except OSError as error:
                    raise InputError(f"cannot remove {hidden}: {refusal(error)}") from error


def _check_unchanged(path: Path, size: int | None) -> None:
    if size is not None and measured(path)[0] != size:
        raise InputError(f"{path} has changed since it was looked at: nothing of it was removed; start again")


@dataclass
class Slimming:
    """What is to go of a run, and what stays, which was read to the last byte; a damaged best one stays too.

    Attributes:
        run: The run.
        kept: Checkpoints that stay.
        removed: Those that go, and what was left over of damaged ones.
        sound: Those that stay and are sound; the newest comes last.
    """

    run: Run
    kept: list[Path] = field(default_factory=list)
    removed: list[Path] = field(default_factory=list)
    sound: list[Path] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Of what goes, in bytes."""
        return sum(measured(path)[0] for path in self.removed)


def slimming(run: Run, keep: int) -> Slimming:
    """All but the best checkpoint of a run and the newest sound ones, which are read for it.

    The best is what is called so, and what the newest one says; where none of these is sound, the sound one with the
    lowest loss stays as well.

    Args:
        run: The run.
        keep: How many of the newest sound ones stay.

    Raises:
        CheckpointError: One cannot be read, though it may be whole.
        InputError: Its names cannot be read.
    """
    store = CheckpointStore(run.path / "checkpoints")
    is_sound = cache(lambda name: _is_sound(store.folder / name))
    best, names = store.named("best"), [checkpoint_name(step) for step in store.steps()]
    newest = list(islice(filter(is_sound, reversed(names)), keep))
    if not newest:
        return Slimming(run)  # Whatever is left of it, nothing better is there.
    counters = saved_state(Checkpoint(store.folder / newest[0], in_part=True)).counters
    told = {checkpoint_name(step) for step in (run.best_step, counters.best_step) if step is not None}
    called = (told & set(names)) | ({best.name} if best else set())
    kept = {*newest, *called}
    if not any(map(is_sound, called)):
        by_loss = sorted((saved.val_loss, saved.step) for saved in run.checkpoints if saved.val_loss is not None)
        kept |= set(islice(filter(is_sound, (checkpoint_name(step) for _, step in by_loss)), 1))
    stay, sound = ([store.folder / name for name in sorted(group)] for group in (kept, filter(is_sound, kept)))
    going = [store.folder / name for name in names if name not in kept]
    return Slimming(run, stay, [*going, *run.left_over], sound)


def _is_sound(path: Path) -> bool:
    """Whether a checkpoint is what was written, to the last byte."""
    try:
        Checkpoint(path)
    except DamagedCheckpointError:
        return False
    return True


def remove_checkpoints(plan: Slimming) -> None:
    """Remove what a plan says.

    Raises:
        InputError: A process is writing to the run, it has changed, what was to stay is gone, or the disk refuses.
    """
    folder, checkpoints = RunFolder(plan.run.path), plan.run.path / "checkpoints"
    folder.claim()
    try:
        if missing := [path for path in plan.sound if not (path / MANIFEST).exists()]:
            raise InputError(f"{missing[0]} was to stay, and is gone: nothing was removed; start again")
        _check_unchanged(plan.run.path, plan.run.size)
        gone = {path.name for path in plan.removed}
        if (named := CheckpointStore(checkpoints).named("last")) is not None and named.name in gone:
            replace_link(checkpoints / "last", plan.sound[-1].name)
        for path in plan.removed:
            # Unsealed first: a removal that is cut short must not leave what looks whole.
            (path / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(path)
    except OSError as error:
        raise InputError(f"cannot remove all of {plan.run.path}: {refusal(error)}") from error
    finally:
        folder.release()
