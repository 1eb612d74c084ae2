"""Batches for the GPT: the tokens of a text, in windows of the model's context.

Shapes: B batch, T tokens, N tokens of a split.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.batches.order import ORDER, drawn, epoch_samples
from data.batches.packing import positions_of_documents
from data.cache.tokens import tokenized
from data.config import TextConfig
from data.listing import listed
from data.text import Source
from data.tokenizers.tokenizer import Tokenizer, unit_of
from training.runtime.errors import InputError
from training.task import IGNORED, Batch

MAX_LISTED = 16
DEVICE_SHARE = 1 / 64
"""The most of a device's memory that a text's tokens may take."""
DEVICE_DTYPE = torch.int32
"""Of tokens on a device, where few operations know integers without a sign."""


class UncutWindows(NamedTuple):
    """Where windows begin in a text whose tokens are on the device, to be cut there.

    With `end`, the token that ends a document, documents do not see each other.
    """

    tokens_N: Tensor
    starts_B: Tensor
    context: int
    end: int | None = None

    @property
    def num_targets(self) -> int:
        """Number of targets: T of each window."""
        return len(self.starts_B) * self.context

    def pinned(self) -> "UncutWindows":
        """The same, with the places in memory that a GPU copies from by itself."""
        return self._replace(starts_B=self.starts_B.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """Cut the windows; the text is a ring."""
        starts_B = self.starts_B.to(device, non_blocking=True)
        positions_BT = (starts_B[:, None] + torch.arange(self.context + 1, device=device)) % len(self.tokens_N)
        tokens_BT = self.tokens_N[positions_BT].long()
        return Batch(model_inputs(tokens_BT[:, :-1].contiguous(), self.end), tokens_BT[:, 1:].contiguous())


class TextData:
    """A text to train on and one to validate on, as tokens.

    Args:
        source: The text.
        context: Length T of a window, in tokens.
        seed: Of the run.
        data: How to split it, and into which tokens; None for the defaults.
        tokenizer: One that exists, in the place of the one that `data` names.

    Raises:
        InputError: A split is shorter than one context, or has characters that are unknown.
    """

    order = ORDER
    _end: int | None = None

    def __init__(
        self,
        source: Source,
        context: int,
        seed: int,
        data: TextConfig | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.context, self.seed = context, seed
        data = data or TextConfig()
        training, validation, self.tokenizer, self.sha256, notes = tokenized(source, data, tokenizer)
        self._end = end_of_documents(self.tokenizer, data)
        self.origin, self.notes = source.origin, (*source.notes, *notes)
        self._train_N, self._val_N = as_tensor(training.tokens_N), as_tensor(validation.tokens_N)
        self._unit = unit_of(self.tokenizer) + "s"
        for name, tokens_N in (("training", self._train_N), ("validation", self._val_N)):
            if len(tokens_N) <= context:
                raise InputError(
                    f"the {name} split of {source.origin} has {len(tokens_N):,} {self._unit}, too few for one context "
                    f"of {context:,}: use a longer text or a smaller --model.max_len"
                )
        self.validation_targets = len(self._val_N) - 1
        self.validation_bytes = validation.target_bytes(self.tokenizer)
        # Fewer than T tokens are left out of an epoch, others each time.
        self.samples_per_epoch, self.tokens_per_sample = len(self._train_N) // context, float(context)

    def training_batch(self, first: int, count: int) -> Batch:
        """Windows `first` to `first + count` of the endless stream of epochs.

        An epoch takes the training text as a ring, cuts it into windows from a random offset on, and shuffles them.
        """
        return self._uncut(self._train_N, first, count).to(self._train_N.device)

    def cutter(self, device: torch.device) -> Callable[[int, int], UncutWindows] | None:
        """What makes training batches of the text's tokens on a GPU, if they take a small share of its memory.

        None as well for a subclass that makes its batches itself.
        """
        tokens_N, memory = self._train_N, torch.cuda.get_device_properties(device).total_memory
        own = type(self).training_batch is not TextData.training_batch
        if own or tokens_N.numel() * DEVICE_DTYPE.itemsize > DEVICE_SHARE * memory:
            return None
        return partial(self._uncut, on_device(tokens_N, device))

    def _uncut(self, tokens_N: Tensor, first: int, count: int) -> UncutWindows:
        starts_B = torch.cat([starts for _, starts in self._starts(first, count)])
        return UncutWindows(tokens_N, starts_B, self.context, self._end)

    def describe_samples(self, first: int, count: int) -> str:
        """Where windows `first` to `first + count` of the stream begin in the training text."""
        parts = []
        for epoch, starts in self._starts(first, count):
            shown = listed([f"{start:,}" for start in starts.tolist()], MAX_LISTED, separator="; ")
            parts.append(f"epoch {epoch}, windows at {self._unit} {shown}")
        return ", ".join(parts)

    def _starts(self, first: int, count: int) -> Iterator[tuple[int, Tensor]]:
        """For each epoch that windows of the stream are in, its number and where they begin in the training text."""
        samples = epoch_samples(first, count, num_samples=self.samples_per_epoch, seed=self.seed)
        length = len(self._train_N)
        for epoch, windows in samples:
            offset = drawn(length, self.seed, epoch, "offset")
            yield epoch, (offset + windows * self.context) % length

    def validation_batches(self, batch_size: int, rank: int = 0, num_ranks: int = 1, every: int = 1) -> Iterator[Batch]:
        """Windows side by side over the validation text, or every so many-th of them; see `side_by_side`."""
        return side_by_side(self._val_N, self.context, batch_size, rank, num_ranks, every, self._end)


def end_of_documents(tokenizer: Tokenizer, data: TextConfig) -> int | None:
    """The token behind which a document begins that sees none before it; None where all see each other.

    Raises:
        InputError: The tokenizer has none.
    """
    if data.packing == "joined":
        return None
    if tokenizer.end_of_text is None:
        raise InputError(
            "data.packing documents needs a tokenizer with a token that ends a text: use --data.tokenizer bytes or "
            "bpe:16384, or leave it out"
        )
    return tokenizer.end_of_text


def model_inputs(tokens_BT: Tensor, end: int | None) -> tuple[Tensor, ...]:
    """What a model takes of windows of a text: tokens, and where documents do not see each other, their positions."""
    return (tokens_BT,) if end is None else (tokens_BT, positions_of_documents(tokens_BT, end))


def as_tensor(tokens_N: NDArray[np.unsignedinteger]) -> Tensor:
    """Tokens as they lie on the disk, which nobody writes to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(tokens_N)


def on_device(tokens_N: Tensor, device: torch.device) -> Tensor:
    """Tokens as signed integers on a device, copied there as they lie on the disk."""
    if tokens_N.dtype == torch.uint16:
        return tokens_N.view(torch.int16).to(device).to(DEVICE_DTYPE) & 0xFFFF
    return tokens_N.view(DEVICE_DTYPE).to(device)


def side_by_side(
    tokens_N: Tensor,
    context: int,
    batch_size: int,
    rank: int = 0,
    num_ranks: int = 1,
    every: int = 1,
    end: int | None = None,
) -> Iterator[Batch]:
    """A rank's share of the windows of T = `context` tokens: each of the N - 1 targets comes once, over all ranks.

    With `every` k only the first of each k windows comes. A batch is cut when it is asked for. For `end` see
    `UncutWindows`.
    """
    num_targets = len(tokens_N) - 1
    starts = range(0, num_targets, every * context)
    for first in range(rank * batch_size, len(starts), num_ranks * batch_size):
        positions_BT = torch.tensor(starts[first : first + batch_size])[:, None] + torch.arange(context)
        padding_BT = positions_BT >= num_targets
        positions_BT.clamp_(max=num_targets - 1)
        inputs_BT = tokens_N[positions_BT].long().masked_fill(padding_BT, 0)
        yield Batch(model_inputs(inputs_BT, end), tokens_N[positions_BT + 1].long().masked_fill(padding_BT, IGNORED))
