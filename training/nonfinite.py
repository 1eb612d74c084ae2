"""What a run does about a loss or a gradient that is not finite."""

import math
from collections.abc import Sequence
from typing import NoReturn

from accelerate.utils import gather_object
from torch import Tensor

from training.reporting import Reporter
from training.runtime.errors import NonFiniteError, SaveError
from training.saving import Saver
from training.storage.state import Counters

LOSS_SCALE_FLOOR = 1.0
"""Below this loss scale fp16 has no excuse left: a gradient that is still infinite is so by itself."""


class NonFinitePolicy:
    """Leaves such a step out, or stops the run, with the weights of the step before saved; all processes do the same.

    Args:
        saver: Of the run.
    """

    def __init__(self, saver: Saver) -> None:
        self._saver = saver

    def is_usable(self, loss_total: float, grad_norm: float) -> bool:
        """Whether a step may change the weights; fp16's scaler sees to gradients that a lower loss scale may help."""
        scaler = self._saver.accelerator.scaler
        may_help = scaler is not None and scaler.get_scale() > LOSS_SCALE_FLOOR
        return math.isfinite(loss_total) and (math.isfinite(grad_norm) or may_help)

    def skip_step(
        self, counters: Counters, reporter: Reporter, cause: str, losses: Tensor, shares: Sequence[tuple[int, int]]
    ) -> None:
        """Count the step after `counters.step` as left out; its losses here are those of these shares of its batch.

        Raises:
            NonFiniteError: It is one too many in a row.
        """
        scaler, max_streak = self._saver.accelerator.scaler, self._saver.config.training.max_nonfinite_steps
        cause = f"at step {counters.step + 1} the {cause} {self._origin(counters.step, losses, shares)}"
        if counters.nonfinite_streak >= max_streak:
            self.stop(cause, counters, reporter)
        if scaler is not None:
            scaler.update()  # It must hear of the end of each step.
        counters.nonfinite_streak += 1
        counters.skipped_steps += 1
        reporter.say(
            f"warning     {cause}; the step is left out ({counters.nonfinite_streak} of {max_streak} in a row)"
        )

    def stop(self, cause: str, counters: Counters, reporter: Reporter) -> NoReturn:
        """Save what there is, and raise a `NonFiniteError`."""
        run, rates = self._saver.run, " and ".join(self._saver.config.optimizer.rates)
        try:
            self._saver.save(counters, reporter, last=True)
        except SaveError as error:
            raise NonFiniteError(f"{cause}; {error}") from error
        raise NonFiniteError(
            f"{cause}; the weights of step {counters.step} are saved in {run.checkpoints / 'last'}. "
            f"A lower {rates} or a longer schedule.warmup_steps helps most often; go on with: {run.resume_command}"
        )

    def _origin(self, step: int, losses: Tensor, shares: Sequence[tuple[int, int]]) -> str:
        """Which ranks and samples a loss that is not finite comes from."""
        rank, describe = self._saver.accelerator.process_index, self._saver.task.data.describe_samples
        bad = [share for share, loss in zip(shares, losses.tolist(), strict=True) if not math.isfinite(loss)]
        found = gather_object([f"rank {rank}: {describe(first, count)}" for first, count in bad])
        size = self._saver.config.training.batch_size
        return f"({'; '.join(found or [f'all ranks: {describe(step * size, size)}'])})"
