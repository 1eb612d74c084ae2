"""A tokenizer of single characters."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from training.runtime.errors import InputError
from training.storage.reading import MalformedFileError, built, parse_json


@dataclass
class _Saved:
    characters: str
    kind: Literal["characters"] = "characters"


class CharTokenizer:
    """Numbers the characters of a text in the order of their code points.

    Args:
        characters: The vocabulary; its first character has number 0.
    """

    def __init__(self, characters: str) -> None:
        self.characters = characters
        codes = np.frombuffer(characters.encode("utf-32-le"), dtype=np.uint32)
        self._ids = np.full(int(codes.max(initial=0)) + 1, -1, dtype=np.int32)
        self._ids[codes] = np.arange(len(codes), dtype=np.int32)

    @classmethod
    def from_text(cls, text: str) -> "CharTokenizer":
        """The vocabulary of a text."""
        return cls("".join(sorted(set(text))))

    def __len__(self) -> int:
        return len(self.characters)

    def encode(
        self, text: str, name: str = "the text", way_on: str = "leave out what is unknown", *, skip: bool = False
    ) -> NDArray[np.int32]:
        """The numbers of a text's characters.

        Args:
            text: Any text.
            name: What to call it in an error.
            way_on: What to do about that error.
            skip: Leave out characters that are not in the vocabulary.

        Raises:
            InputError: Some are not; the message shows all of them, how often they come, and where the first stands.
        """
        codes = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
        known = codes < len(self._ids)
        ids = np.where(known, self._ids[np.where(known, codes, 0)], -1).astype(np.int32)
        unknown = np.flatnonzero(ids < 0)
        if skip:
            return ids[ids >= 0]
        if len(unknown):
            place = int(unknown[0])
            character, line = text[place], text.count("\n", 0, place) + 1
            column = place - (text.rfind("\n", 0, place) + 1) + 1
            counts = Counter(text[i] for i in unknown.tolist())
            every = ", ".join(f"{_shown(character)} {count:,}" for character, count in counts.most_common())
            raise InputError(
                f"unknown character {_shown(character)} (U+{ord(character):04X}) at line {line}, column {column} of "
                f"{name}: it does not occur in the training text"
                f"{f' (all that do not, with their number: {every})' if len(unknown) > 1 else ''}; {way_on}"
            )
        return ids

    def encode_prompt(self, prompt: str) -> list[int]:
        """The numbers of a text to continue, whose line ends become those of the vocabulary.

        Raises:
            InputError: It has unknown characters; see `encode`.
        """
        if "\r" not in self.characters:
            prompt = prompt.replace("\r\n", "\n").replace("\r", "\n")
        return self.encode(prompt, "the prompt").tolist()

    def decode(self, ids: list[int]) -> str:
        """The text of a list of numbers."""
        return "".join(self.characters[i] for i in ids)

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


def _shown(character: str) -> str:
    return repr(character) if character.isprintable() else ascii(character)
