"""Texts of any size, read piece by piece."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, Protocol


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
        return (Chunk(text, last=True) for text in self.texts)

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
        return None if None in found else hashlib.sha256(repr(found).encode()).hexdigest()


def joined(documents: Documents) -> str:
    """All documents as one text."""
    return "".join(chunk.text for chunk in documents)
