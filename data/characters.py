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
        unknown = np.flatnonzero(ids == UNKNOWN).tolist()
        if unknown:
            first = unknown[0]
            character, line, column = text[first], text.count("\n", 0, first) + 1, first - text.rfind("\n", 0, first)
            counts = Counter(text[position] for position in unknown)
            every = f" (all that do not, with their number: {describe(counts, len(counts))})"
            raise InputError(
                f"unknown character {shown_symbol(character)} (U+{ord(character):04X}) at line {line}, column {column} "
                f"of {name}: it does not occur in the training text{every if len(unknown) > 1 else ''}; {way_on}"
            )
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


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
