"""What a process computes of each step: its share of the global batch, in micro-batches, made ahead by one thread."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from types import TracebackType
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.profiler import record_function

from training.config.sections import RunConfig
from training.seeds import derive_seed
from training.task import Data, Uncut


class StepBatches(NamedTuple):
    """What this process computes of a step.

    Attributes:
        shares: First sample and count of each micro-batch.
        batches: The micro-batches.
        seeds: Of the dropout masks of each one, by sample.
        num_targets: In all of them.
    """

    shares: list[tuple[int, int]]
    batches: list[Uncut]
    seeds: list[Tensor]
    num_targets: int

    @property
    def parts(self) -> "zip[tuple[Uncut, Tensor]]":
        """Each micro-batch with its seeds."""
        return zip(self.batches, self.seeds, strict=True)


class Batches:
    """The batches of all steps. Each is a pure function of its step, so a thread makes the next one meanwhile.

    Args:
        data: Where they come from.
        config: The configuration.
        accelerator: Which process of how many this is, and its device.
        micro_batch: Most sequences of a micro-batch; 0 for no limit.
        num_steps: The last step.
    """

    def __init__(
        self, data: Data, config: RunConfig, accelerator: Accelerator, micro_batch: int, num_steps: int
    ) -> None:
        self._config, self._micro_batch, self._num_steps = config, micro_batch, num_steps
        self._rank, self._num_ranks = accelerator.process_index, accelerator.num_processes
        self._device = accelerator.device
        self._cut: Callable[[int, int], Uncut] = data.training_batch
        if self._device.type == "cuda" and hasattr(data, "cutter"):
            self._cut = data.cutter(self._device) or data.training_batch
        self._thread = ThreadPoolExecutor(1, "batches", self._enter_device)
        self._ahead: tuple[int, Future[StepBatches]] | None = None

    def __enter__(self) -> "Batches":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)

    @record_function("data")  # As a profile names it.
    def take(self, step: int) -> StepBatches:
        """The batches of a step, while those of the next one are begun; errors of the thread are raised here."""
        made = self._ahead[1].result() if self._ahead and self._ahead[0] == step else self.make(step)
        self._ahead = None
        if step < self._num_steps:
            self._ahead = step + 1, self._thread.submit(self.make, step + 1)
        return made

    def make(self, step: int) -> StepBatches:
        """The batches of a step, in memory that a GPU copies from by itself, if there is one."""
        shares = self.shares(step)
        batches = [self._cut(first, count) for first, count in shares]
        num_targets = sum(batch.num_targets for batch in batches)
        seeds = [self._seeds(step, first, count) for first, count in shares]
        if self._device.type == "cuda":
            batches, seeds = [batch.pinned() for batch in batches], [seeds_B.pin_memory() for seeds_B in seeds]
        return StepBatches(shares, batches, seeds, num_targets)

    def shares(self, step: int) -> list[tuple[int, int]]:
        """This process's share of a step's global batch, by first sample and count of each micro-batch.

        The counts of all accumulation steps differ by one at most; so do those of an accumulation step's micro-batches.
        """
        training = self._config.training
        parts = (training.accumulation_steps or 1) * self._num_ranks
        edges = even_edges((step - 1) * training.batch_size, training.batch_size, parts)
        mine = [edges[part : part + 2] for part in range(self._rank, parts, self._num_ranks)]
        return [share for start, end in mine for share in self._micro_batches(start, end - start)]

    def _micro_batches(self, first: int, count: int) -> list[tuple[int, int]]:
        edges = even_edges(first, count, -(-count // self._micro_batch) if self._micro_batch else 1)
        return [(start, end - start) for start, end in pairwise(edges)]

    def _seeds(self, step: int, first: int, count: int) -> Tensor:
        """A seed for each sample, by its place in the global batch, so that no split of the batch changes them."""
        start = first - (step - 1) * self._config.training.batch_size
        return torch.tensor([derive_seed(self._config.seed, step, start + i, "dropout") for i in range(count)])

    def _enter_device(self) -> None:
        """A thread begins on the first GPU, whose memory is another process's."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)


def even_edges(first: int, count: int, parts: int) -> Sequence[int]:
    """Where each of `parts` parts of `count` begins, as evenly as it goes, and where the last one ends."""
    return [first + count * part // parts for part in range(parts + 1)]
