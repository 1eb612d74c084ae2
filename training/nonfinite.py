"""What a run does about a loss or a gradient that is not finite."""

import math
from collections.abc import Sequence
from typing import NoReturn

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from training.config.sections import RunConfig
from training.reporting import Reporter
from training.runtime.errors import NonFiniteError, SaveError
from training.saving import Saver
from training.storage.state import Counters
from training.task import Task

LOSS_SCALE_FLOOR = 1.0
"""Below this loss scale fp16 has no excuse left: a gradient that is still infinite is so by itself."""


class NonFinitePolicy:
    """Leaves such a step out, or stops the run, with the weights of the step before saved.

    Args:
        accelerator: The processes, and fp16's loss scale.
        task: Names the samples.
        config: Says how many such steps in a row may be left out.
        saver: Saves what there is where the run stops.
    """

    def __init__(self, accelerator: Accelerator, task: Task, config: RunConfig, saver: Saver) -> None:
        self._accelerator, self._task, self._config, self._saver = accelerator, task, config, saver

    def is_usable(self, loss_total: float, grad_norm: float) -> bool:
        """Whether a step may change the weights; fp16's scaler sees to gradients that a lower loss scale may help."""
        scaler = self._accelerator.scaler
        may_help = scaler is not None and scaler.get_scale() > LOSS_SCALE_FLOOR
        return math.isfinite(loss_total) and (math.isfinite(grad_norm) or may_help)

    def skip_step(
        self,
        counters: Counters,
        reporter: Reporter,
        cause: str,
        losses: Tensor,
        shares: Sequence[tuple[int, int]],
    ) -> None:
        """Count the step after `counters.step` as left out, or stop the run for it; all processes call this.

        Args:
            counters: Where the run stands.
            reporter: To warn with.
            cause: What is not finite.
            losses: Those of this process's accumulation steps.
            shares: Their samples.

        Raises:
            NonFiniteError: It is one too many in a row.
        """
        max_streak = self._config.training.max_nonfinite_steps
        cause = f"at step {counters.step + 1} the {cause} {self._origin(counters.step, losses, shares)}"
        if counters.nonfinite_streak >= max_streak:
            self.stop(cause, counters, reporter)
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.update()  # It must hear of the end of each step.
        counters.nonfinite_streak += 1
        counters.skipped_steps += 1
        reporter.say(
            f"warning     {cause}; the step is left out ({counters.nonfinite_streak} of {max_streak} in a row)"
        )

    def stop(self, cause: str, counters: Counters, reporter: Reporter) -> NoReturn:
        """Save what there is, and raise a `NonFiniteError`."""
        try:
            self._saver.save(counters, reporter, last=True)
        except SaveError as error:
            raise NonFiniteError(f"{cause}; {error}") from error
        run, rates = self._saver.run, " and ".join(self._config.optimizer.rates)
        raise NonFiniteError(
            f"{cause}; the weights of step {counters.step} are saved in {run.checkpoints / 'last'}. "
            f"A lower {rates} or a longer schedule.warmup_steps helps most often; go on with: {run.resume_command}"
        )

    def _origin(self, step: int, losses: Tensor, shares: Sequence[tuple[int, int]]) -> str:
        """Which ranks and samples a loss that is not finite comes from."""
        rank, describe = self._accelerator.process_index, self._task.describe_samples
        bad = [share for share, loss in zip(shares, losses.tolist(), strict=True) if not math.isfinite(loss)]
        found = gather_object([f"rank {rank}: {describe(first, count)}" for first, count in bad])
        size = self._config.training.batch_size
        return f"({'; '.join(found or [f'all ranks: {describe(step * size, size)}'])})"
