"""What a run came to at a checkpoint: from the checkpoint itself, and from the run's metrics where they are there."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from training.runtime.errors import InputError
from training.storage.checkpoint import Checkpoint
from training.storage.loading import Weights
from training.storage.run_folder import PROGRESS, RunFolder
from training.storage.state import saved_state
from training.storage.tensor_file import SUFFIX

RAW = "raw_"
"""What the keys of the weights themselves begin with, where a line is of their average."""


@dataclass(frozen=True)
class RunFigures:
    """What is to be said of a run.

    Attributes:
        measures: Of the model, by the names that metrics.jsonl has.
        training: How it was trained, in words.
        losses: Step, loss in training in words and in validation, of each evaluation up to the checkpoint.
    """

    measures: Mapping[str, float]
    training: Mapping[str, str]
    losses: list[tuple[int, str, float]]


def run_figures(checkpoint: Checkpoint, weights: Weights) -> RunFigures:
    """Read them; a checkpoint that has left its run has the loss that its counters know.

    Args:
        checkpoint: Of which run, and of which step.
        weights: Which ones the measures are to be of. Where there is an average, a run measures that, and the weights
            themselves only where it was asked to.
    """
    state = saved_state(checkpoint)
    counters, setup, measures = state.counters, state.setup, {}
    beside_average = weights == "raw" and f"ema{SUFFIX}" in checkpoint.files
    if counters.val_loss is not None and counters.val_step == state.step and not beside_average:
        measures["val_loss"] = counters.val_loss
    lines: list[dict[str, float]] = []
    if checkpoint.folder.parent.name == "checkpoints":
        with suppress(InputError):  # What cannot be read is not told.
            metrics = RunFolder(checkpoint.folder.parents[1]).iterate_metrics()
            lines = [_of_weights(line, raw=beside_average) for line in metrics if line["step"] <= state.step]
    for line in lines:
        if line["step"] == state.step:
            measures |= {name: value for name, value in line.items() if name not in PROGRESS}
    training = {
        "optimizer steps": f"{counters.step:,}",
        "training sequences": f"{counters.samples:,}",
        "training targets": f"{counters.tokens:,}",
        "time in steps": str(timedelta(seconds=round(counters.seconds))),
        **({"device": str(setup["device"])} if "device" in setup else {"precision": str(setup.get("precision"))}),
    }
    return RunFigures(measures, training, _losses(lines))


def _of_weights(line: Mapping[str, float], *, raw: bool) -> dict[str, float]:
    """A line of metrics with the measures of the weights that a run goes by; or of the `raw` ones beside an average."""
    if not raw:
        return {name: value for name, value in line.items() if not name.startswith(RAW)}
    own = {name.removeprefix(RAW): value for name, value in line.items() if name.startswith(RAW)}
    return {name: value for name, value in line.items() if name in PROGRESS} | own


def _losses(lines: list[dict[str, float]]) -> list[tuple[int, str, float]]:
    key = "val_loss" if any("val_loss" in line for line in lines) else "val_loss_subset"
    train, losses = "", []
    for line in lines:
        train = f"{line['train_loss']:.4f}" if "train_loss" in line else train
        if key in line:
            losses.append((int(line["step"]), train, line[key]))
    return losses
