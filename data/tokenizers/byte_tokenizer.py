"""A tokenizer of the bytes of UTF-8."""

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.listing import shown_symbol
from training.runtime.errors import InputError

NUM_BYTES = 256


class ByteTokenizer:
    """Each byte is its own token, so that no text has anything unknown; one more token ends a text."""

    end_of_text: int | None = NUM_BYTES
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return NUM_BYTES + 1

    def encode(self, text: str, name: str = "the text", way_on: str = "", *, skip: bool = False) -> NDArray[np.int32]:
        """The bytes of a text; see `utf8`. There is nothing to skip."""
        return np.frombuffer(utf8(text, name), dtype=np.uint8).astype(np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """The tokens of each text; a copy of memory, which more cores would not make faster."""
        return [self.encode(text) for text in texts]

    def encode_prompt(self, prompt: str) -> list[int]:
        """The tokens of a text to continue."""
        return self.encode(prompt, "the prompt").tolist()

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens; bytes that are no UTF-8 show as U+FFFD."""
        return bytes(token for token in ids if token < NUM_BYTES).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """The byte; none for the end of a text."""
        return bytes([token]) if token < NUM_BYTES else b""

    def to_json(self) -> str:
        """The content of tokenizer.json."""
        return json.dumps({"kind": "bytes"})


def utf8(text: str, name: str = "the text") -> bytes:
    """The bytes of a text.

    Raises:
        InputError: It has a lone surrogate, the half of a character of UTF-16, which UTF-8 has no bytes for.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        half = shown_symbol(text[error.start])
        raise InputError(
            f"{name} has half a character, {half} at position {error.start + 1:,}: leave it out"
        ) from error
