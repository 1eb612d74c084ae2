"""Which part of a text is trained on, and which is validated on.

With many documents a hash of each one's content says it: the same document is never in both, whatever stands beside it.
Of fewer the last part of the whole is validated on.
"""

from collections.abc import Iterator
from fractions import Fraction
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from data.sources.documents import Chunk, Documents
from data.text import Source

MIN_DOCUMENTS = 1000
"""From so many on the split is by documents."""
HASH_BYTES = 8


class Piece(NamedTuple):
    """A chunk, and whether it is validated on."""

    chunk: Chunk
    held_out: bool


class DocumentHash:
    """Says of documents that come in pieces, one after the other, whether their hash holds them out, a bit for each."""

    def __init__(self, share: float) -> None:
        self._below, self._bits, self._hash = share * 2.0 ** (8 * HASH_BYTES), bytearray(), blake2b(digest_size=8)

    def add(self, content: bytes, *, last: bool) -> None:
        """A piece of a document in UTF-8, and whether it ends there."""
        self._hash.update(content)
        if last:
            self._bits.append(int.from_bytes(self._hash.digest(), "big") < self._below)
            self._hash = blake2b(digest_size=HASH_BYTES)

    def packed(self) -> bytes:
        """The bits."""
        return np.packbits(np.frombuffer(self._bits, np.uint8)).tobytes()


def position(characters: int, share: float) -> int:
    """How many of so many characters are trained on where the split is by position."""
    return int(characters * (1 - Fraction(repr(share))))


def pieces(source: Source, held_out: bytes | None, cut: int) -> Iterator[Piece]:
    """The whole text in order, each piece with its split.

    Args:
        source: The text; one to validate on of its own is all that is held out.
        held_out: The bits of a `DocumentHash`, where the split is by documents.
        cut: Where it is by position: how many characters are trained on.
    """
    if source.validation is not None:
        yield from (Piece(chunk, held_out=False) for chunk in source.documents)
        yield from (Piece(chunk, held_out=True) for chunk in source.validation)
    elif held_out is not None:
        yield from _by_documents(source.documents, held_out)
    else:
        yield from _by_position(source.documents, cut)


def _by_documents(documents: Documents, held_out: bytes) -> Iterator[Piece]:
    number = 0
    for chunk in documents:
        yield Piece(chunk, bool(held_out[number >> 3] & (0x80 >> (number & 7))))
        number += chunk.last


def _by_position(documents: Documents, left: int) -> Iterator[Piece]:
    """A document that the cut goes through ends in the second split alone."""
    for chunk in documents:
        length = len(chunk.text)
        if length <= left:
            yield Piece(chunk, held_out=False)
        elif left > 0:
            yield Piece(Chunk(chunk.text[:left], last=False), held_out=False)
            yield Piece(Chunk(chunk.text[left:], chunk.last), held_out=True)
        else:
            yield Piece(chunk, held_out=True)
        left = max(left - length, 0)
