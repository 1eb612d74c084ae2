"""A tokenizer of single characters."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data.listing import describe, shown_symbol
from training.runtime.errors import InputError
from training.storage.reading import MalformedFileError, built, parse_json

UNKNOWN = -1


@dataclass
class _Saved:
    characters: str
    kind: Literal["characters"] = "characters"


class CharTokenizer:
    """The token ids of characters. There is none for the end of a text: it would change the vocabulary of every run.

    Args:
        characters: The vocabulary; its first character has id 0.
    """

    end_of_text: int | None = None
    notes: tuple[str, ...] = ()

    def __init__(self, characters: str) -> None:
        self.characters = characters
        codes = _code_points(characters)
        # The last entry stands for all code points above those of the vocabulary.
        self._ids = np.full(int(codes.max(initial=0)) + 2, UNKNOWN, dtype=np.int32)
        self._ids[codes] = np.arange(len(codes), dtype=np.int32)

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> "CharTokenizer":
        """The vocabulary of texts, in the order of code points."""
        return cls("".join(sorted(set[str]().union(*texts))))

    def __len__(self) -> int:
        return len(self.characters)

    def encode(
        self, text: str, name: str = "the text", way_on: str = "leave out what is unknown", *, skip: bool = False
    ) -> NDArray[np.int32]:
        """The token ids of a text.

        Args:
            text: Any text.
            name: What to call it in an error.
            way_on: What to do about that error.
            skip: Leave out characters that are not in the vocabulary.

        Raises:
            InputError: Some are not; the message shows all of them, how often they come, and where the first stands.
        """
        ids = self._ids.take(_code_points(text), mode="clip")
        if skip:
            return ids[ids != UNKNOWN]
        if (ids == UNKNOWN).any():
            found = UnknownCharacters(set(text).difference(self.characters))
            found.add(text)
            raise found.error(name, way_on)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """The token ids of each text; see `encode`. It looks up a table, which more cores would not make faster."""
        return [self.encode(text) for text in texts]

    def encode_prompt(self, prompt: str) -> list[int]:
        """The token ids of a text to continue, whose line ends become those of the vocabulary.

        Raises:
            InputError: It has unknown characters; see `encode`.
        """
        if "\r" not in self.characters:
            prompt = prompt.replace("\r\n", "\n").replace("\r", "\n")
        return self.encode(prompt, "the prompt").tolist()

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        return "".join(self.characters[i] for i in ids)

    def token_bytes(self, token: int) -> bytes:
        """A character in UTF-8."""
        return self.characters[token].encode()

    def to_json(self) -> str:
        """The content of tokenizer.json."""
        return json.dumps({"kind": "characters", "characters": self.characters}, ensure_ascii=False)

    @classmethod
    def from_json(cls, content: str, file: Path = Path("tokenizer.json")) -> "CharTokenizer":
        """Read what `to_json` wrote.

        Raises:
            MalformedFileError: It is no vocabulary, or a character comes twice; the message names the file.
        """
        characters: str = built(_Saved, parse_json(content, file), file).characters
        if len(set(characters)) < len(characters):
            raise MalformedFileError(file, "a character comes twice")
        return cls(characters)


class UnknownCharacters:
    """Which characters of a text that comes in pieces a vocabulary lacks, how often, and where the first stands.

    Args:
        unknown: Those that it lacks.
    """

    def __init__(self, unknown: set[str]) -> None:
        self._unknown, self._counts, self._first = unknown, Counter[str](), ""
        self._line, self._column = 1, 1
        self._nothing = dict.fromkeys(map(ord, unknown))

    def __len__(self) -> int:
        return self._counts.total()

    def add(self, text: str) -> None:
        """The next piece."""
        here = self._unknown & set(text)
        if here and not self._counts:
            first = min(map(text.index, here))
            self._first = text[first]
            self._move(text[:first])
        elif not self._counts:
            self._move(text)
        if here:
            self._counts.update(character for character in text if character in here)

    def leave_out(self, text: str) -> str:
        """The next piece, without them."""
        if not self._unknown:
            return text
        self.add(text)
        return text.translate(self._nothing)

    def _move(self, text: str) -> None:
        """The place behind a text."""
        lines = text.count("\n")
        self._line += lines
        self._column = len(text) - text.rfind("\n") if lines else self._column + len(text)

    def error(self, name: str, way_on: str) -> InputError:
        """What to say of them, where there are some; see `CharTokenizer.encode`."""
        every = f" (all that do not, with their number: {describe(self._counts, len(self._counts))})"
        return InputError(
            f"unknown character {shown_symbol(self._first)} (U+{ord(self._first):04X}) at line {self._line}, column "
            f"{self._column} of {name}: it does not occur in the training text{every if len(self) > 1 else ''}; "
            f"{way_on}"
        )


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
