"""The curves of runs, read from their `metrics.jsonl`, while they are written too."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.catalogue import changed
from demo.line_chart import Line
from training.run_folder import RunFolder

MOST_POINTS = 300
CURVES = {
    "loss": ("train_loss", "val_loss"),
    "learning rate": ("learning_rate",),
    "tokens per second": ("tokens_per_second",),
}
PALETTE = ["#2563eb", "#ea580c", "#059669", "#9333ea", "#dc2626", "#0891b2", "#ca8a04", "#db2777"]


@dataclass(frozen=True, kw_only=True)
class Curves:
    """What a page shows of some runs.

    Attributes:
        charts: For each chart its lines, against the step.
        sample: The latest sample of the run that was written last, or an empty text.
        sample_of: Which run and step it is of.
    """

    charts: dict[str, list[Line]]
    sample: str
    sample_of: str


def stamp(runs: Sequence[RunFolder]) -> tuple[tuple[str, int, int], ...]:
    """Changes whenever a curve has grown, or a sample was written."""
    return tuple((run.path.name, changed(run.metrics_file), changed(_samples(run))) for run in runs)


def _samples(run: RunFolder) -> Path:
    return run.path / "samples"


def read_curves(runs: Sequence[RunFolder]) -> Curves:
    """Read the curves of some runs; lines that are cut short are left out."""
    charts: dict[str, list[Line]] = {name: [] for name in CURVES}
    for run in runs:
        lines = run.read_metrics()
        for chart, keys in CURVES.items():
            for key in keys:
                points = [(line["step"], line[key]) for line in lines if key in line]
                stride = -(-len(points) // MOST_POINTS) or 1
                kept = points[::stride] + (points[-1:] if points and (len(points) - 1) % stride else [])
                name = f"{run.path.name}, {key.removesuffix('_loss')}" if len(keys) > 1 else run.path.name
                if kept:
                    charts[chart].append(Line(name, PALETTE[len(charts[chart]) % len(PALETTE)], kept))
    sample, sample_of = _latest_sample(runs)
    return Curves(charts=charts, sample=sample, sample_of=sample_of)


def _latest_sample(runs: Sequence[RunFolder]) -> tuple[str, str]:
    files = [file for run in runs for file in _samples(run).glob("step-*.txt")]
    try:
        latest = max(files, key=lambda file: (changed(file), file.name))
        step = int(latest.stem.partition("-")[2])
        return latest.read_text(errors="replace"), f"{latest.parent.parent.name}, step {step:,}"
    except (OSError, ValueError):
        return "", ""
