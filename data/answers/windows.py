"""Batches for the GPT of rows with answers: several in a window, none of which sees another.

Shapes: B batch, T tokens.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from data.answers.tokens import RowTokens, answer_tokens
from data.batches.order import ORDER, epoch_samples
from data.batches.packing import packed
from data.config import TextConfig
from data.listing import listed
from data.text import Source
from data.tokenizers.tokenizer import Tokenizer
from training.task import IGNORED, Batch

MAX_LISTED = 16


class PackedRows:
    """Rows in windows of T = `context` tokens.

    A batch's inputs are its tokens and the position of each in its row. A target is a token that a model is to write;
    others, and what fills a window up, are IGNORED.
    """

    def __init__(self, rows: RowTokens, context: int) -> None:
        self._rows, self._context = rows, context
        # The last token of a row is only a target.
        self.windows = packed(np.diff(rows.starts_R) - 1, context)

    def batch(self, windows: Sequence[int]) -> Batch:
        """Some windows."""
        shape = len(windows), self._context
        tokens_BT, positions_BT = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        targets_BT = np.full(shape, IGNORED)
        for line, window in enumerate(windows):
            begin = 0
            for row in self.windows[window]:
                first, last = self._rows.starts_R[row], self._rows.starts_R[row + 1] - 1
                here = slice(begin, begin + last - first)
                tokens_BT[line, here] = self._rows.tokens_N[first:last]
                positions_BT[line, here] = np.arange(last - first)
                following = self._rows.tokens_N[first + 1 : last + 1]
                targets_BT[line, here] = np.where(self._rows.counts_N[first + 1 : last + 1], following, IGNORED)
                begin = here.stop
        return Batch((torch.from_numpy(tokens_BT), torch.from_numpy(positions_BT)), torch.from_numpy(targets_BT))

    def batches(self, batch_size: int, rank: int = 0, num_ranks: int = 1, every: int = 1) -> Iterator[Batch]:
        """A rank's share of all windows, or of the first of every so many."""
        windows = range(0, len(self.windows), every)
        for first in range(rank * batch_size, len(windows), num_ranks * batch_size):
            yield self.batch(windows[first : first + batch_size])


class AnswerData:
    """Rows with answers to train on and to validate on, as batches; a sample is a window.

    Which rows share a window follows from their lengths alone; in which order windows come, from (seed, epoch).

    Args:
        source: The rows.
        context: Length T of a window, in tokens.
        seed: Of the run.
        data: Their columns, how to split them, and into which tokens.
        tokenizer: One that exists, in the place of the one that `data` names.

    Raises:
        InputError: The rows do not serve; see `answer_tokens`.
    """

    order = ORDER

    def __init__(
        self, source: Source, context: int, seed: int, data: TextConfig, tokenizer: Tokenizer | None = None
    ) -> None:
        assert source.rows is not None
        self.context, self.seed, self.origin = context, seed, source.origin
        found = answer_tokens(source.rows, data, context, tokenizer)
        self.tokenizer, self.sha256, self.prompt = found.tokenizer, found.sha256, found.prompt
        self._train, self._val = (PackedRows(rows, context) for rows in (found.training, found.validation))
        self.samples_per_epoch = len(self._train.windows)
        self.tokens_per_sample = found.training.num_targets / self.samples_per_epoch
        filled = (len(found.training.tokens_N) - len(found.training)) / (self.samples_per_epoch * context)
        packing = f"{len(found.training):,} rows in {self.samples_per_epoch:,} windows, which are {filled:.0%} full"
        self.notes = (*source.notes, *found.notes, packing)
        self.validation_targets = found.validation.num_targets
        self.validation_bytes = found.validation.target_bytes(self.tokenizer)

    def training_batch(self, first: int, count: int) -> Batch:
        """Windows `first` to `first + count` of the endless stream of shuffled epochs."""
        return self._train.batch([window for _, windows in self._windows(first, count) for window in windows])

    def describe_samples(self, first: int, count: int) -> str:
        """Which rows stand in windows `first` to `first + count` of the stream, by numbers from 1 on."""
        parts = []
        for epoch, windows in self._windows(first, count):
            rows = [" + ".join(f"{row + 1:,}" for row in self._train.windows[window]) for window in windows]
            parts.append(f"epoch {epoch}, windows of rows {listed(rows, MAX_LISTED, separator='; ')}")
        return ", ".join(parts)

    def _windows(self, first: int, count: int) -> Iterator[tuple[int, list[int]]]:
        samples = epoch_samples(first, count, num_samples=self.samples_per_epoch, seed=self.seed)
        return ((epoch, windows.tolist()) for epoch, windows in samples)

    def validation_batches(self, batch_size: int, rank: int = 0, num_ranks: int = 1, every: int = 1) -> Iterator[Batch]:
        """All windows of the rows to validate on, or the first of every so many."""
        return self._val.batches(batch_size, rank, num_ranks, every)
