"""What a run does about a loss or a gradient that is not finite: at once on the device, a step later on the host."""

import math
from collections.abc import Sequence
from typing import NoReturn

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.amp import GradScaler

from training.reporting import Reporter
from training.runtime.errors import NonFiniteError, SaveError
from training.saving import Saver
from training.storage.state import Counters

LOSS_SCALE_FLOOR = 1.0
"""Below this loss scale fp16 has no excuse left: a gradient that is still infinite is so by itself."""


class Guard:
    """Keeps a step whose numbers are not finite from changing anything, and the steps behind it until the host decides.

    All of it happens on the device, in the order of its work, without a question to it.

    Args:
        scaler: fp16's loss scale; None in other precisions.
        device: What the steps are computed on.

    Attributes:
        closed: 1 from such a step on, else 0; the tensor of each step is its own.
    """

    def __init__(self, scaler: GradScaler | None, device: torch.device) -> None:
        self._scaler = scaler
        self.closed = torch.zeros((), device=device)

    def judge(self, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """Close behind a step that is not finite; return 1 where the step must change nothing, else 0.

        A gradient that a lower loss scale may help costs its own step alone.
        """
        overflows = ~grad_norm.isfinite()
        hopeless = overflows if self._scaler is None else overflows & (_tensors(self._scaler)[0] <= LOSS_SCALE_FLOOR)
        self.closed = torch.maximum(self.closed, (hopeless | ~loss.isfinite()).float())
        return torch.maximum(self.closed, overflows.float())

    def update_loss_scale(self) -> None:
        """Let the loss scale take in the step, unless the step is held back."""
        if self._scaler is not None:
            before = [tensor.clone() for tensor in _tensors(self._scaler)]
            self._scaler.update()
            for now, then in zip(_tensors(self._scaler), before, strict=True):
                now.copy_(torch.where(self.closed > 0, then, now))

    def skip(self) -> None:
        """Go on behind the step that closed it: the next one counts again, at a lower loss scale."""
        self.closed = torch.zeros_like(self.closed)
        if self._scaler is not None:
            lower = {"scale": self._scaler.get_scale() * self._scaler.get_backoff_factor(), "_growth_tracker": 0}
            self._scaler.load_state_dict(self._scaler.state_dict() | lower)


def _tensors(scaler: GradScaler) -> tuple[Tensor, Tensor]:
    """A loss scale and the steps since it moved, on the device; `state_dict` would wait for it."""
    assert scaler._scale is not None, "a loss was scaled before"
    assert scaler._growth_tracker is not None
    return scaler._scale, scaler._growth_tracker


class NonFinitePolicy:
    """Leaves such a step out, or stops the run, with the weights of the step before saved; all processes do the same.

    Args:
        saver: Of the run.
    """

    def __init__(self, saver: Saver) -> None:
        self._saver = saver

    def skip_step(
        self, counters: Counters, reporter: Reporter, cause: str, losses: Tensor, shares: Sequence[tuple[int, int]]
    ) -> None:
        """Count the step after `counters.step` as skipped; its losses here are those of these shares of its batch.

        Raises:
            NonFiniteError: It is one too many in a row.
        """
        max_streak = self._saver.config.training.max_nonfinite_steps
        cause = f"at step {counters.step + 1} the {cause} {self._origin(counters.step, losses, shares)}"
        if counters.nonfinite_streak >= max_streak:
            self.stop(cause, counters, reporter)
        counters.nonfinite_streak += 1
        counters.skipped_steps += 1
        reporter.say(f"warning     {cause}; the step is skipped ({counters.nonfinite_streak} of {max_streak} in a row)")

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
