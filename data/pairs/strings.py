"""Generated tasks: copy and reverse, over strings of random symbols.

Every string is a pure function of (seed, split, index). A hash of the string itself says which split it belongs to, so
that no string is in two of them, whatever the seeds.
"""

import hashlib
import random
from typing import Literal, NamedTuple, get_args

from training.runtime.errors import InputError
from training.seeds import derive_seed

Split = Literal["train", "val", "test"]
Task = Literal["copy", "reverse"]
HELD_OUT_PERCENT = 10
MAX_ATTEMPTS = 10_000
"""Strings to draw before a split counts as empty, or as found in full."""


class Pair(NamedTuple):
    """A source and its target, and where they stand, for people to read."""

    source: str
    target: str
    location: str = ""


def split_of(text: str) -> Split:
    """Which split a source text belongs to: 10 % are for validation, 10 % for the test, the rest for training."""
    percent = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") % 100
    if percent < HELD_OUT_PERCENT:
        return "test"
    return "val" if percent < 2 * HELD_OUT_PERCENT else "train"


class GeneratedPairs:
    """Strings whose lengths are drawn evenly, then their symbols.

    Args:
        task: What the target is.
        symbols: The alphabet.
        min_length, max_length: Symbols of a string.
        seed: Of the run.

    Raises:
        InputError: There are so few strings that a split is empty.
    """

    def __init__(self, task: Task, symbols: str, min_length: int, max_length: int, seed: int) -> None:
        self.task, self.symbols, self.seed = task, symbols, seed
        self.lengths = range(min_length, max_length + 1)
        for split in get_args(Split):
            self._draw(split, 0)

    @property
    def origin(self) -> str:
        """The task in words."""
        few = [f"{count:,} of length {length}" for length in self.lengths if (count := self.possible(length)) < 10**5]
        shown = f", only {', '.join(few)}" if few else ""
        lengths = f"{self.lengths[0]} to {self.lengths[-1]}"
        return f"{self.task} strings of {lengths} of {len(self.symbols)} symbols{shown}"

    @property
    def sha256(self) -> str:
        """Of all that the strings and their split depend on, but for the seed."""
        parts = (self.task, self.symbols, self.lengths[0], self.lengths[-1], HELD_OUT_PERCENT)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def possible(self, length: int) -> int:
        """Number of different strings of a length."""
        return len(self.symbols) ** length

    def stream(self, split: Split, first: int, count: int) -> list[Pair]:
        """Pairs `first` to `first + count` of the endless stream of a split."""
        return [self.pair(split, index) for index in range(first, first + count)]

    def pair(self, split: Split, index: int) -> Pair:
        """Pair `index` of that stream."""
        source = self._draw(split, index)
        return Pair(source, source if self.task == "copy" else source[::-1], f"string {index} ({source})")

    def distinct(self, split: Split, count: int) -> list[Pair]:
        """The first `count` different strings of a split's stream, or all that there seem to be."""
        found: dict[str, Pair] = {}
        index = last = 0
        while len(found) < count and index - last < MAX_ATTEMPTS:
            pair = self.pair(split, index)
            if pair.source not in found:
                found[pair.source] = pair
                last = index
            index += 1
        return list(found.values())

    def _draw(self, split: Split, index: int) -> str:
        dice = random.Random(derive_seed(self.seed, split, index))
        for _ in range(MAX_ATTEMPTS):
            length = self.lengths[int(dice.random() * len(self.lengths))]
            text = "".join(self.symbols[int(dice.random() * len(self.symbols))] for _ in range(length))
            if split_of(text) == split:
                return text
        raise InputError(
            f"the {self.origin} are too few for a split of their own for validation and test: use more data.symbols or "
            f"a larger data.max_length"
        )
