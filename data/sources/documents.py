"""Texts of any size, read piece by piece."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, Protocol

CHUNK = 2**20
"""Characters of a piece of a document at most."""


class Chunk(NamedTuple):
    """A piece of a document, and whether the document ends with it."""

    text: str
    last: bool


class Documents(Protocol):
    """Texts one after the other, from the first on each time that they are asked for; nothing is held in memory."""

    def __iter__(self) -> Iterator[Chunk]: ...

    def fingerprint(self) -> str | None:
        """What changes when the documents do, known without reading them; None where nothing is."""


@dataclass(frozen=True)
class InMemory:
    """Documents of texts that are there."""

    texts: Sequence[str]

    def __iter__(self) -> Iterator[Chunk]:
        return (chunk for text in self.texts for chunk in chunks([text]))

    def fingerprint(self) -> None:
        """None: whoever has them in memory can read them."""


@dataclass(frozen=True)
class Chained:
    """Documents of several origins, one after the other."""

    parts: Sequence[Documents]

    def __iter__(self) -> Iterator[Chunk]:
        return chain.from_iterable(self.parts)

    def fingerprint(self) -> str | None:
        """Of all of them, where each has one."""
        found = [part.fingerprint() for part in self.parts]
        return None if None in found else repr(found)


def joined(documents: Documents) -> str:
    """All documents as one text."""
    return "".join(chunk.text for chunk in documents)


def chunks(pieces: Iterable[str], size: int = CHUNK) -> Iterator[Chunk]:
    """A document, whatever the pieces that it comes in, in chunks of at most `size` characters.

    It is cut after a line break between two characters that are no white space, where the regular expressions of
    byte-level BPE split it anyway; where there is none, anywhere. The place depends on the document alone.
    """
    held = ""
    for piece in pieces:
        for start in range(0, len(piece), size):
            held += piece[start : start + size]
            while len(held) > size:
                cut = _last_line(held, size)
                yield Chunk(held[:cut], last=False)
                held = held[cut:]
    yield Chunk(held, last=True)


def _last_line(text: str, size: int) -> int:
    """Where to cut a text that is longer than `size`."""
    line_break = size
    while (line_break := text.rfind("\n", 1, line_break)) != -1:
        if not text[line_break - 1].isspace() and not text[line_break + 1].isspace():
            return line_break + 1
    return size
