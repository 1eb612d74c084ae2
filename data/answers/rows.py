"""Rows with a prompt and its answer, or with a conversation: where they are, and what of them a model is to write.

No torch: `data/answers/windows.py` makes batches of them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from data.config import TextConfig
from data.listing import listed
from data.sources.arrow_rows import ArrowRows
from data.sources.corpora import text_of
from data.sources.files import list_files, look_into
from data.sources.hub import Request, load_hub_rows
from data.sources.row_streams import is_row_file, stream_rows
from data.sources.rows import Row, check_whole
from data.tokenizers.chat import Chat, Message, Segment
from training.runtime.errors import InputError

MAX_LISTED = 20
HINT = "(--data.on_bad_row skip leaves such rows out)"


@dataclass(frozen=True)
class FileRows:
    """Rows of files, each with its place; read anew each time that they are asked for."""

    files: tuple[Path, ...]
    columns: tuple[str, ...]

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        for file in self.files:
            yield from stream_rows(file, self.columns)


@dataclass(frozen=True)
class SplitRows:
    """Rows of a split of a data set of the hub, by numbers from 0 on, as the hub shows them."""

    content: ArrowRows
    location: str

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        for number, values in enumerate(self.content):
            yield f"{self.location}, row {number}", dict(zip(self.content.columns, values, strict=True))


class FoundRows(NamedTuple):
    """Rows to train on, where they came from, and those to validate on where there are some for it."""

    training: Iterable[tuple[str, Row]]
    origin: str
    validation: Iterable[tuple[str, Row]] | None = None


def find_rows(data: TextConfig) -> FoundRows:
    """The rows that a configuration names.

    Raises:
        InputError: There are none, or a file has no rows.
    """
    columns = {f"data.{option}": column for option, column in data.answer_columns.items()}
    if data.hub_name:
        found = load_hub_rows(Request(data.hub_name, columns, data.revision, data.subset))
        splits = {name: SplitRows(rows, f"hub:{data.hub_name}, split {name}") for name, rows in found.splits.items()}
        validation = next((splits[name] for name in ("validation", "test") if name in splits), None)
        return FoundRows(splits["train"], f"{data.hub_name}, from the hub (commit {found.commit[:7]})", validation)
    files = look_into(list_files(data.source, data.include), data.source, data.include)
    others = [str(file.path) for file in files.files if not is_row_file(file.path)]
    if others:
        raise InputError(
            f"{next(iter(columns))} is for rows, and {others[0]} has none: name .jsonl and .parquet files alone, of a "
            f"folder with --data.include '*.jsonl'"
        )
    return FoundRows(FileRows(tuple(file.path for file in files.files), tuple(columns.values())), files.origin)


class Answered(NamedTuple):
    """What a row holds: its text in pieces, and what a user would give to be answered so: the first question."""

    segments: list[Segment]
    prompt: str


@dataclass
class LeftOut:
    """What is done about bad rows.

    Attributes:
        skip: Whether they are left out; else the first ends the run.
        rows: The first of those that were, each with the reason.
        count: How many they are.
    """

    skip: bool
    rows: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, location: str, reason: object) -> None:
        """A bad row.

        Raises:
            InputError: It ends the run.
        """
        if not self.skip:
            raise InputError(f"{location}: {reason} {HINT}")
        self.count += 1
        self.rows += [f"{location} ({reason})"] * (self.count <= MAX_LISTED)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of them."""
        more = f" and {self.count - MAX_LISTED:,} more" if self.count > MAX_LISTED else ""
        many = f"{self.count:,} row{'s' * (self.count > 1)} left out: {', '.join(self.rows)}{more}"
        return (many,) if self.count else ()


def answered(
    rows: Iterable[tuple[str, Row]], data: TextConfig, chat: Chat | None, left_out: LeftOut
) -> Iterator[tuple[str, Answered]]:
    """The rows that are good, each with its place.

    Args:
        rows: All of them.
        data: Says their columns.
        chat: How conversations are written.
        left_out: Takes those that are bad.
    """
    for location, row in rows:
        try:
            found = _conversation(row, data.messages_column, chat) if chat else _pair(row, data)
        except ValueError as error:
            left_out.add(location, error)
        else:
            yield location, found


def _pair(row: Row, data: TextConfig) -> Answered:
    texts = []
    for option, column in data.answer_columns.items():
        text = text_of(row, column, option)
        if not text:
            raise ValueError(f"column {column} is empty")
        texts.append(text)
    prompt, answer = texts
    return Answered([Segment(prompt, counts=False), Segment(answer, counts=True)], prompt)


def _conversation(row: Row, column: str | None, chat: Chat) -> Answered:
    assert column is not None
    if isinstance(row, str):
        raise ValueError(row)
    if column not in row:
        names = listed([*row], MAX_LISTED) or "there is none"
        raise ValueError(f"no column {column}: choose one with --data.messages_column ({names})")
    messages = _messages(row[column], column)
    segments = chat.segments(messages)
    if not segments:
        raise ValueError(f"column {column} has no message of the role assistant")
    return Answered(segments, next((m["content"] for m in messages if m["role"] == "user"), ""))


def _messages(value: Any, column: str) -> list[Message]:
    whole = isinstance(value, list) and all(isinstance(message, dict) for message in value)
    if not whole or not value:
        raise ValueError(f"column {column} must hold a list of messages, got {type(value).__name__}")
    for message in value:
        for name in ("role", "content"):
            if not isinstance(message.get(name), str):
                raise ValueError(f"column {column} has a message without text as its {name}")
            check_whole(message[name], column)
        if message["role"] == "assistant" and not message["content"].strip():
            raise ValueError(f"column {column} has an empty answer")
    return value
