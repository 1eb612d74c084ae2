"""The tokens of sources and targets: three special ones, then characters or words."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.listing import describe, shown_symbol
from training.runtime.errors import InputError
from training.storage.reading import MalformedFileError, built, parse_json

PAD, START, END = range(3)
SPECIAL = 3
Unit = Literal["characters", "words"]


@dataclass
class _Saved:
    unit: Unit
    symbols: list[str]


class Vocabulary:
    """The token ids of symbols, after those of `PAD`, `START` and `END`.

    Args:
        symbols: Characters, or words; the first one has id 3.
        unit: Which of the two.
    """

    def __init__(self, symbols: Sequence[str], unit: Unit) -> None:
        self.symbols, self.unit = tuple(symbols), unit
        self._ids = {symbol: token for token, symbol in enumerate(self.symbols, start=SPECIAL)}

    @classmethod
    def from_texts(cls, texts: Iterable[str], unit: Unit) -> "Vocabulary":
        """All symbols of some texts, sorted."""
        return cls(sorted({symbol for text in texts for symbol in split(text, unit)}), unit)

    def __len__(self) -> int:
        return SPECIAL + len(self.symbols)

    def encode(self, text: str, name: str = "the text") -> list[int]:
        """The token ids of a text, without special tokens.

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

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of token ids; special ones show as such."""
        names = ("<pad>", "<start>", "<end>", *self.symbols)
        return self.separator.join(names[token] for token in tokens)

    @property
    def separator(self) -> str:
        """What stands between two symbols of a text."""
        return "" if self.unit == "characters" else " "

    def to_json(self) -> str:
        """The content of vocabulary.json."""
        return json.dumps({"unit": self.unit, "symbols": self.symbols}, ensure_ascii=False)

    @classmethod
    def from_json(cls, content: str, file: Path = Path("vocabulary.json")) -> "Vocabulary":
        """Read what `to_json` wrote.

        Raises:
            MalformedFileError: It is no vocabulary, or a symbol is none or comes twice; the message names the file.
        """
        saved: _Saved = built(_Saved, parse_json(content, file), file)
        odd = next((symbol for symbol in saved.symbols if split(symbol, saved.unit) != [symbol]), None)
        if odd is not None:
            raise MalformedFileError(file, f"{odd!r} is not one of its {saved.unit}")
        if len(set(saved.symbols)) < len(saved.symbols):
            raise MalformedFileError(file, "a symbol comes twice")
        return cls(saved.symbols, saved.unit)


def split(text: str, unit: Unit) -> list[str]:
    """The symbols of a text."""
    return list(text) if unit == "characters" else text.split()
