"""What came out of a sweep: a table of its settings, and a picture."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from training.plots import new_figure
from training.runtime.errors import InputError
from training.runtime.tables import print_table
from training.storage.run_folder import RunFolder
from training.sweep.grid import Setting
from training.sweep.record import Summary, Sweep

_LABELS = {"val_loss": "validation loss (nats per token)", "bits_per_byte": "bits per byte"}
_NAMED = 10
"""Settings that have a colour and a name in the picture: the best ones."""


def show(sweep: Sweep) -> None:
    """Print a line for each setting, the best first, and one for each run that did not come to its end."""
    summaries = sweep.summaries()
    rows = [
        {
            "setting": _name(summary.setting),
            "runs": f"{summary.done}/{summary.of}",
            sweep.metric: _number(summary.mean),
            "deviation": _number(summary.deviation),
            "lowest": _number(summary.lowest),
            "seconds": "" if summary.seconds is None else f"{summary.seconds:.0f}",
            "others": _others(summary),
        }
        for summary in summaries
    ]
    print_table(rows)
    for run in sweep.runs:
        if run.fault is not None:
            print(f"{run.state:<11} {run.name}: {run.fault}")


def _name(setting: Setting) -> str:
    return ", ".join(f"{name}={value}" for name, value in setting.items()) or "as configured"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _others(summary: Summary) -> str:
    return ", ".join(f"{count} {state}" for state, count in summary.states.items() if state != "done")


def plot(sweep: Sweep, folder: Path, output: Path) -> None:
    """Draw the losses of all runs over their steps, and beside them what each setting came to.

    Args:
        sweep: The sweep.
        folder: Where its runs are.
        output: The picture.
    """
    best = [summary for summary in sweep.summaries() if summary.mean is not None][:_NAMED]
    colours = {_name(summary.setting): f"C{index}" for index, summary in enumerate(best)}
    figure = new_figure(12, 5)
    curves, ends = figure.subplots(1, 2)
    for run in sweep.runs:
        lines: list[dict[str, float]] = []
        with suppress(InputError, OSError):  # It is a fault of the run, which is said.
            lines = RunFolder(folder / run.name).read_metrics()
        points = [(line["step"], line[sweep.metric]) for line in lines if sweep.metric in line]
        line = {"color": colours.get(_name(run.setting), "0.7"), "linestyle": "-" if run.state == "done" else ":"}
        curves.plot([step for step, _ in points], [loss for _, loss in points], marker=".", linewidth=1, **line)
    curves.set(xlabel="optimizer steps", ylabel=_LABELS[sweep.metric])
    curves.grid(alpha=0.3)
    _draw_ends(ends, sweep, best, colours)
    figure.savefig(output)


def _draw_ends(axes: Any, sweep: Sweep, best: Sequence[Summary], colours: Mapping[str, str]) -> None:
    """The lowest loss of each run as a dot, in a line for each setting, and mean and deviation as a bar."""
    for index, summary in enumerate(best):
        name = _name(summary.setting)
        losses = [run.loss for run in sweep.runs if run.setting == summary.setting and run.state == "done"]
        axes.plot(losses, [index] * len(losses), "o", color=colours[name], alpha=0.4, markersize=5)
        axes.errorbar(summary.mean, index, xerr=summary.deviation, fmt="|", color=colours[name], capsize=4)
    leaves = ([f"{name.rpartition('.')[2]}={value}" for name, value in each.setting.items()] for each in best)
    labels = ["\n".join(words).replace("$", r"\$") or "as configured" for words in leaves]  # Two would be a formula.
    axes.set_yticks(range(len(best)), labels)
    axes.set_ylim(max(len(best), 1) - 0.5, -0.5)
    axes.set(xlabel="lowest of each run; mean and deviation over seeds")
    axes.grid(alpha=0.3)
