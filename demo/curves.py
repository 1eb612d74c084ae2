"""The curves of runs, read from their `metrics.jsonl`, while they are written too."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from demo.rendering import chart_rows
from training.run_folder import RunFolder

MOST_POINTS = 300
CURVES = {
    "loss": ("train_loss", "val_loss"),
    "learning rate": ("learning_rate",),
    "tokens per second": ("tokens_per_second",),
}


@dataclass(frozen=True, kw_only=True)
class Curves:
    """What a page shows of some runs.

    Attributes:
        frames: For each chart a table of step, value and line.
        sample: The latest sample of the run that was written last, or an empty text.
        sample_of: Which run and step it is of.
    """

    frames: dict[str, pd.DataFrame]
    sample: str
    sample_of: str


def stamp(runs: Sequence[RunFolder]) -> tuple[tuple[str, int], ...]:
    """Changes whenever a curve has grown."""
    return tuple((run.path.name, _size(run.metrics_file)) for run in runs)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def read_curves(runs: Sequence[RunFolder]) -> Curves:
    """Read the curves of some runs; lines that are cut short are left out."""
    rows: dict[str, list[tuple[float, float, str]]] = {name: [] for name in CURVES}
    for run in runs:
        lines = run.read_metrics()
        for chart, keys in CURVES.items():
            for key in keys:
                points = [(line["step"], line[key]) for line in lines if key in line]
                stride = -(-len(points) // MOST_POINTS) or 1
                kept = points[::stride] + (points[-1:] if points and (len(points) - 1) % stride else [])
                name = f"{run.path.name}, {key.removesuffix('_loss')}" if len(keys) > 1 else run.path.name
                rows[chart] += [(step, value, name) for step, value in kept]
    frames = {name: chart_rows("step", found) for name, found in rows.items()}
    sample, sample_of = _latest_sample(runs)
    return Curves(frames=frames, sample=sample, sample_of=sample_of)


def _latest_sample(runs: Sequence[RunFolder]) -> tuple[str, str]:
    try:
        run = max(runs, key=lambda run: run.metrics_file.stat().st_mtime_ns)
        latest = max((run.path / "samples").glob("step-*.txt"))
        step = int(latest.stem.partition("-")[2])
        return latest.read_text(errors="replace"), f"{latest.parent.parent.name}, step {step:,}"
    except (OSError, ValueError):
        return "", ""
