"""How good a model is: the mean loss over a split, measured by all processes together, and what a task measures."""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import nn

from training.average import WeightAverage
from training.config.sections import TrainingConfig
from training.loss import LossModel
from training.sharding import whole_weights
from training.task import Batch, Data, Task, evaluating

WHOLE, SUBSET = "val_loss", "val_loss_subset"
"""What the mean loss over the validation split is called, and that over a part of it: two that never compare."""
LOSSES = {SUBSET: SUBSET, WHOLE: "validation loss"}
"""What the terminal calls them, first the one that a run goes by where it has both."""


class Interrupted(Exception):
    """An evaluation was given up, by all processes."""


def in_words(measures: Mapping[str, float]) -> str:
    """The losses of an evaluation, and of data in parts each part's."""
    said = []
    for name, words in LOSSES.items():
        parts = [f"{key[len(name) + 1 :]} {loss:.4f}" for key, loss in measures.items() if key.startswith(f"{name}/")]
        if name in measures:
            said.append(f"{words} {measures[name]:.4f}" + (f" ({', '.join(parts)})" if parts else ""))
    return "  ".join(said)


def stride(data: Data, eval_tokens: int) -> int:
    """Every how many-th window of the validation split is evaluated, so that about `eval_tokens` targets are left.

    1, the whole split, where it has no more of them, or for 0.
    """
    return -(-data.validation_targets // eval_tokens) if eval_tokens else 1


class Evaluator:
    """Measures the model of a run on its validation split, or on the part of it that `training.eval_tokens` asks for.

    Where there is an average of the weights it is the one to be measured and sampled from. With
    `training.eval_raw_weights` the weights themselves are measured too, under `raw_` and the same names.

    Weights in shards are gathered once for all of it: no rank waits for another, and the main process samples alone.

    Args:
        accelerator, task, parallel_model, average, training: Of the run.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        task: Task,
        parallel_model: nn.Module,
        average: WeightAverage | None,
        training: TrainingConfig,
    ) -> None:
        self._accelerator, self._task, self._training = accelerator, task, training
        self._parallel_model, self._average = parallel_model, average

    def evaluate(
        self, *, is_last: Callable[[float], bool], sample_seed: int, interrupted: Callable[[], bool]
    ) -> tuple[dict[str, float], str | None]:
        """Measure, and sample.

        Args:
            is_last: Whether the run ends, by the loss that was measured: the end measures the whole split in any case.
            sample_seed: Of the sample.
            interrupted: Asked after every batch whether to give up.

        Returns:
            `val_loss`, or for a part of the split `val_loss_subset`, with `val_loss/NAME` of each part of data in
            parts, and other measures for metrics.jsonl; and a sample, in the main process where the loss is finite.

        Raises:
            Interrupted: A process gave up.
        """
        task, average = self._task, self._average
        every = stride(task.data, self._training.eval_tokens)
        strides = {SUBSET: every, WHOLE: 1}
        others, sample = {}, None
        with average.in_model() if average else nullcontext(), whole_weights(self._parallel_model):
            judged = WHOLE if every == 1 else SUBSET
            losses = self._losses(judged, every, interrupted)
            if every > 1 and is_last(losses[judged]):
                losses |= self._losses(WHOLE, 1, interrupted)
            if all(map(math.isfinite, losses.values())) and self._accelerator.is_main_process:
                others = {name: float(value) for name, value in task.metrics(losses.get(WHOLE)).items()}
                sample = task.sample(sample_seed)
        if average is not None and self._training.eval_raw_weights:
            with whole_weights(self._parallel_model):
                raw = [self._losses(name, strides[name], interrupted) for name in strides if name in losses]
                others |= {f"raw_{name}": loss for found in raw for name, loss in found.items()}
        return losses | others, sample

    def _losses(self, name: str, every: int, interrupted: Callable[[], bool]) -> dict[str, float]:
        asked = self._accelerator, self._task, self._training.eval_batch_size, interrupted, every
        if hasattr(self._task.data, "validation_parts"):
            return losses_by_part(name, *asked)
        return {name: validation_loss(*asked)}


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


def losses_by_part(
    name: str, accelerator: Accelerator, task: Task, batch_size: int, interrupted: Callable[[], bool], every: int
) -> dict[str, float]:
    """As `validation_loss`, for data in parts: the mean of all under `name`, of each part under `name/PART`."""
    of_rank = batch_size, accelerator.process_index, accelerator.num_processes, every
    parts: Mapping[str, Iterable[Batch]] = task.data.validation_parts(*of_rank)  # type: ignore[attr-defined]
    with evaluating(task.model):
        sums = {part: summed_loss(accelerator, task.model, batches, interrupted) for part, batches in parts.items()}
    whole = math.fsum(total for total, _ in sums.values()) / sum(num_targets for _, num_targets in sums.values())
    return {name: whole} | {f"{name}/{part}": total / num_targets for part, (total, num_targets) in sums.items()}


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
    total, num_targets = summed_loss(accelerator, model, batches, interrupted)
    return total / num_targets


@torch.no_grad()
def summed_loss(
    accelerator: Accelerator, model: nn.Module, batches: Iterable[Batch], interrupted: Callable[[], bool]
) -> tuple[float, float]:
    """The sum of the losses over all targets of all processes, and how many targets; see `mean_loss`."""
    # One sum, not a list: glibc would cut each small tensor that stays from the memory of logits that are freed.
    sum_of_losses = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    loss_model = LossModel(model)
    num_targets, gave_up = 0.0, False
    for batch in batches:
        inputs, targets_BT = batch.to(accelerator.device)
        with accelerator.autocast():
            sum_of_losses += loss_model(*inputs, targets_BT)
        num_targets += batch.num_targets
        gave_up = interrupted()
        if gave_up:
            break
    total = float(sum_of_losses)
    if accelerator.num_processes > 1:
        sums = torch.tensor([total, num_targets, gave_up], dtype=torch.float64, device=accelerator.device)
        total, num_targets, gave_up = accelerator.reduce(sums, "sum").tolist()
    if gave_up:
        raise Interrupted
    return total, num_targets
