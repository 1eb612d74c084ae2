"""Pictures: the curves of runs, and what every picture needs."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from training.runtime.errors import InputError
from training.runtime.packages import needed_package
from training.storage.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
X_LABELS = {"step": "optimizer steps", "tokens": "training tokens", "seconds": "seconds of training", "epoch": "epochs"}
XAxis = Literal["step", "tokens", "seconds", "epoch"]


def check_output(path: Path, formats: Sequence[str] = FORMATS) -> None:
    """Raise an `InputError` now if a file could not be written later.

    Its folder may be missing, its format unknown, or matplotlib not installed.
    """
    if path.suffix not in formats:
        raise InputError(f"cannot write {path}: expected a name that ends in {', '.join(formats)}")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}")
    if path.suffix in FORMATS:
        needed_package("matplotlib", f"drawing {path}")


def check_outputs(options: Any) -> None:
    """Raise an `InputError` now if the files of `--json` and `--plot` could not be written later."""
    for output, formats in ((options.json, (".json",)), (options.plot, FORMATS)):
        if output:
            check_output(Path(output), formats)


def write_outputs(options: Any, figures: Mapping[str, Any], plot: Callable[[Path], None]) -> None:
    """Write the figures of a benchmark to the file of `--json`, draw them into that of `--plot`, and say so."""
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")
    if options.plot:
        plot(Path(options.plot))
    for output in filter(None, (options.json, options.plot)):
        print(output)


def new_figure(width: float, height: float) -> "Figure":
    """An empty picture, in inches, that needs no display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout="constrained")


class ReferenceLine(NamedTuple):
    """A loss to compare with, and its name."""

    loss: float
    name: str

    @classmethod
    def parse(cls, text: str) -> "ReferenceLine":
        """Read `LOSS=NAME`."""
        loss, separator, name = text.partition("=")
        try:
            if not separator or not name:
                raise ValueError
            return cls(float(loss), name)
        except ValueError as error:
            raise InputError(f"a reference line is LOSS=NAME, as in 1.47=nanoGPT; got {text!r}") from error


def plot_runs(runs: Sequence[Path], output: Path, *, x_axis: XAxis, references: Sequence[ReferenceLine] = ()) -> None:
    """Draw training and validation losses of runs over each other.

    Args:
        runs: Their folders.
        output: The picture; its name ends in one of `FORMATS`.
        x_axis: What to draw the losses against.
        references: Horizontal lines.

    Raises:
        InputError: A folder holds no metrics, or the picture cannot be written.
    """
    check_output(output)
    lines = [_read(run) for run in runs]
    figure = new_figure(8, 5)
    axes = figure.subplots()
    for index, (name, metrics) in enumerate(zip(_names(runs), lines, strict=True)):
        colour = f"C{index}"
        train, validation = _points(metrics, x_axis, "train_loss"), _points(metrics, x_axis, "val_loss")
        axes.plot(*train, color=colour, alpha=0.35, linewidth=1, label=f"{name}, training")
        axes.plot(*validation, color=colour, marker="o", markersize=3, label=f"{name}, validation")
        subset = _points(metrics, x_axis, "val_loss_subset")
        if subset != ([], []):
            axes.plot(*subset, color=colour, linestyle=":", marker=".", label=f"{name}, val_loss_subset")
    for reference in references:
        axes.axhline(reference.loss, color="0.4", linestyle="--", linewidth=1)
        axes.annotate(
            f"{reference.name}: {reference.loss:g}",
            (1, reference.loss),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 3),
            textcoords="offset points",
            ha="right",
            color="0.3",
        )
    axes.set(xlabel=X_LABELS[x_axis], ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(output)


def _read(run: Path) -> list[dict[str, float]]:
    metrics = RunFolder(run).read_metrics()
    if not metrics:
        reason = "holds no metrics yet" if run.is_dir() else "does not exist"
        raise InputError(f"{run} {reason}: expected the folder of a run, with its metrics.jsonl")
    return metrics


def _points(metrics: list[dict[str, float]], x: str, y: str) -> tuple[list[float], list[float]]:
    """What to draw on the two axes: the lines that have both."""
    both = [line for line in metrics if x in line and y in line]
    return [line[x] for line in both], [line[y] for line in both]


def _names(runs: Sequence[Path]) -> list[str]:
    """The folders' names; whole paths where two are alike."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]
