"""A tokenizer of the characters or words that some texts have, for pairs."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from data.listing import describe, shown_symbol
from training.runtime.errors import InputError
from training.storage.reading import MalformedFileError, built

Unit = Literal["characters", "words"]
UNITS: dict[str, Unit] = {unit: unit for unit in get_args(Unit)}


@dataclass
class _Saved:
    unit: Unit
    symbols: list[str]


class Symbols:
    """The token ids of symbols.

    Args:
        symbols: Characters, or words; the first one has id 0.
        unit: Which of the two.
    """

    def __init__(self, symbols: Sequence[str], unit: Unit) -> None:
        self.symbols, self.unit = tuple(symbols), unit
        self._ids = {symbol: token for token, symbol in enumerate(self.symbols)}

    @classmethod
    def from_texts(cls, texts: Iterable[str], unit: Unit) -> "Symbols":
        """All symbols of some texts, sorted."""
        return cls(sorted({symbol for text in texts for symbol in split(text, unit)}), unit)

    def __len__(self) -> int:
        return len(self.symbols)

    def encode(self, text: str, name: str = "the text") -> list[int]:
        """The token ids of a text.

        Args:
            text: Any text.
            name: What to call it in an error.

        Raises:
            InputError: Symbols are not in the vocabulary; the message shows where the first stands, and all of them.
        """
        found = split(text, self.unit)
        try:
            return [self._ids[symbol] for symbol in found]
        except KeyError as error:
            (first,), unknown = error.args, self.unknown([text])
            raise InputError(
                f"unknown {self.unit[:-1]} {shown_symbol(first)} at position {found.index(first) + 1} of {name}: "
                f"{'they are' if len(unknown) > 1 else 'it is'} not in the vocabulary"
                + (f" (all of them, with their number: {describe(unknown)})" if unknown.total() > 1 else "")
            ) from error

    def unknown(self, texts: Iterable[str]) -> Counter[str]:
        """The symbols of texts that are not in the vocabulary, and how often they occur."""
        return Counter(symbol for text in texts for symbol in split(text, self.unit) if symbol not in self._ids)

    def without_unknown(self, text: str) -> str:
        """What is left of a text without such symbols."""
        return self.separator.join(symbol for symbol in split(text, self.unit) if symbol in self._ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids."""
        return self.separator.join(self.symbols[token] for token in ids)

    @property
    def separator(self) -> str:
        """What stands between two symbols of a text."""
        return "" if self.unit == "characters" else " "

    def to_json(self) -> str:
        """As a vocabulary.json has it."""
        return json.dumps({"unit": self.unit, "symbols": self.symbols}, ensure_ascii=False)

    @classmethod
    def from_value(cls, value: object, file: Path) -> "Symbols":
        """Made of the value that the JSON in a file has.

        Raises:
            MalformedFileError: It is no vocabulary, or a symbol is none or comes twice; the message names the file.
        """
        saved: _Saved = built(_Saved, value, file)
        odd = next((symbol for symbol in saved.symbols if split(symbol, saved.unit) != [symbol]), None)
        if odd is not None:
            raise MalformedFileError(file, f"{odd!r} is not one of its {saved.unit}")
        if len(set(saved.symbols)) < len(saved.symbols):
            raise MalformedFileError(file, "a symbol comes twice")
        return cls(saved.symbols, saved.unit)


def split(text: str, unit: Unit) -> list[str]:
    """The symbols of a text."""
    return list(text) if unit == "characters" else text.split()
