"""Pairs of texts as batches of tokens, whatever they come from.

Shapes: B batch, S source tokens, T target tokens, P the longer of the two.
"""

import random
from collections.abc import Iterator, Sequence
from functools import cached_property
from statistics import fmean

import torch
from torch import Tensor

from data.batches.order import ORDER
from data.config import FRAME, PairConfig
from data.listing import listed
from data.pairs.files import FilePairs
from data.pairs.strings import GeneratedPairs, Pair
from data.tokenizers.symbols import Symbols
from data.tokenizers.vocabulary import END, PAD, START, Vocabulary
from training.runtime.errors import InputError
from training.seeds import derive_seed
from training.storage.state import FIRST_ORDER
from training.task import IGNORED, Batch

EPOCH = 100_000
"""Generated pairs that count as an epoch; the next epoch has others."""
EXAMPLES = 1000
"""Pairs from which a mean length is taken, and generated ones from which subwords are learnt."""
MAX_LISTED = 3


def load_pairs(data: PairConfig, seed: int, tokens: Vocabulary | None = None) -> FilePairs | GeneratedPairs:
    """The pairs that a configuration names; see `FilePairs`.

    Raises:
        InputError: There are none, or one is no pair.
    """
    if data.task == "pairs":
        return FilePairs(data, seed, tokens)
    return GeneratedPairs(data.task, data.symbols, data.min_length, data.max_length, seed)


class PairData:
    """Pairs to train on and to validate on, as batches.

    Args:
        data: Which pairs.
        max_len: Longest sequence of the model, in tokens.
        seed: Of the run.
        random_positions: Share of the training pairs that stand at random positions; see `ModelConfig`.

    Attributes:
        validation: Pairs whose loss is measured.
        decoded: Those of them that are decoded.
        notes: What was guessed, which rows were left out, what of the vocabulary is in no training pair, and what is to
            be said of a tokenizer.

    Raises:
        InputError: The pairs do not serve; see `load_pairs`, and `FilePairs.check_lengths`.
    """

    def __init__(self, data: PairConfig, max_len: int, seed: int, random_positions: float = 0.0) -> None:
        self.max_len, self.seed, self.random_positions = max_len, seed, random_positions
        self.pairs = load_pairs(data, seed)
        self.notes: list[str] = []
        if isinstance(self.pairs, FilePairs):
            self.pairs.check_lengths(max_len)
            self.vocabulary, unlearnt = self.pairs.vocabulary()
            self.notes = self.pairs.notes
            if unlearnt:
                self.notes.append(f"only in validation or test, so never learnt: {unlearnt}")
            self.samples_per_epoch, self.order = len(self.pairs.splits["train"]), ORDER
        else:
            self.vocabulary = self._of_strings(data)
            self.samples_per_epoch, self.order = EPOCH, FIRST_ORDER
        self.notes += self.vocabulary.notes
        self.origin, self.sha256 = self.pairs.origin, self.pairs.sha256
        self.decoded = by_length(self.pairs.distinct("val", data.val_samples), self.vocabulary)
        self.validation = self.decoded
        if isinstance(self.pairs, FilePairs):
            self.validation = by_length(self.pairs.splits["val"], self.vocabulary)
        some = self.pairs.distinct("train", min(EXAMPLES, self.samples_per_epoch))
        self.mean_source, self.tokens_per_sample = (
            fmean(len(tokens) for tokens in column) for column in zip(*encode(some, self.vocabulary), strict=True)
        )

    def _of_strings(self, data: PairConfig) -> Vocabulary:
        """The vocabulary of generated strings."""
        if data.tokenizer == "characters":
            return Vocabulary(Symbols(data.symbols, "characters"))
        some = self.pairs.distinct("train", EXAMPLES)
        return Vocabulary.learnt(data.tokenizer, (pair.source for pair in some), data.tokenizer_bytes)

    def training_batch(self, first: int, count: int) -> Batch:
        """Pairs `first` to `first + count` of the endless stream, and their positions, if some are random."""
        indices = range(first, first + count)
        encoded = encode(self.pairs.stream("train", first, count), self.vocabulary)
        batch = make_batch(encoded)
        if self.random_positions == 0:
            return batch
        positions = [self._positions(index, max(map(len, pair))) for index, pair in zip(indices, encoded, strict=True)]
        return Batch((*batch.inputs, padded(positions, 0)), batch.targets_BT)

    def _positions(self, index: int, count: int) -> list[int]:
        """Positions of the tokens of training pair `index`, for its source and for its target."""
        # The word is a part of the seed: another one would draw other positions.
        dice = random.Random(derive_seed(self.seed, "places", index))
        if dice.random() >= self.random_positions:
            return list(range(count))
        return sorted(dice.sample(range(self.max_len), count))

    @cached_property
    def validation_targets(self) -> int:
        """Target tokens of the validation pairs."""
        return sum(len(target) for _, target in encode(self.validation, self.vocabulary))

    def validation_batches(self, batch_size: int, rank: int, num_ranks: int, every: int = 1) -> Iterator[Batch]:
        """A rank's share of the validation pairs, or of every so many-th of them, from the shortest to the longest."""
        pairs = self.validation[::every]
        for start in range(rank * batch_size, len(pairs), num_ranks * batch_size):
            yield make_batch(encode(pairs[start : start + batch_size], self.vocabulary))

    def describe_samples(self, first: int, count: int) -> str:
        """Which pairs stand at `first` to `first + count` of the stream."""
        return listed([pair.location for pair in self.pairs.stream("train", first, count)], MAX_LISTED)


def by_length(pairs: Sequence[Pair], vocabulary: Vocabulary) -> list[Pair]:
    """Pairs in the order of their lengths, so that those of a batch are padded little."""
    sources, targets = (vocabulary.counts([pair[side] for pair in pairs]) for side in (0, 1))
    return [pair for *_, pair in sorted(zip(sources, targets, pairs, strict=True), key=lambda row: row[:2])]


def encode(pairs: Sequence[Pair], vocabulary: Vocabulary) -> list[tuple[list[int], list[int]]]:
    """Sources from start to end, and targets to their ends, as token ids.

    Raises:
        InputError: A symbol is unknown; the message names the pair's place.
    """
    encoded = []
    for pair in pairs:
        source = vocabulary.encode(pair.source, f"the source of {pair.location}")
        target = vocabulary.encode(pair.target, f"the target of {pair.location}")
        encoded.append((frame_source(source), [*target, END]))
    return encoded


def frame_source(tokens: Sequence[int]) -> list[int]:
    """A source as the encoder reads it."""
    return [START, *tokens, END]


def make_batch(encoded: Sequence[tuple[list[int], list[int]]]) -> Batch:
    """Sources and targets, padded to the longest: the decoder reads the start and all of a target but its end."""
    sources, targets = zip(*encoded, strict=True)
    inputs = [[START, *target[:-1]] for target in targets]
    return Batch((padded(sources, PAD), padded(inputs, PAD)), padded(targets, IGNORED))


def padded(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    """A tensor of rows of different lengths, filled up at their ends."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows])


def check_source(tokens: Sequence[int], max_len: int, name: str) -> None:
    """Raise an `InputError` unless a source, without its frame, is not empty and fits into the context."""
    if not tokens:
        raise InputError(f"{name} is empty: give at least one symbol")
    if len(frame_source(tokens)) > max_len:
        raise InputError(
            f"{name} has {len(tokens):,} tokens, at most {max_len - FRAME:,} fit into the model's context of "
            f"{max_len:,}"
        )
