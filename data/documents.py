"""Texts of any size, read piece by piece."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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


def joined(documents: Documents) -> str:
    """All documents as one text."""
    return "".join(chunk.text for chunk in documents)
