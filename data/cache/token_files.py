"""Tokens as files: a folder with those of each split, as they lie in memory, and with what made them.

Tokens are 16 bits where they fit, else 32. They are mapped into memory and read where they are used: all processes of a
machine share what the system keeps of them, and a corpus may be larger than memory.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from json import dumps
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from data.split import Piece
from data.tokenizers.characters import UnknownCharacters
from data.tokenizers.tokenizer import Tokenizer
from training.runtime.progress import Reading
from training.runtime.threads import available_cores
from training.storage.files import write_synced
from training.storage.reading import FileError, built, read_json, read_text

Part = Literal["training", "validation"]
PARTS: tuple[Part, ...] = ("training", "validation")
ABOUT, TOKENIZER = "tokens.json", "tokenizer.json"
CHARACTERS_PER_CORE, MAX_CORES = 1 << 20, 8
"""How much text is made tokens at once. What a library holds meanwhile is some hundred bytes a token."""
MAX_TOKENIZER_BYTES = 1 << 30


@dataclass(frozen=True)
class Made:
    """What stands beside the tokens of a text.

    Attributes:
        dtype: Of the tokens.
        counts: How many there are of each split.
        num_bytes: How many bytes of UTF-8 they are made of.
        notes: What was done, for people to read.
    """

    dtype: Literal["uint16", "uint32"]
    counts: list[int]
    num_bytes: list[int]
    notes: list[str] = field(default_factory=list)

    def save(self, folder: Path, notes: Sequence[str]) -> None:
        """Write it, last of all."""
        write_synced(folder / ABOUT, dumps(asdict(self) | {"notes": list(notes)}).encode())


def read_made(folder: Path) -> Made:
    """What was saved, or a `FileError`."""
    made: Made = built(Made, read_json(folder / ABOUT), folder / ABOUT)
    return made


def read_tokenizer_json(folder: Path) -> str:
    """The content of tokenizer.json."""
    return read_text(folder / TOKENIZER, max_bytes=MAX_TOKENIZER_BYTES)


def is_whole(folder: Path) -> bool:
    """Whether a folder has all its files, in the sizes that they should have."""
    try:
        made = read_made(folder)
        sizes = [(folder / f"{part}.bin").stat().st_size for part in PARTS]
    except (FileError, OSError):
        return False
    return sizes == [np.dtype(made.dtype).itemsize * count for count in made.counts]


def tokens_of(folder: Path, made: Made, part: Part) -> tuple[NDArray[np.unsignedinteger], int]:
    """The tokens of a split, mapped into memory to be read, and of how many bytes they are made."""
    number = PARTS.index(part)
    if made.counts[number] == 0:  # Nothing cannot be mapped.
        return np.zeros(0, made.dtype), 0
    return np.memmap(folder / f"{part}.bin", made.dtype, mode="r"), made.num_bytes[number]


class _Writer:
    """A file that takes the tokens of a split."""

    def __init__(self, file: BinaryIO, dtype: str, end_of_text: int | None, unknown: UnknownCharacters) -> None:
        self.file, self.dtype, self.unknown = file, dtype, unknown
        self.end = np.zeros(0, dtype) if end_of_text is None else np.array([end_of_text], dtype)
        self.count = self.num_bytes = 0

    def write(self, tokens: Sequence[NDArray[np.integer]]) -> None:
        """Take the tokens of some texts."""
        if tokens:
            joined = np.concatenate(tokens).astype(self.dtype)
            self.file.write(joined.tobytes())
            self.count += len(joined)


def write_tokens(
    folder: Path,
    pieces: Iterable[Piece],
    tokenizer: Tokenizer,
    unknown: Sequence[UnknownCharacters],
    *,
    skip: bool,
    num_bytes: int,
) -> Made:
    """Write the tokens of both splits, with the end of text after each document that ends, and the tokenizer.

    Args:
        folder: Where to.
        pieces: The text.
        tokenizer: What makes tokens of it.
        unknown: For each split, what counts the characters that the tokenizer lacks.
        skip: Leave those out; without it there is nothing more to write once one has come.
        num_bytes: Of the text, for who waits.
    """
    dtype: Literal["uint16", "uint32"] = "uint16" if len(tokenizer) <= 1 << 16 else "uint32"
    with ExitStack() as files, Reading("tokenising", num_bytes) as progress:
        writers = [
            _Writer(files.enter_context((folder / f"{part}.bin").open("wb")), dtype, tokenizer.end_of_text, counts)
            for part, counts in zip(PARTS, unknown, strict=True)
        ]
        for batch in _ahead(_batches(pieces)):
            read = sum(len(piece.chunk.text.encode()) for piece in batch)
            _write_batch(batch, tokenizer, writers, skip=skip)
            progress.advance(read)
        for writer in writers:
            writer.file.flush()
            os.fsync(writer.file.fileno())
    write_synced(folder / TOKENIZER, tokenizer.to_json().encode())
    return Made(dtype, [writer.count for writer in writers], [writer.num_bytes for writer in writers])


def _write_batch(batch: Sequence[Piece], tokenizer: Tokenizer, writers: Sequence[_Writer], *, skip: bool) -> None:
    texts = [writers[piece.held_out].unknown.leave_out(piece.chunk.text) for piece in batch]
    if not skip and any(writer.unknown for writer in writers):
        return
    tokens: list[list[NDArray[np.integer]]] = [[] for _ in writers]
    for piece, text, encoded in zip(batch, texts, tokenizer.encode_batch(texts), strict=True):
        writer = writers[piece.held_out]
        writer.num_bytes += len(text.encode())
        tokens[piece.held_out] += [encoded, writer.end] if piece.chunk.last else [encoded]
    for writer, own in zip(writers, tokens, strict=True):
        writer.write(own)


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """As many pieces together as keep all cores busy."""
    size = CHARACTERS_PER_CORE * min(available_cores(), MAX_CORES)
    batch, characters = list[Piece](), 0
    for piece in pieces:
        if batch and characters + len(piece.chunk.text) > size:
            yield batch
            batch, characters = [], 0
        batch.append(piece)
        characters += len(piece.chunk.text)
    if batch:
        yield batch


def _ahead(batches: Iterator[list[Piece]]) -> Iterator[list[Piece]]:
    """The same, with the next one read by another thread meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(next, batches, None)
        while (batch := upcoming.result()) is not None:
            upcoming = pool.submit(next, batches, None)
            yield batch
