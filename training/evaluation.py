"""How good a model is: the mean loss over a split, measured by all processes together, and what a task measures."""

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from training.average import WeightAverage
from training.loss import LossModel
from training.task import Batch, Task, evaluating


class Interrupted(Exception):
    """An evaluation was given up, by all processes."""


def evaluate(
    accelerator: Accelerator,
    task: Task,
    average: WeightAverage | None,
    *,
    batch_size: int,
    sample_seed: int,
    interrupted: Callable[[], bool],
) -> tuple[dict[str, float], str | None]:
    """Measure a model on its validation split.

    Where there is an average of the weights it is the one to be measured and sampled from, and `raw_val_loss` is that
    of the weights themselves.

    Returns:
        `val_loss` and other measures for metrics.jsonl; and a sample, in the main process where the loss is finite.

    Raises:
        Interrupted: A process gave up.
    """
    measures, sample = {}, None
    if average is not None:
        measures["raw_val_loss"] = validation_loss(accelerator, task, batch_size, interrupted)
    with average.in_model() if average else nullcontext():
        val_loss = validation_loss(accelerator, task, batch_size, interrupted)
        if math.isfinite(val_loss) and accelerator.is_main_process:
            measures |= {name: float(value) for name, value in task.metrics(val_loss).items()}
            sample = task.sample(sample_seed)
    return {"val_loss": val_loss} | measures, sample


def validation_loss(
    accelerator: Accelerator, task: Task, batch_size: int, interrupted: Callable[[], bool] = lambda: False
) -> float:
    """Mean negative log-likelihood over every target of the validation split; see `mean_loss`."""
    batches = task.data.validation_batches(batch_size, accelerator.process_index, accelerator.num_processes)
    with evaluating(task.model):
        return mean_loss(accelerator, task.model, batches, interrupted)


@torch.no_grad()
def mean_loss(
    accelerator: Accelerator,
    model: nn.Module,
    batches: Iterable[Batch],
    interrupted: Callable[[], bool] = lambda: False,
) -> float:
    """Mean negative log-likelihood over every target in the batches of all processes, in nats per token.

    Args:
        accelerator: Where to compute.
        model: In evaluation mode.
        batches: Those of this process.
        interrupted: Asked after every batch whether to give up.

    Raises:
        Interrupted: A process gave up.
    """
    losses: list[Tensor] = []
    loss_model = LossModel(model)
    num_targets, gave_up = 0.0, False
    for batch in batches:
        inputs, targets_BT = batch.to(accelerator.device)
        with accelerator.autocast():
            losses.append(loss_model(*inputs, targets_BT))
        num_targets += batch.num_targets
        gave_up = interrupted()
        if gave_up:
            break
    total = math.fsum(torch.stack(losses).tolist()) if losses else 0.0
    if accelerator.num_processes > 1:
        sums = torch.tensor([total, num_targets, gave_up], dtype=torch.float64, device=accelerator.device)
        total, num_targets, gave_up = accelerator.reduce(sums, "sum").tolist()
    if gave_up:
        raise Interrupted
    return total / num_targets
