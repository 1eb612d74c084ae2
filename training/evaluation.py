"""How good a model is: the mean loss over a split, measured by all processes together, and what a task measures."""

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from training.average import WeightAverage
from training.config.sections import TrainingConfig
from training.loss import LossModel
from training.sharding import whole_weights
from training.task import Batch, Data, Task, evaluating

WHOLE, SUBSET = "val_loss", "val_loss_subset"
"""What the mean loss over the validation split is called, and that over a part of it: two that never compare."""


class Interrupted(Exception):
    """An evaluation was given up, by all processes."""


def stride(data: Data, eval_tokens: int) -> int:
    """Every how many-th window of the validation split is evaluated, so that about `eval_tokens` targets are left.

    1, the whole split, where it has no more of them, or for 0.
    """
    return -(-data.validation_targets // eval_tokens) if eval_tokens else 1


def evaluate(
    accelerator: Accelerator,
    task: Task,
    parallel_model: nn.Module,
    average: WeightAverage | None,
    training: TrainingConfig,
    *,
    is_last: Callable[[float], bool],
    sample_seed: int,
    interrupted: Callable[[], bool],
) -> tuple[dict[str, float], str | None]:
    """Measure a model on its validation split, or on the part of it that `training.eval_tokens` asks for.

    Where there is an average of the weights it is the one to be measured and sampled from. With
    `training.eval_raw_weights` the weights themselves are measured too, under `raw_` and the same names.

    Weights in shards are gathered once for all of it: no rank waits for another, and the main process samples alone.

    Args:
        accelerator, task, parallel_model, average, training: Of the run.
        is_last: Whether the run ends, by the loss that was measured: the end measures the whole split in any case.
        sample_seed: Of the sample.
        interrupted: Asked after every batch whether to give up.

    Returns:
        `val_loss`, or for a part of the split `val_loss_subset`, and other measures for metrics.jsonl; and a sample, in
        the main process where the loss is finite.

    Raises:
        Interrupted: A process gave up.
    """
    every = stride(task.data, training.eval_tokens)
    strides = {SUBSET: every, WHOLE: 1}

    def loss(name: str) -> float:
        return validation_loss(accelerator, task, training.eval_batch_size, interrupted, strides[name])

    others, sample = {}, None
    with average.in_model() if average else nullcontext(), whole_weights(parallel_model):
        judged = WHOLE if every == 1 else SUBSET
        losses = {judged: loss(judged)}
        if every > 1 and is_last(losses[judged]):
            losses[WHOLE] = loss(WHOLE)
        if all(map(math.isfinite, losses.values())) and accelerator.is_main_process:
            others = {name: float(value) for name, value in task.metrics(losses.get(WHOLE)).items()}
            sample = task.sample(sample_seed)
    if average is not None and training.eval_raw_weights:
        with whole_weights(parallel_model):
            others |= {f"raw_{name}": loss(name) for name in losses}
    return losses | others, sample


def validation_loss(
    accelerator: Accelerator,
    task: Task,
    batch_size: int,
    interrupted: Callable[[], bool] = lambda: False,
    every: int = 1,
) -> float:
    """Mean negative log-likelihood over every target of the validation split, or of every so many-th window of it.

    See `mean_loss`.
    """
    batches = task.data.validation_batches(batch_size, accelerator.process_index, accelerator.num_processes, every)
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
