"""The text of single tokens, which need not be whole characters."""

import codecs
from typing import Protocol


class TokenBytes(Protocol):
    """What tokens stand for."""

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token; none for the end of a text."""


class TokenText:
    """The text of tokens one after the other: the bytes of a character are held back until it is whole.

    Bytes that can become none show as U+FFFD. What is still held back when the tokens end is never shown.
    """

    def __init__(self, tokenizer: TokenBytes) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """What can be read now that could not before."""
        return self._decoder.decode(self._tokenizer.token_bytes(token))


def shown_token(tokenizer: TokenBytes, token: int) -> str:
    r"""A token for people to read: a part of a character as \xe2, the end of a text by its usual name."""
    return tokenizer.token_bytes(token).decode(errors="backslashreplace") or "<|endoftext|>"
