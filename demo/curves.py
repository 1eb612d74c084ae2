"""The curves of runs out of their `metrics.jsonl`, while they are written too.

They are cached: a file that has grown is read from its end, as far back as it is new.
"""

import threading
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from itertools import cycle
from math import isnan, nan
from pathlib import Path
from typing import NamedTuple, TypeAlias

from demo.examples import read_samples
from demo.line_chart import Line
from training.runtime.errors import InputError
from training.storage.run_folder import RunFolder

COLUMNS = "step", "train_loss", "val_loss", "val_loss_subset", "bits_per_byte", "learning_rate", "tokens_per_second"
KEPT = 64
"""Runs; one with 200,000 lines takes 11 MB."""
MAX_POINTS = 300
SAMPLES = 3
"""The latest ones that are shown."""
CURVES = {
    "loss": ("train_loss", "val_loss", "val_loss_subset"),
    "bits per byte": ("bits_per_byte",),
    "learning rate": ("learning_rate",),
    "tokens per second": ("tokens_per_second",),
}
PALETTE = ["#2563eb", "#ea580c", "#059669", "#9333ea", "#0891b2", "#ca8a04", "#db2777", "#dc2626"]

Rows: TypeAlias = "array[float]"
"""One row after the other, a value for each column, and NaN for one that was not measured."""


class _Held(NamedTuple):
    version: tuple[int, int]
    rows: Rows
    fault: str


class Metrics:
    """What is in the files of runs, by file, size and time."""

    def __init__(self) -> None:
        self._held: OrderedDict[Path, _Held] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, run: RunFolder) -> Rows:
        """The rows of a run.

        Raises:
            InputError: Its file cannot be read, or a line is not what it should be.
        """
        with self._lock:
            now = _, size = version(run.metrics_file)
            held = self._held.pop(run.path, None)
            if held is None or held.version != now:
                held = _Held(now, *_read_on(run, held.rows if held is not None and size else array("d")))
            self._held[run.path] = held
            while len(self._held) > KEPT:
                self._held.popitem(last=False)
        if held.fault:
            raise InputError(held.fault)
        return held.rows

    @property
    def faults(self) -> dict[str, str]:
        """The runs whose files were tried and could not be read, and why."""
        return {path.name: held.fault for path, held in self._held.items() if held.fault}


METRICS = Metrics()
"""Of this process."""


def version(path: Path) -> tuple[int, int]:
    """When a file or folder was changed last, in nanoseconds, and its size; zeros if they cannot be had."""
    try:
        found = path.stat()
        return found.st_mtime_ns, found.st_size
    except OSError:
        return 0, 0


def _read_on(run: RunFolder, rows: Rows) -> tuple[Rows, str]:
    """The rows with those that are new; a resumed run has taken its last ones back, and writes them again."""
    width, new = len(COLUMNS), []
    try:
        for line in run.iterate_metrics(newest_first=True):
            row = array("d", (line.get(name, nan) for name in COLUMNS))
            while rows and rows[-width] >= row[0] and rows[-width:].tobytes() != row.tobytes():
                del rows[-width:]
            if rows and rows[-width] >= row[0]:
                break
            new.append(row)
    except (InputError, OSError) as error:
        return array("d"), str(error)
    for row in reversed(new):
        rows.extend(row)
    return rows, ""


class Curves(NamedTuple):
    """Of some runs: the lines of each chart against the step; the latest samples of the run that was written last."""

    charts: dict[str, list[Line]]
    samples: str
    samples_of: str


def stamp(runs: Sequence[RunFolder]) -> tuple[tuple[str, tuple[int, int], tuple[int, int]], ...]:
    """Changes whenever a curve has grown, or a sample was written."""
    return tuple((run.path.name, version(run.metrics_file), version(run.path / "samples")) for run in runs)


def read_curves(runs: Sequence[RunFolder]) -> Curves:
    """Read the curves of some runs; a run whose file cannot be read has none, and is among the faults of `METRICS`."""
    charts: dict[str, list[Line]] = {name: [] for name in CURVES}
    for run, colour in zip(runs, cycle(PALETTE), strict=False):
        try:
            rows = METRICS.read(run)
        except InputError:
            continue
        for chart, keys in CURVES.items():
            for key in keys:
                points = _points(rows, key)
                name = f"{run.path.name}, {key.removesuffix('_loss')}" if len(keys) > 1 else run.path.name
                if points:
                    charts[chart].append(Line(name, colour, points, faint=key == "train_loss"))
    newest = max(runs, key=lambda run: version(run.path / "samples"), default=None)
    samples = read_samples(newest, SAMPLES) if newest else {}
    texts = [f"step {step:,}\n{text.rstrip()}" for step, text in samples.items()]
    return Curves(charts=charts, samples="\n\n".join(texts), samples_of=newest.path.name if newest and texts else "")


def _points(rows: Rows, key: str) -> list[tuple[float, float]]:
    """Steps and values where there is one, thinned; the last one stays."""
    width = len(COLUMNS)
    values = rows[COLUMNS.index(key) :: width]
    measured = [n for n, value in enumerate(values) if not isnan(value)]
    stride = -(-len(measured) // MAX_POINTS) or 1
    kept = measured[::stride] + (measured[-1:] if measured and (len(measured) - 1) % stride else [])
    return [(int(rows[n * width]), values[n]) for n in kept]
