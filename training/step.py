"""The work of one global batch on the device. It asks the device nothing, so that the host can be a step ahead.

What the host wants to know is copied behind the work that makes it (`Late`), and read when the next step is under way.
"""

import math
import time
from contextlib import nullcontext
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.profiler import record_function

from training.average import WeightAverage
from training.batches import StepBatches
from training.config.sections import RunConfig
from training.nonfinite import Guard
from training.optimizer import MuonAdamW
from training.schedule import count_steps, learning_rate_scale
from training.seeds import derive_seed, seed_device
from training.sharding import is_sharded, without_sync
from training.shards import local
from training.task import Batch, Task


class Late:
    """Tensors on their way to the host: on a GPU into pinned memory, behind the work that is given to it now.

    Attributes:
        time: When they were there, as `time.perf_counter` counts; for a GPU it is known when they are read.
    """

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors = tensors
        self._arrived: torch.cuda.Event | None = None
        self.time = time.perf_counter()
        if tensors[0].is_cuda:
            self._tensors = tuple(torch.empty_like(t, device="cpu", pin_memory=True) for t in tensors)
            for here, there in zip(self._tensors, tensors, strict=True):
                here.copy_(there, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def read(self) -> list[list[float]]:
        """Their numbers; waits for them."""
        if self._arrived is not None:
            self._arrived.synchronize()
            self.time = time.perf_counter()
        return [tensor.tolist() for tensor in self._tensors]


class Outcome(NamedTuple):
    """What came of a step, alike in all processes.

    Attributes:
        loss: The sum over all targets.
        stop: Whether a process was asked to stop.
        grad_norm: Of the gradient of the loss's mean, before it was clipped.
        usable: False where a number is not finite: then this step and the one behind it have changed nothing.
        num_targets: In the global batch.
        time: When it was known, as `time.perf_counter` counts.
    """

    loss: float
    stop: bool
    grad_norm: float
    usable: bool
    num_targets: int
    time: float


class Launched(NamedTuple):
    """A step that was given to the device.

    Attributes:
        step: Its number, from 1.
        learning_rate: Of AdamW.
        shares: First sample and count of each micro-batch of this process.
        losses: Of these, on the device.
    """

    step: int
    learning_rate: float
    shares: list[tuple[int, int]]
    losses: Tensor
    numbers: Late

    def outcome(self) -> Outcome:
        """Wait for the step, and not for what was launched behind it."""
        (loss, stops, grad_norm, closed), (num_targets,) = self.numbers.read()
        return Outcome(loss, stops > 0, grad_norm, closed == 0, int(num_targets), self.numbers.time)


class DeviceStep:
    """Takes optimizer steps.

    Args:
        accelerator: Processes, device and mixed precision.
        parallel_model: A `LossModel` of the task's model, `parallelized`.
        task, config: As of `Trainer`.
        optimizer, average: What follows the gradients.

    Attributes:
        in_shards: Whether the model is, so that all ranks take part in each pass.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        parallel_model: nn.Module,
        task: Task,
        config: RunConfig,
        optimizer: MuonAdamW,
        average: WeightAverage | None,
    ) -> None:
        self._accelerator, self._config, self._num_steps = accelerator, config, count_steps(config, task)
        self._optimizer, self._average = optimizer, average
        self._parallel_model, self.in_shards = parallel_model, is_sharded(parallel_model)
        self._set_sample_seeds = getattr(task.model, "set_sample_seeds", None)
        self.guard = Guard(accelerator.scaler, accelerator.device)

    def launch(self, step: int, batches: StepBatches, *, stop: bool) -> Launched:
        """Give one optimizer step to the device.

        Args:
            step: Its number, from 1.
            batches: This process's share of its global batch.
            stop: Whether this process was asked to stop; all hear of it.
        """
        accelerator, config = self._accelerator, self._config
        seed_device(derive_seed(config.seed, step, accelerator.process_index, "dropout"), accelerator.device)
        scale = learning_rate_scale(config.schedule, step, self._num_steps)
        learning_rate = self._optimizer.set_learning_rate(scale)
        losses, num_targets = self.backward(batches)
        loss_here = losses.sum()
        stop_here = torch.full_like(loss_here, stop)
        with record_function("optimizer"):
            norm_here = self._gradient_norm().to(loss_here.dtype)
            numbers_here = torch.stack((loss_here, stop_here, norm_here**2 if self.in_shards else norm_here))
            loss, stops, norms = accelerator.reduce(numbers_here, "sum").unbind()
            # One norm for all: unequal cards may each add it up in another order, and would clip to other weights.
            grad_norm = norms.sqrt() if self.in_shards else norms / accelerator.num_processes
            self._clip_gradients(grad_norm)
            self._optimizer.found_inf = unchanged = self.guard.judge(loss, grad_norm)
            self._optimizer.step()
            if self._average is not None:
                self._average.update(step, unchanged)
            self.guard.update_loss_scale()
            self._optimizer.zero_grad()
        numbers = torch.stack((loss, stops, grad_norm, self.guard.closed.to(loss.dtype)))
        return Launched(step, learning_rate, batches.shares, losses, Late(numbers, num_targets.view(1)))

    def backward(self, batches: StepBatches) -> tuple[Tensor, Tensor]:
        """Add up the gradients of a global batch.

        Returns:
            The sums of losses of this process's micro-batches, and the number of targets of all processes.
        """
        accelerator, device = self._accelerator, self._accelerator.device
        # Filled on the device: copying a number there would wait for all that the device still has to do.
        num_targets = accelerator.reduce(torch.full((), batches.num_targets, device=device), "sum")
        losses = []
        for batch, seeds_B in batches.parts:
            last = batch is batches.batches[-1]
            with record_function("data"):
                batch_here = batch.to(device)
                self._set_seeds(seeds_B)
            with nullcontext() if last else without_sync(accelerator, self._parallel_model):
                with record_function("forward"):
                    loss = self._loss(batch_here)
                with record_function("backward"):
                    # What comes is the mean of the processes' gradients: times their number it is the sum.
                    accelerator.backward(loss * accelerator.num_processes / num_targets)
            losses.append(loss.detach())
        return torch.stack(losses), num_targets

    def discarded_pass(self, batch: Batch, seeds_B: Tensor, times: int = 1) -> None:
        """Compute gradients and throw them away: what is compiled is, then.

        Without a word to other processes, unless the model is in shards: they must all do so as often.
        """
        try:
            for _ in range(times):
                self._set_seeds(seeds_B)
                with nullcontext() if self.in_shards else self._accelerator.no_sync(self._parallel_model):
                    self._accelerator.backward(self._loss(batch) / batch.targets_BT.numel())
        finally:
            self._optimizer.zero_grad()

    def _set_seeds(self, seeds_B: Tensor) -> None:
        if self._set_sample_seeds is not None:
            self._set_sample_seeds(seeds_B.to(self._accelerator.device, non_blocking=True))

    def warm_up_ddp_buckets(self, batches: StepBatches) -> None:
        """Let DDP rebuild its buckets before the first step, so that a resumed run adds gradients in the same order."""
        for _ in range(0 if self.in_shards else 2):
            self.backward(batches)
            self._optimizer.zero_grad()

    def _loss(self, batch: Batch) -> Tensor:
        """The forward pass: the sum of a micro-batch's losses."""
        loss: Tensor = self._parallel_model(*batch.inputs, batch.targets_BT)
        return loss

    def _gradient_norm(self) -> Tensor:
        """Undo the loss scale, and add up the norm of the gradient, or of this rank's rows of it."""
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.unscale_(self._optimizer)
        return nn.utils.get_total_norm([local(p.grad) for p in self._parallel_model.parameters() if p.grad is not None])

    def _clip_gradients(self, norm: Tensor) -> None:
        """Bring gradients of a norm down to the configured one."""
        max_norm = self._config.training.max_grad_norm or math.inf
        nn.utils.clip_grads_with_norm_(self._parallel_model.parameters(), max_norm, norm)
