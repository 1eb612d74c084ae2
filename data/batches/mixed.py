"""Batches for the GPT from several texts at once, each by its weight.

Shapes: B batch, T tokens, M windows of a block.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import chain

import torch
from torch import Tensor

from data.batches.order import ORDER, epoch_samples
from data.batches.windows import TextData
from data.cache.tokens import shared_tokenizer
from data.config import TextConfig
from data.mix import mixed_sha256, parse_mix
from data.text import Source
from data.tokenizers.tokenizer import Tokenizer
from training.seeds import derive_seed
from training.task import Batch


class MixedData:
    """Several texts to train on and to validate on, as tokens of one tokenizer.

    The stream of windows goes in blocks. A block has of each source a number of windows that is exactly its share, in
    an order that (seed, block) decides; they are the next ones of that source's own stream of epochs. So a batch is a
    pure function of the seed and of its place, as with one text.

    Args:
        source: The mix.
        context: Length T of a window, in tokens.
        seed: Of the run.
        data: With the weights; how to split each text, and into which tokens.
        make: Makes the data of one of the sources.
        tokenizer: One that exists, in the place of the one that `data` names.

    Raises:
        InputError: As `TextData`, for one of the sources.
    """

    order = ORDER

    def __init__(
        self,
        source: Source,
        context: int,
        seed: int,
        data: TextConfig,
        make: Callable[..., TextData] = TextData,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.context = context
        self._counts, self._seed = tuple(parse_mix(data.mix or "").values()), derive_seed(seed, "mix")
        self.tokenizer: Tokenizer = tokenizer or shared_tokenizer(source, data)
        self.parts = {
            name: make(source.parts[name], context, derive_seed(seed, "mix", number), part, self.tokenizer)
            for number, (name, part) in enumerate(data.parts.items())
        }
        parts = list(self.parts.values())
        self.origin, self.sha256 = source.origin, mixed_sha256([part.sha256 for part in parts], data.mix or "")
        self.validation_targets = sum(part.validation_targets for part in parts)
        self.validation_bytes = sum(part.validation_bytes for part in parts)
        self.samples_per_epoch = sum(part.samples_per_epoch for part in parts)
        self.tokens_per_sample = parts[0].tokens_per_sample

    @property
    def notes(self) -> tuple[str, ...]:
        """How often each source is read in an epoch, which is as many windows as all of them have; and their notes."""
        shared = set.intersection(*(set(part.notes) for part in self.parts.values()))
        said = dict.fromkeys(note for part in self.parts.values() for note in part.notes if note in shared)
        own = [f"{name}: {note}" for name, part in self.parts.items() for note in part.notes if note not in shared]
        times = [
            f"{name} {self.samples_per_epoch * count / sum(self._counts) / part.samples_per_epoch:.3g} times"
            for count, (name, part) in zip(self._counts, self.parts.items(), strict=True)
        ]
        return (f"an epoch of the mix reads {', '.join(times)}", *said, *own)

    def training_batch(self, first: int, count: int) -> Batch:
        """Windows `first` to `first + count` of the endless stream of blocks."""
        shares = [
            (rows_B, part.training_batch(start, len(rows_B))) for _, part, start, rows_B in self._shares(first, count)
        ]
        rows_B = torch.cat([rows_B for rows_B, _ in shares]).argsort()
        inputs = zip(*(batch.inputs for _, batch in shares), strict=True)
        targets_BT = torch.cat([batch.targets_BT for _, batch in shares])[rows_B]
        return Batch(tuple(torch.cat(parts)[rows_B] for parts in inputs), targets_BT)

    def describe_samples(self, first: int, count: int) -> str:
        """Which windows of which source stand at `first` to `first + count` of the stream."""
        shares = self._shares(first, count)
        return "; ".join(f"{name}: {part.describe_samples(start, len(rows_B))}" for name, part, start, rows_B in shares)

    def _shares(self, first: int, count: int) -> Iterator[tuple[str, TextData, int, Tensor]]:
        """For each source of a batch: its name, its data, the first of its windows, and their rows in the batch."""
        size = sum(self._counts)
        block = first // size
        blocks = range(block, (first + count - 1) // size + 1)
        sources = torch.cat([_sources_of_block(self._counts, self._seed, number) for number in blocks])
        begin = first - block * size
        before, wanted = sources[:begin], sources[begin : begin + count]
        for number, (windows, (name, part)) in enumerate(zip(self._counts, self.parts.items(), strict=True)):
            rows_B = (wanted == number).nonzero().flatten()
            if len(rows_B):
                yield name, part, block * windows + int((before == number).sum()), rows_B

    def validation_batches(self, batch_size: int, rank: int = 0, num_ranks: int = 1, every: int = 1) -> Iterator[Batch]:
        """The windows of all sources, one source after the other; see `TextData.validation_batches`."""
        return chain.from_iterable(self.validation_parts(batch_size, rank, num_ranks, every).values())

    def validation_parts(
        self, batch_size: int, rank: int = 0, num_ranks: int = 1, every: int = 1
    ) -> Mapping[str, Iterable[Batch]]:
        """The same, by source."""
        return {name: part.validation_batches(batch_size, rank, num_ranks, every) for name, part in self.parts.items()}


@lru_cache(maxsize=4)
def _sources_of_block(counts: tuple[int, ...], seed: int, number: int) -> Tensor:
    """Which source each of the M windows of a block is of."""
    size = sum(counts)
    [(_, order_M)] = epoch_samples(number * size, size, num_samples=size, seed=seed)
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))[order_M]
