"""Removing runs, or checkpoints of runs: what may go, and how it goes."""

import os
import shutil
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from training.runs.listing import Run, State, base_of, measured
from training.runtime.errors import InputError, refusal
from training.storage.checkpoint import Checkpoint, CheckpointStore, checkpoint_name
from training.storage.files import replace_link
from training.storage.manifest import MANIFEST, DamagedCheckpointError
from training.storage.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which of the runs are to be pruned: those of which all holds that is given.

    Attributes:
        names: Their folders; empty for all.
        older_than: Days since their last change.
        worse_than: What their best loss is above, in nats per token; a run without one is not chosen.
        state: What they are.
        keep: How many of the newest are left alone.
        keep_best: How many of those with the lowest loss are left alone, of each text; bits per byte where there are.
    """

    names: Collection[Path] = ()
    older_than: float | None = None
    worse_than: float | None = None
    state: State | None = None
    keep: int = 0
    keep_best: int = 0

    def of(self, runs: Sequence[Run]) -> list[Run]:
        """The runs that are chosen of those, which are in the order of their last change."""
        names, best = {path.resolve() for path in self.names}, set[Path]()
        by_loss = sorted((run for run in runs if _loss(run) is not None), key=lambda run: _loss(run) or 0.0)
        for text in {(run.model, run.data_sha256) for run in by_loss}:
            alike = [run.path for run in by_loss if (run.model, run.data_sha256) == text]
            best |= set(alike[: self.keep_best])
        return [
            run
            for run in runs[self.keep :]
            if run.path not in best
            and (not names or run.path.resolve() in names)
            and (self.older_than is None or time.time() - run.changed > self.older_than * 86_400)
            and (self.worse_than is None or (run.best is not None and run.best > self.worse_than))
            and self.state in (None, run.state)
        ]


def _loss(run: Run) -> float | None:
    return run.best if run.bits_per_byte is None else run.bits_per_byte


def obstacle(run: Run, runs: Iterable[Run]) -> str | None:
    """Why a run is never removed, in words; None where it may be.

    Args:
        run: The run.
        runs: All that are there: one may need the weights of another.
    """
    if run.state == "running":
        return "it is running"
    if run.state == "unknown":
        return "it may be running, which cannot be told without locks: end it, and remove the folder yourself"
    if run.path.is_symlink():
        return "it is a link, and what it leads to lies elsewhere"
    for other in runs:
        needed = _needed(other)
        if needed is not None and other.path != run.path and needed.resolve().is_relative_to(run.path.resolve()):
            return f"{other.path} needs its weights"
    return None


def _needed(run: Run) -> Path | None:
    """What a run was made from and cannot do without: as an adapter for it, or because nothing of it is saved yet."""
    source = run.config.get("init_from")
    begun = Path(source) if isinstance(source, str) and not run.checkpoints else None
    return base_of(run.config) or begun


def remove_run(path: Path) -> None:
    """Remove a run's folder; links in it are removed, not followed.

    Raises:
        InputError: A process is writing to it, or it cannot be removed.
    """
    if path.is_symlink():
        raise InputError(f"{path} is a link: remove it yourself, and what it leads to")
    run, hidden = RunFolder(path), path.with_name(f".pruned-{path.name}")
    run.claim()
    try:
        if hidden.exists():
            shutil.rmtree(hidden)
        os.rename(path, hidden)  # First, so that no half of it is left under its name.
        run.release()
        shutil.rmtree(hidden)
    except OSError as error:
        raise InputError(f"cannot remove {path}: {refusal(error)}") from error
    finally:
        run.release()


@dataclass
class Slimming:
    """What is to go of a run, and what stays, which was read to the last byte.

    Attributes:
        run: The run.
        kept: Checkpoints that stay.
        removed: Those that go, and what was left over of damaged ones.
    """

    run: Run
    kept: list[Path] = field(default_factory=list)
    removed: list[Path] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Of what goes, in bytes."""
        return sum(measured(path)[0] for path in self.removed)


def slimming(run: Run, keep: int) -> Slimming:
    """All but the best checkpoint of a run and the newest sound ones, which are read for it.

    Args:
        run: The run.
        keep: How many of the newest sound ones stay.

    Raises:
        CheckpointError: One cannot be read, though it may be whole.
        InputError: Its names cannot be read.
    """
    store = CheckpointStore(run.path / "checkpoints")
    steps, newest = store.steps(), list[Path]()
    for step in reversed(steps):
        place = store.folder / checkpoint_name(step)
        if len(newest) < keep:
            with suppress(DamagedCheckpointError):
                Checkpoint(place)
                newest.append(place)
    if not newest:
        return Slimming(run)  # Whatever is left of it, nothing better is there.
    best = store.named("best")
    kept = sorted({path.name for path in newest} | ({best.name} if best else set()))
    going = [store.folder / name for name in map(checkpoint_name, steps) if name not in kept]
    return Slimming(run, [store.folder / name for name in kept], [*going, *run.left_over])


def remove_checkpoints(plan: Slimming) -> None:
    """Remove what a plan says.

    Raises:
        InputError: A process is writing to the run, what was to stay is gone, or the disk refuses.
    """
    folder, checkpoints = RunFolder(plan.run.path), plan.run.path / "checkpoints"
    folder.claim()
    try:
        if missing := [path for path in plan.kept if not (path / MANIFEST).exists()]:
            raise InputError(f"{missing[0]} was to stay, and is gone: nothing was removed; start again")
        last, gone = checkpoints / "last", {path.name for path in plan.removed}
        if (named := CheckpointStore(checkpoints).named("last")) is not None and named.name in gone:
            replace_link(last, plan.kept[-1].name)
        for path in plan.removed:
            # Unsealed first: a removal that is cut short must not leave what looks whole.
            (path / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(path)
    except OSError as error:
        raise InputError(f"cannot remove all of {plan.run.path}: {refusal(error)}") from error
    finally:
        folder.release()
