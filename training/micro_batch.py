"""How many sequences go through the model at once: a step is cut by that, and stays the same but for rounding.

On a GPU that is as many as fit, found by trying: for each size one pass in vain, of which nothing is left. Of several
GPUs the one with the least room decides for all. On a CPU a fixed table says it, and no race of timings.
"""

import gc
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from training.config.sections import RunConfig, TrainingConfig
from training.config.shape import TransformerConfig
from training.planning.memory import largest_micro_batch
from training.runtime.errors import InputError, is_out_of_memory
from training.runtime.progress import Progress
from training.runtime.sizes import gigabytes
from training.task import Batch, Data, Task, padded_length

MICRO_BATCH_TOKENS = 2048
"""Targets of a micro-batch on a CPU: so few that what a block computes of them stays in its cache."""
RESERVE = 1 / 32
"""Share of a GPU's memory that is kept free while sizes are tried: for what a step takes besides, and for holes."""
ESTIMATED = 0.9
"""Share of what is left that is counted on where nothing can be tried."""
TRIED_AHEAD = 1024
"""So many sequences are looked at for the longest, of whose length are those that sizes are tried with."""
OnePass = Callable[[Batch, Tensor, int], None]
"""Computes the gradients of a batch, with the seeds of its masks, so many times, adds them up, and drops them."""


def check_split(training: TrainingConfig, num_processes: int, *, in_shards: bool = False) -> None:
    """Raise an `InputError` unless every process has a sample for each part of a step, and one size of the parts.

    In shards each has as many samples as the others: they gather weights together.
    """
    steps, size, batch_size = training.accumulation_steps, training.micro_batch_size, training.batch_size
    if batch_size < num_processes * (steps or 1):
        raise InputError(
            f"training.batch_size must be at least processes x training.accumulation_steps "
            f"({num_processes} x {steps or 1}), got {batch_size}"
        )
    if in_shards and batch_size % (num_processes * (steps or 1)):
        raise InputError(
            f"with FSDP2 training.batch_size must be a multiple of processes x training.accumulation_steps "
            f"({num_processes} x {steps or 1}), got {batch_size}"
        )
    if steps is None or size == "auto":
        return
    follow = -(-batch_size // (num_processes * size))
    if follow != steps:
        raise InputError(
            f"training.micro_batch_size {size} makes {follow} accumulation steps of training.batch_size {batch_size} "
            f"over {num_processes} process(es), and training.accumulation_steps says {steps}: give one of them alone "
            f"(--training.accumulation_steps null, or --training.micro_batch_size auto)"
        )


def largest_part(training: TrainingConfig, num_processes: int) -> int:
    """Sequences of a process's accumulation step, before it is cut into micro-batches; of the largest one."""
    return -(-training.batch_size // (num_processes * (training.accumulation_steps or 1)))


def sequences_at_once(training: TrainingConfig, num_processes: int, micro_batch: int) -> int:
    """Sequences of the largest micro-batch, of those that have `micro_batch` at most; 0 is no limit."""
    part = largest_part(training, num_processes)
    return -(-part // -(-part // micro_batch)) if micro_batch else part


def cpu_micro_batch(tokens_per_sample: float) -> int:
    """How many sequences, with so many targets each in the mean, a CPU is fast with."""
    return max(1, int(MICRO_BATCH_TOKENS // tokens_per_sample))


class MicroBatching:
    """Chooses how many sequences go through the model at once.

    Args:
        training: The configuration.
        accelerator: The processes and their devices, of one type.
        tokens_per_sample: Targets of a sequence, in the mean.

    Attributes:
        size: So many at most; 0 for no limit, and until sizes are tried.
    """

    def __init__(self, training: TrainingConfig, accelerator: Accelerator, tokens_per_sample: float) -> None:
        self._training, self._accelerator, self._num_processes = training, accelerator, accelerator.num_processes
        self._on_cpu = accelerator.device.type == "cpu"
        self._size_before: int | None = None
        self._keeps_size, self._tried = False, ""
        if training.micro_batch_size != "auto":
            self.size, self._reason = training.micro_batch_size, "as configured"
        elif self._on_cpu:
            self.size, self._reason = cpu_micro_batch(tokens_per_sample), "auto: what a CPU is fast with"
        else:
            self.size, self._reason = 0, "auto: not tried"

    @property
    def is_to_be_tried(self) -> bool:
        """Whether `choose` is to be called before the first step."""
        return self.size == 0

    @property
    def record(self) -> dict[str, Any]:
        """What a checkpoint says of it: `micro_batch`, and, where sizes were tried, which ones fitted."""
        size = self._size_before if self.size == 0 and self._keeps_size else self.size
        return {"micro_batch": size, "micro_batch_tried": self._tried}

    @property
    def description(self) -> str:
        """The choice, and why, for the start of a run."""
        turns = self.turns(self.size)
        parts = f", in {turns} parts" if turns > 1 else ""
        return f"{self._at_once(self.size)} sequences at once{parts} ({self._reason})"

    @property
    def changes(self) -> list[str]:
        """What a run that goes on does otherwise than before, in words."""
        if self._size_before is None or self.size == 0 or self._at_once(self._size_before) == self._at_once(self.size):
            return []
        was, now = self._at_once(self._size_before), self._at_once(self.size)
        return [f"micro_batch was {was}, is now {now} ({self._reason}): the steps to come differ for it"]

    def turns(self, size: int) -> int:
        """How many micro-batches of a size make a process's share of a step."""
        part = largest_part(self._training, self._num_processes)
        return -(-part // self._at_once(size)) * (self._training.accumulation_steps or 1)

    def go_on(self, setup: Mapping[str, Any]) -> None:
        """Let `auto` take what a run has done until now, by what its checkpoint says; on a GPU if that fits.

        What was tried on a GPU is nothing for a CPU, and the other way round.
        """
        before, tried = setup.get("micro_batch"), str(setup.get("micro_batch_tried") or "")
        if not isinstance(before, int) or before < 0:
            return
        self._size_before = before
        self._keeps_size = self._training.micro_batch_size == "auto" and before > 0 and (tried == "") is self._on_cpu
        if self._keeps_size:
            self.size, self._tried, self._reason = before if self._on_cpu else 0, tried, "auto: as the run began"

    def choose(
        self, task: Task, config: RunConfig, precision: str, one_pass: OnePass, *, in_shards: bool = False
    ) -> None:
        """Choose what is to be tried, by trying, or in shards by an estimate; all processes call this.

        Args:
            task, config, precision: What is trained.
            one_pass: As of `Trial`.
            in_shards: Whether weights are spread over the processes.

        Raises:
            MemoryError: Not a single sequence fits.
        """
        device, shards = self._accelerator.device, self._num_processes if in_shards else 1
        free = free_bytes(device)
        estimate = estimated_size(task, config, precision, free, shards)
        if in_shards:
            return self.take_estimate(estimate)
        with closing(Progress(0, 1, visible=self._accelerator.is_main_process)) as progress:
            self.try_sizes(estimate, Trial(task.data, device, one_pass, self.turns, progress), free)

    def try_sizes(self, estimate: int, fits: Callable[[int], bool], free: int | None = None) -> None:
        """Choose the largest size that fits, of those that are worth a try; all processes call this.

        A run that goes on tries what it did before, and smaller sizes only where that does not fit.

        Args:
            estimate: What may be the largest on this process's device: with the lowest of all processes it begins.
            fits: Whether so many sequences fit there.
            free: Bytes that they are to fit into there, if that is known.

        Raises:
            MemoryError: Not a single one fits.
        """
        part = largest_part(self._training, self._num_processes)
        limit = self._size_before if self._keeps_size and self._size_before else part
        sizes = [size for size in sizes_to_try(part) if size < limit] + [min(limit, part)]
        found: dict[int, bool] = {}

        def fits_everywhere(size: int) -> bool:
            found[size] = self._lowest(fits(size)) == 1
            return found[size]

        largest = largest_that_fits(sizes, limit if self._keeps_size else self._lowest(estimate), fits_everywhere)
        self._tried = ", ".join(f"{size} {'fits' if fitted else 'does not fit'}" for size, fitted in found.items())
        if not largest:
            raise MemoryError
        room = "" if free is None else f", in {gigabytes(self._lowest(free))}"
        self.size, self._reason = limit if largest == sizes[-1] else largest, f"auto: {self._tried}{room}"

    def take_estimate(self, estimate: int) -> None:
        """Choose by the lowest estimate of all processes, or what a run did before; all processes call this.

        So it is in shards: a try that runs out of memory on one rank would leave the others waiting for its rows.
        """
        most = self._lowest(estimate)
        sizes = [size for size in sizes_to_try(largest_part(self._training, self._num_processes)) if size <= most]
        self.size = self._size_before if self._keeps_size and self._size_before else max(sizes, default=1)
        self._tried = f"{self.size} by estimate"
        self._reason = f"auto: {self._tried}"

    def _at_once(self, size: int) -> int:
        return sequences_at_once(self._training, self._num_processes, size)

    def _lowest(self, number: int) -> int:
        """The lowest number of all processes."""
        return int(min(gather_object([number]))) if self._num_processes > 1 else int(number)


def estimated_size(task: Task, config: RunConfig, precision: str, free: int | None, shards: int) -> int:
    """How many sequences fit at once by formula, of a whole step where there is no formula.

    Args:
        task, config, precision: What is trained.
        free: Bytes that the training may take, if that is known.
        shards: Processes over which weights and what follows them are spread; 1 for none.
    """
    if free is None or not isinstance(config.model, TransformerConfig):
        return config.training.batch_size
    room = free if shards == 1 else int(ESTIMATED * free)
    length = padded_length(task.data, config.training.batch_size)
    return largest_micro_batch(task.model, config, precision, length, room, shards=shards)


def sizes_to_try(part: int) -> list[int]:
    """Sizes that cut a part evenly, and powers of two: few are tried, and micro-batches of one size cost least."""
    divisors = {size for size in range(1, part + 1) if part % size == 0}
    return sorted(divisors | {2**power for power in range(part.bit_length()) if 2**power < part})


def largest_that_fits(sizes: Sequence[int], estimate: int, fits: Callable[[int], bool]) -> int:
    """The largest of some sizes that fits; 0 where none does. It is sought from an estimate on, one by one.

    Args:
        sizes: In rising order; where one fits, so do smaller ones.
        estimate: Begin with the largest that is no larger than this.
        fits: Whether a size does.
    """
    index = max(0, bisect_right(sizes, estimate) - 1)
    if not fits(sizes[index]):
        return next((size for size in reversed(sizes[:index]) if fits(size)), 0)
    while index + 1 < len(sizes) and fits(sizes[index + 1]):
        index += 1
    return sizes[index]


class Trial:
    """Whether a size fits on this process's device: its pass is computed in vain, and thrown away.

    Weights, optimizer and average stay what they are, and so does what later steps draw.

    Args:
        data: Where sequences come from; sizes are tried with some as long as the longest of the first ones.
        device: What is computed on.
        one_pass: Computes gradients, and drops them.
        turns: How many micro-batches of a size make a step: gradients of those before it take room, too.
        progress: To show with what is tried.
    """

    def __init__(
        self,
        data: Data,
        device: torch.device,
        one_pass: OnePass,
        turns: Callable[[int], int],
        progress: Progress,
    ) -> None:
        self._data, self._device, self._one_pass, self._turns = data, device, one_pass, turns
        self._progress = progress

    def __call__(self, size: int) -> bool:
        """Whether it does."""
        self._progress.doing(f"trying {size} sequences at once …")
        fitted = self._is_computed(size)
        gc.collect()  # What was computed until there was no more memory.
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
        return fitted

    def _is_computed(self, size: int) -> bool:
        inputs, targets = self._data.training_batch(0, max(size, TRIED_AHEAD))
        try:
            spare = spare_bytes(self._device)
            kept_free = torch.empty(spare, dtype=torch.uint8, device=self._device) if spare else None
            batch = Batch(tuple(tensor[:size] for tensor in inputs), targets[:size]).to(self._device)
            self._one_pass(batch, torch.zeros(size, dtype=torch.int64), min(2, self._turns(size)))
            del kept_free
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True


def spare_bytes(device: torch.device) -> int:
    """What is kept free of a GPU while sizes are tried; 0 where a device's memory is not known."""
    return int(RESERVE * _usable_bytes(device)) if device.type == "cuda" else 0


def free_bytes(device: torch.device) -> int | None:
    """What this process may take of its GPU, with what it has taken; None where a device's memory is not known."""
    if device.type != "cuda":
        return None
    at_hand = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return min(at_hand, _usable_bytes(device)) - spare_bytes(device)


def _usable_bytes(device: torch.device) -> int:
    """A GPU's memory, or the part of it that torch is told to make do with."""
    return int(torch.cuda.get_per_process_memory_fraction(device) * torch.cuda.mem_get_info(device)[1])
