"""What is known of the runs of a folder, by their files alone; nothing is loaded, and nothing is written."""

import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from training.runtime.errors import InputError, refusal
from training.runtime.sizes import gigabytes
from training.storage.checkpoint import NAMES, Checkpoint, CheckpointStore, checkpoint_name
from training.storage.manifest import MANIFEST
from training.storage.reading import read_yaml
from training.storage.run_folder import RunFolder
from training.storage.state import Counters, SavedState, saved_state

State = Literal["running", "done", "stopped", "damaged", "unknown"]
DEPTH = 4
"""Folders between the one that is searched and a run, at most: runs/sweeps/NAME-1/RUN has two."""
_IN_A_RUN = re.compile(r"[.]?(damaged-)?step-\d+([.]new)?|best|last")
"""Folders of checkpoints, whole or not."""
LIMITS = ("max_steps", "epochs", "max_tokens", "batch_size")
"""Options of a training that say how many steps it takes."""
_LINES = 10_000
"""Lines of metrics, from the end, in which the newest validation loss is looked for."""


@dataclass
class Saved:
    """A checkpoint of a run.

    Attributes:
        step: Of its folder.
        size: In bytes.
        names: "best", "last", both or neither.
        fault: What is wrong with its manifest, its small files or the sizes of the others; None if nothing is.
        val_loss: That was measured at its step, in nats per token; None where none was.
    """

    step: int
    size: int
    names: list[str]
    fault: str | None
    val_loss: float | None = None


@dataclass
class Run:
    """A run, as its files tell.

    Attributes:
        path: Its folder.
        state: running (a process holds its lock), done (it came to its end), stopped (it can go on), damaged (a
            checkpoint or the configuration is), or unknown (the file system has no locks).
        faults: What is wrong, one line each.
        size: In bytes, of all of its files; links are not followed.
        changed: When a file of it was last written, in seconds since 1970.
        config: Its configuration as the file has it, or its newest sound checkpoint; {} where neither can be read.
        model: Which model it is of, by its newest sound checkpoint; so are the counters, `setup` and `data_sha256`.
        step: The newest one that it reported.
        steps: How many it is to do; None where that is not known.
        val_loss: The newest, or over a part of the validation split; None before the first.
        best: The lowest one of those that it goes by.
        unevaluated: Its newest checkpoint waits for the evaluation that is due there.
        eval_every: It goes by the loss over every so many-th window of the validation split.
        bits_per_byte: The newest.
        checkpoints: In rising order.
        left_over: Folders of quarantined checkpoints, and of saves that were cut short.
    """

    path: Path
    state: State = "stopped"
    faults: list[str] = field(default_factory=list)
    size: int = 0
    changed: float = 0.0
    config: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    data_sha256: str | None = None
    setup: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    steps: int | None = None
    tokens: int = 0
    seconds: float = 0.0
    val_loss: float | None = None
    best: float | None = None
    best_step: int | None = None
    unevaluated: bool = False
    eval_every: int = 1
    bits_per_byte: float | None = None
    checkpoints: list[Saved] = field(default_factory=list)
    left_over: list[Path] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        paths = {"path": str(self.path), "left_over": [str(path) for path in self.left_over]}
        return asdict(self) | paths | {"age_seconds": round(time.time() - self.changed)}


def base_of(config: Any) -> Path | None:
    """Where the weights are that a run cannot do without, because it holds an adapter alone; None for most runs.

    Args:
        config: What its configuration file holds.
    """
    if not isinstance(config, dict):
        return None
    lora, source = config.get("lora"), config.get("init_from")
    return Path(source) if isinstance(lora, dict) and lora.get("rank") and isinstance(source, str) else None


def find_runs(folder: Path, *, depth: int = DEPTH, links: bool = False) -> list[Run]:
    """The runs in a folder and the folders in it, those in runs too, the one that was changed last first.

    Args:
        folder: Where to look.
        depth: Folders between it and a run, at most, and that of the run.
        links: Look behind links as well.

    Raises:
        InputError: There is no such folder, or it cannot be read.
    """
    runs = []
    try:
        for path in walk_runs(folder, depth, links=links):
            with suppress(InputError, FileNotFoundError):  # It was removed meanwhile.
                runs.append(read_run(path))
    except OSError as error:
        raise InputError(f"cannot look for runs in {folder}: {error.strerror}") from error
    return sorted(runs, key=lambda run: -run.changed)


def walk_runs(folder: Path, depth: int = DEPTH, *, links: bool = False) -> Iterator[Path]:
    """The folders of these runs."""
    with os.scandir(folder) as entries:
        inside = sorted((e for e in entries if e.is_dir(follow_symlinks=links)), key=lambda entry: entry.name)
    foreign = "wandb" if RunFolder(folder).holds_run else None  # Which has files of our names.
    for path in (folder / entry.name for entry in inside if not entry.name.startswith(".") and entry.name != foreign):
        if is_checkpoint(path):
            continue
        if RunFolder(path).holds_run:
            yield path
        if depth > 1:
            with suppress(PermissionError, FileNotFoundError):
                yield from walk_runs(path, depth - 1, links=links)


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is a checkpoint, which has a configuration as a run has: in a run, or a copy of one."""
    absolute = path.absolute()
    in_a_run = absolute.parent.name == "checkpoints" and _IN_A_RUN.fullmatch(absolute.name) is not None
    return in_a_run or (absolute / MANIFEST).exists()


def read_run(path: Path) -> Run:
    """What is known of one run; what is wrong with it is among that.

    Raises:
        InputError: The folder holds no run.
    """
    folder, run = RunFolder(path), Run(path)
    if is_checkpoint(path):
        raise InputError(f"{path} holds no run: it is a checkpoint")
    if not folder.holds_run:
        raise InputError(f"{path} holds no run: expected the folder of one, with its config.yaml and checkpoints")
    running = folder.is_running
    run.size, run.changed = measured(path)
    with _noting(run):
        run.config = _config(folder.config_file)
    with _noting(run):
        _read_checkpoints(run, folder)
    with _noting(run):
        _read_metrics(run, folder)
    if running:
        run.state, run.faults = "running", []  # What is being written need not be whole.
    elif running is None or run.faults:
        run.state = "damaged" if run.faults else "unknown"
    elif run.steps is not None and run.checkpoints and run.checkpoints[-1].step >= run.steps and not run.unevaluated:
        run.state = "done"
    return run


def _config(file: Path) -> dict[str, Any]:
    return config if isinstance(config := read_yaml(file), dict) else {}


@contextmanager
def _noting(run: Run) -> Iterator[None]:
    """While entered, what is wrong with a file is one of the run's faults."""
    try:
        yield
    except (InputError, OSError) as error:
        if (fault := _fault(error)) not in run.faults:
            run.faults.append(fault)


def _fault(error: InputError | OSError) -> str:
    return str(refusal(error) if isinstance(error, OSError) else error)


def measured(path: Path) -> tuple[int, float]:
    """Bytes of the files below a folder, and when one was last written; links are not followed."""
    size, changed = 0, os.lstat(path).st_mtime
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(FileNotFoundError):  # A running run removes files.
                stat = os.lstat(os.path.join(folder, name))
                size += stat.st_size
                if name != ".lock":
                    changed = max(changed, stat.st_mtime)
    return size, changed


def _read_checkpoints(run: Run, folder: RunFolder) -> None:
    """Take what the checkpoints tell; the newest sound one says how far the run has come."""
    store, newest = CheckpointStore(folder.checkpoints), None
    run.left_over = sorted([*folder.checkpoints.glob("damaged-step-*"), *folder.checkpoints.glob(".step-*.new")])
    named: dict[str, Path | None] = {}
    for name in NAMES:
        with _noting(run):
            named[name] = store.named(name)
    for step in store.steps():
        path, fault = folder.checkpoints / checkpoint_name(step), None
        try:
            checkpoint = Checkpoint(path, in_part=True)
            newest = saved_state(checkpoint), checkpoint.folder
        except (InputError, OSError) as error:
            fault = _fault(error)
            run.faults.append(fault)
        names = [name for name, found in named.items() if found is not None and found.name == path.name]
        with suppress(FileNotFoundError):
            run.checkpoints.append(Saved(step, measured(path)[0], names, fault))
    if newest is not None:
        config = _config(newest[1] / "config.yaml")
        run.config = run.config or config
        _take_counters(run, newest[0], config.get("training"))


def _take_counters(run: Run, saved: SavedState, before: Any) -> None:
    counters = saved.counters
    run.step, run.tokens, run.seconds = counters.reported_step, counters.tokens, counters.seconds
    run.val_loss, run.best, run.best_step = counters.val_loss, counters.best, counters.best_step
    run.eval_every = counters.eval_every
    run.model, run.data_sha256 = (_text(saved.identity.get(name)) for name in ("model_type", "data_sha256"))
    run.setup = dict(saved.setup)
    run.unevaluated = counters.pending_evaluation is not None
    training = run.config.get("training")
    if isinstance(training, dict):
        unchanged = isinstance(before, dict) and all(before.get(name) == training.get(name) for name in LIMITS)
        lines = RunFolder(run.path).iterate_metrics(newest_first=True)
        run.steps = (saved.num_steps if unchanged else None) or _steps(training, counters, next(lines, {}))
        if 0 < _number(training.get("patience")) <= counters.stale_evaluations:
            run.steps = counters.step  # Which is where patience has ended it.


def _number(value: Any) -> float:
    return value if isinstance(value, int | float) else 0.0


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _steps(training: Mapping[str, Any], counters: Counters, line: Mapping[str, float]) -> int | None:
    """How many steps a run takes in all, by the options that end it: what its newest checkpoint does not say."""
    steps, epochs, tokens = (
        value if isinstance(value := training.get(name), int | float) else None
        for name in ("max_steps", "epochs", "max_tokens")
    )
    limits = [] if steps is None else [steps]
    # Rounded, or the last bits of a quotient would make it a step more or less.
    if epochs is not None and line.get("epoch"):
        limits.append(math.ceil(round(epochs * line["step"] / line["epoch"], 6)))
    if tokens is not None and counters.tokens:
        limits.append(math.floor(round(tokens * counters.step / counters.tokens, 6)))
    return int(min(limits)) if limits else None


def _read_metrics(run: Run, folder: RunFolder) -> None:
    """Take what `metrics.jsonl` tells: a running run is further than its newest checkpoint."""
    lines = list(islice(folder.iterate_metrics(newest_first=True), _LINES))
    for line in lines[:1]:
        if line["step"] >= run.step:
            run.step = int(line["step"])
            run.tokens, run.seconds = int(line.get("tokens", run.tokens)), line.get("seconds", run.seconds)
    for line in lines:
        loss = line.get("val_loss", line.get("val_loss_subset"))
        if loss is not None:
            run.val_loss, run.bits_per_byte = loss, line.get("bits_per_byte")
            break
    losses = {line["step"]: line.get("val_loss", line.get("val_loss_subset")) for line in lines}
    for saved in run.checkpoints:
        saved.val_loss = losses.get(saved.step)


def age(seconds: float) -> str:
    """A span of time in its largest unit."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def table_row(run: Run) -> dict[str, str]:
    """A run as a line of a table."""
    return {
        "run": str(run.path),
        "state": run.state,
        "model": run.model or "",
        "step": f"{run.step:,}" + ("" if run.steps is None else f"/{run.steps:,}"),
        "loss": _loss(run.val_loss),
        "best": _loss(run.best),
        "bits/byte": _loss(run.bits_per_byte),
        "checkpoints": str(len(run.checkpoints)),
        "size": gigabytes(run.size),
        "age": age(time.time() - run.changed),
    }


def _loss(loss: float | None) -> str:
    return "" if loss is None else f"{loss:.4f}"
