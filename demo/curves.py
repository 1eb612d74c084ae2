"""The curves of runs, read from their `metrics.jsonl`, while they are written too."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from math import isnan
from pathlib import Path

from demo.catalogue import changed
from demo.line_chart import Line
from demo.metrics import COLUMNS, METRICS, Rows, version
from training.runtime.errors import InputError
from training.storage.reading import read_bytes
from training.storage.run_folder import RunFolder

MAX_POINTS = 300
SAMPLES = 3
"""The latest ones that are shown."""
CURVES = {
    "loss": ("train_loss", "val_loss"),
    "learning rate": ("learning_rate",),
    "tokens per second": ("tokens_per_second",),
}
PALETTE = ["#2563eb", "#ea580c", "#059669", "#9333ea", "#0891b2", "#ca8a04", "#db2777", "#dc2626"]


@dataclass(frozen=True, kw_only=True)
class Curves:
    """What a page shows of some runs.

    Attributes:
        charts: For each chart its lines, against the step.
        samples: The latest samples of the run that was written last, the newest first, or an empty text.
        samples_of: Which run they are of.
    """

    charts: dict[str, list[Line]]
    samples: str
    samples_of: str


def stamp(runs: Sequence[RunFolder]) -> tuple[tuple[str, tuple[int, int], int], ...]:
    """Changes whenever a curve has grown, or a sample was written."""
    return tuple((run.path.name, version(run.metrics_file), changed(_samples(run))) for run in runs)


def _samples(run: RunFolder) -> Path:
    return run.path / "samples"


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
    samples, samples_of = _latest_samples(runs)
    return Curves(charts=charts, samples=samples, samples_of=samples_of)


def _points(rows: Rows, key: str) -> list[tuple[float, float]]:
    """Steps and values where there is one, thinned; the last one stays."""
    width = len(COLUMNS)
    values = rows[COLUMNS.index(key) :: width]
    measured = [n for n, value in enumerate(values) if not isnan(value)]
    stride = -(-len(measured) // MAX_POINTS) or 1
    kept = measured[::stride] + (measured[-1:] if measured and (len(measured) - 1) % stride else [])
    return [(int(rows[n * width]), values[n]) for n in kept]


def _latest_samples(runs: Sequence[RunFolder]) -> tuple[str, str]:
    newest = max(runs, key=lambda run: changed(_samples(run)), default=None)
    if newest is None:
        return "", ""
    texts = []
    for file in sorted(_samples(newest).glob("step-*.txt"), reverse=True)[:SAMPLES]:
        with suppress(OSError, ValueError):  # It may vanish.
            step = int(file.stem.partition("-")[2])
            texts.append(f"step {step:,}\n{read_bytes(file).decode(errors='replace').rstrip()}")
    return "\n\n".join(texts), newest.path.name if texts else ""
