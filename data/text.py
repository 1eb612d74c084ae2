"""Text for the GPT: where it comes from, and the split. No torch: `data/windows.py` makes batches of it.

`python -m data.text --output FILE` writes the text of a source.
"""

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from data.config import TINY_SHAKESPEARE, TextConfig
from data.documents import Chained, Documents, InMemory, joined
from data.files import read_sources
from data.hub import PARQUET_REVISION, SPLITS, Request, load_hub_rows
from data.mix import parse_mix
from data.plays import SHA256, PlaysError, build_text
from training.config.command_line import StrictParser
from training.runtime.errors import InputError, exit_code
from training.runtime.packages import needed_package


class Source(NamedTuple):
    """Documents, where they came from, for people to read, and those to validate on where there are some for it.

    `notes` say what was done to read them; `parts` are the sources of a mix, by name, whose documents these are.
    """

    documents: Documents
    origin: str
    validation: Documents | None = None
    notes: tuple[str, ...] = ()
    parts: Mapping[str, "Source"] = MappingProxyType({})

    @classmethod
    def of_text(cls, text: str, origin: str, validation: str | None = None) -> "Source":
        """A text that is there, and the one to validate on, if it is another."""
        return cls(InMemory([text]), origin, None if validation is None else InMemory([validation]))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def load_source(data: TextConfig) -> Source:
    """Load the text that the configuration names; see `TextConfig`, and for the hub `data.hub.load_hub_rows`.

    Raises:
        InputError: There is no such text, or it is empty or cannot be read; the message says what to do.
    """
    if data.mix is not None:
        return _mix(data)
    if data.source == "auto":
        source = _plays_or_hub(data)
    elif data.hub_name:
        source = _hub(data.hub_name, data)
    else:
        texts, origin, notes = read_sources(data.source)
        source = Source(InMemory(_through_datasets(texts)), origin, notes=notes)
    if not any(chunk.text for chunk in source.documents):
        raise InputError(f"{source.origin} holds no text: choose another --data.source")
    return source


def _mix(data: TextConfig) -> Source:
    parts = {name: load_source(part) for name, part in data.parts.items()}
    counts = parse_mix(data.mix or "")
    shares = ", ".join(f"{count / sum(counts.values()):.4g} of {name}" for name, count in counts.items())
    own = [part.validation for part in parts.values() if part.validation is not None]
    documents = Chained([part.documents for part in parts.values()])
    return Source(documents, f"a mix, {shares}", Chained(own) if own else None, parts=parts)


def _plays_or_hub(data: TextConfig) -> Source:
    try:
        return Source(InMemory(_through_datasets([build_text()])), "Tiny Shakespeare, from the packaged plays")
    except PlaysError as missing:
        try:
            return _hub(TINY_SHAKESPEARE, data)
        except InputError as error:
            raise InputError(f"no Tiny Shakespeare: {missing} (nor from the hub: {error})") from error


def _hub(name: str, data: TextConfig) -> Source:
    """A data set of the Hugging Face hub: its training text, and the one to validate on where it has one.

    Rows without text (null) are skipped, and a row that does not end in a line break gets one. Tiny Shakespeare's three
    splits, joined as they are, are the text as published.
    """
    tiny = name == TINY_SHAKESPEARE
    revision = data.revision or (PARQUET_REVISION if tiny else None)
    found = load_hub_rows(Request(name, {"data.column": data.column}, revision, data.subset, any_revision=tiny))
    rows = {split: [text for (text,) in texts if text is not None] for split, texts in found.splits.items()}
    if not tiny:
        held_out = next((split for split in ("validation", "test") if split in rows), None)
        validation = InMemory(_lines(rows[held_out])) if held_out else None
        return Source(InMemory(_lines(rows["train"])), f"{name}, from the hub (commit {found.commit[:7]})", validation)
    text = "".join("".join(rows.get(split, [])) for split in SPLITS)
    if _sha256(text) != SHA256:
        raise InputError(f"{name} at {revision} has SHA-256 {_sha256(text)}, expected {SHA256}; use --data.source auto")
    return Source.of_text(text, f"Tiny Shakespeare, from the hub ({name})")


def _lines(rows: list[str]) -> list[str]:
    return [row if row.endswith("\n") else row + "\n" for row in rows]


def _through_datasets(texts: list[str]) -> list[str]:
    """The rows of a `datasets.Dataset`."""
    datasets = needed_package("datasets", "reading text")
    return list(datasets.Dataset.from_dict({"text": texts})["text"])


def main() -> None:
    """Write the text of a source to a file, and say what it is; a validation text of its own comes last."""
    parser = StrictParser(prog="python -m data.text", description="Write the text of a source to a file.")
    parser.add_class_arguments(TextConfig, skip={"unknown"})
    parser.add_argument("--output", type=str, required=True, help="where to write the text")
    arguments = parser.parse_args()
    names = [field.name for field in fields(TextConfig) if field.name in arguments]
    source = load_source(TextConfig(**{name: arguments[name] for name in names}))
    validation = None if source.validation is None else joined(source.validation)
    text = joined(source.documents) + (validation or "")
    content = text.encode()
    try:
        Path(arguments.output).write_bytes(content)
    except OSError as error:
        raise InputError(f"cannot write {arguments.output}: {error.strerror}") from error
    print(f"source      {source.origin}")
    for note in source.notes:
        print(f"note        {note}")
    print(f"bytes       {len(content):,}")
    print(f"characters  {len(text):,}, {len(set(text)):,} different ones")
    if validation is not None:
        print(f"validation  {len(validation):,} characters, the last ones")
    print(f"sha256      {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
