"""What every tokenizer of text can do, and the one that a configuration or a checkpoint names."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data.characters import CharTokenizer


class Tokenizer(Protocol):
    """From text to tokens and back; `len` is the size of the vocabulary.

    Attributes:
        end_of_text: The token that ends a document; None for a vocabulary without.
    """

    end_of_text: int | None

    def __len__(self) -> int: ...

    def encode(self, text: str, name: str = ..., way_on: str = ..., *, skip: bool = False) -> NDArray[np.int32]:
        """The tokens of a text; see `CharTokenizer.encode`."""

    def encode_batch(self, texts: Sequence[str]) -> Sequence[NDArray[np.integer]]:
        """The tokens of each text, by all cores; all characters are known."""

    def encode_prompt(self, prompt: str) -> list[int]:
        """The tokens of a text to continue."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens; bytes that are no UTF-8 show as U+FFFD."""

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for, which need not be whole characters; none for the end of a text."""

    def to_json(self) -> str:
        """The content of tokenizer.json."""


def make_tokenizer(name: str, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer that `--data.tokenizer` names, learnt from training texts where it is one that is learnt."""
    assert name == "characters"
    return CharTokenizer.from_texts(texts)


def read_tokenizer(content: str, file: Path = Path("tokenizer.json")) -> Tokenizer:
    """The tokenizer of a tokenizer.json, ours or one in the format of the library `tokenizers`.

    Raises:
        MalformedFileError: It is none; the message names the file.
    """
    return CharTokenizer.from_json(content, file)
