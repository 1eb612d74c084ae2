"""Documents of files, and of rows of a table, of any size: read when they are asked for, one piece after the other."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from data.config import OnBadRow
from data.listing import listed
from data.sources.arrow_rows import ArrowRows
from data.sources.documents import CHUNK, Chunk, chunks
from data.sources.encodings import opened
from data.sources.files import FoundFile
from data.sources.row_streams import is_row_file, stream_rows
from data.sources.rows import Row, check_whole
from training.runtime.errors import InputError

VERSION = 1
"""Of the way from files to documents: a change makes their fingerprints other ones."""
MAX_LISTED = 20


class RowOptions(NamedTuple):
    """How rows become documents.

    Attributes:
        column: Which holds the text.
        on_bad_row: What a row without such a column, or with something else than text in it, does.
        end_lines: Whether a text that does not end in a line break gets one.
    """

    column: str
    on_bad_row: OnBadRow
    end_lines: bool

    def documents(self, rows: Iterable[tuple[str, Row]]) -> Iterator[Chunk]:
        """The texts of rows; those without one (null) are skipped.

        Raises:
            InputError: A row is bad, and is not to be skipped.
        """
        for location, row in rows:
            try:
                text = text_of(row, self.column)
            except ValueError as error:
                if self.on_bad_row == "skip":
                    continue
                raise InputError(f"{location}: {error} (--data.on_bad_row skip leaves such rows out)") from error
            if text is not None and (text or self.end_lines):
                end = "\n" if self.end_lines and not text.endswith("\n") else ""
                yield from chunks([text, end])

    def left_out(self, rows: Iterable[tuple[str, Row]]) -> tuple[str, ...]:
        """How many rows are bad, and the first of them, as a note, if there are any to skip."""
        if self.on_bad_row != "skip":
            return ()
        shown, count = list[str](), 0
        for location, row in rows:
            try:
                text_of(row, self.column)
            except ValueError as error:
                count += 1
                shown += [f"{location} ({error})"] * (count <= MAX_LISTED)
        more = f" and {count - MAX_LISTED:,} more" if count > MAX_LISTED else ""
        return (f"{count:,} row{'s' * (count > 1)} left out: {', '.join(shown)}{more}",) if count else ()


@dataclass(frozen=True)
class FileDocuments:
    """Each text file is a document, and each row of the others."""

    files: tuple[FoundFile, ...]
    options: RowOptions

    def __iter__(self) -> Iterator[Chunk]:
        for file in self.files:
            if is_row_file(file.path):
                yield from self.options.documents(stream_rows(file.path, [self.options.column]))
            else:
                yield from chunks(_pieces(file))

    def rows(self) -> Iterator[tuple[str, Row]]:
        """The rows of all files that have some."""
        for file in self.files:
            if is_row_file(file.path):
                yield from stream_rows(file.path, [self.options.column])

    def fingerprint(self) -> str:
        """Of the files' names, sizes, times and inodes, and of how they are read.

        Raises:
            InputError: One of them is gone.
        """
        digest = hashlib.sha256(json.dumps([VERSION, *self.options]).encode())
        for path, encoding in self.files:
            try:
                now = os.stat(path)
            except OSError as error:
                raise InputError(f"cannot read {path}: {error.strerror}") from error
            about = now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino
            digest.update(json.dumps([os.path.abspath(path), encoding.codec, encoding.mark, *about]).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class HubDocuments:
    """Each row of a split of a data set of the hub is a document; `location` names the split, `version` its content."""

    content: ArrowRows
    location: str
    version: str
    options: RowOptions

    def __iter__(self) -> Iterator[Chunk]:
        return self.options.documents(self.rows())

    def rows(self) -> Iterator[tuple[str, Row]]:
        """All rows, each with its place, by numbers from 0 on, as the hub shows them."""
        for number, (text,) in enumerate(self.content):
            yield f"{self.location}, row {number}", {self.options.column: text}

    def fingerprint(self) -> str:
        """Of the commit and the split, and of how its rows are read."""
        about = [VERSION, self.location, self.version, *self.options]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def _pieces(file: FoundFile) -> Iterator[str]:
    with opened(*file) as text:
        while piece := text.read(CHUNK):
            yield piece


def text_of(row: Row, column: str, option: str = "column") -> str | None:
    """The text of a row, None where it is null; a `ValueError` says in words why there is none."""
    if isinstance(row, str):
        raise ValueError(row)
    if column not in row:
        if any(value is None and column.startswith(f"{name}.") for name, value in row.items()):
            return None
        names = listed([*row], MAX_LISTED) or "there is none"
        raise ValueError(f"no column {column}: choose one with --data.{option} ({names})")
    value = row[column]
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"column {column} must hold text, got {type(value).__name__}")
    check_whole(value, column)
    return value
