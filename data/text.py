"""Text for the GPT: where it comes from, and the split. No torch: `data/batches/windows.py` makes batches of it.

`python -m data.text --output FILE` writes the text of a source.
"""

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from data.answers.rows import FoundRows, find_rows
from data.cache.remembered import remembered
from data.config import ANSWER_COLUMNS, TINY_SHAKESPEARE, TextConfig
from data.mix import parse_mix
from data.sources.corpora import FileDocuments, HubDocuments, RowOptions
from data.sources.documents import Chained, Documents, InMemory
from data.sources.files import Found, ListedFile, list_files, look_into
from data.sources.hub import PARQUET_REVISION, SPLITS, HubRows, Request, load_hub_rows
from data.sources.plays import SHA256, PlaysError, build_comedies, build_text
from data.sources.row_streams import is_row_file
from training.config.command_line import StrictParser
from training.runtime.errors import InputError, exit_code
from training.runtime.packages import needed_package


class Source(NamedTuple):
    """Documents, where they came from, for people to read, and those to validate on where there are some for it.

    `notes` say what was done to read them; `parts` are the sources of a mix, by name, whose documents these are. Of
    rows with answers `documents` has none, and `rows` says where they are.
    """

    documents: Documents
    origin: str
    validation: Documents | None = None
    notes: tuple[str, ...] = ()
    parts: Mapping[str, "Source"] = MappingProxyType({})
    rows: FoundRows | None = None

    @classmethod
    def of_text(cls, text: str, origin: str, validation: str | None = None) -> "Source":
        """A text that is there, and the one to validate on, if it is another."""
        return cls(InMemory([text]), origin, None if validation is None else InMemory([validation]))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def load_source(data: TextConfig) -> Source:
    """Load the text that the configuration names; see `TextConfig`, and for the hub `data.sources.hub.load_hub_rows`.

    Raises:
        InputError: There is no such text, or it is empty or cannot be read; the message says what to do.
    """
    if data.mix is not None:
        return _mix(data)
    if data.answer_columns:
        rows = find_rows(data)
        return Source(InMemory([]), rows.origin, rows=rows)
    if data.source == "auto":
        source = _plays_or_hub(data)
    elif data.source == "comedies":
        source = Source(InMemory([build_comedies()]), "Shakespeare's comedies, from the packaged plays")
    elif data.hub_name:
        source = _hub(data.hub_name, data)
    else:
        source = _files(data)
    if not any(chunk.text for chunk in source.documents):
        raise InputError(f"{source.origin} holds no text: choose another --data.source")
    return source


def _mix(data: TextConfig) -> Source:
    parts = {name: load_source(part) for name, part in data.parts.items()}
    counts = parse_mix(data.mix or "")
    shares = ", ".join(f"{count / sum(counts.values()):.4g} of {name}" for name, count in counts.items())
    own = [part.validation for part in parts.values() if part.validation is not None]
    documents = Chained([part.documents for part in parts.values()])
    notes = tuple(f"{name}: {note}" for name, part in parts.items() for note in part.notes)
    return Source(documents, f"a mix, {shares}", Chained(own) if own else None, notes, parts)


def _files(data: TextConfig) -> Source:
    """Files, which one process of each machine looks through."""
    from training.runtime.processes import once_per_machine

    options = _row_options(data)

    def look(files: list[ListedFile]) -> Found:
        found = look_into(files, data.source, data.include)
        left_out = options.left_out(FileDocuments(found.files, options).rows())
        return found._replace(notes=(*found.notes, *left_out))

    def find() -> Found:
        files = list_files(data.source, data.include)
        return remembered(files, (data.source, data.include, data.column, data.on_bad_row), partial(look, files))

    found = once_per_machine(find)
    if data.column != TextConfig.column and not any(is_row_file(file.path) for file in found.files):
        raise InputError(f"data.column is for rows, and {found.origin} has none: no .jsonl or .parquet file")
    return Source(FileDocuments(found.files, options), found.origin, notes=found.notes)


def _row_options(data: TextConfig) -> RowOptions:
    """How rows become documents; of characters alone they end lines, as no token ends a document."""
    return RowOptions(data.column, data.on_bad_row, data.tokenizer == "characters")


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

    Tiny Shakespeare's three splits, joined as they are, are the text as published.
    """
    tiny = name == TINY_SHAKESPEARE
    revision = data.revision or (PARQUET_REVISION if tiny else None)
    found = load_hub_rows(Request(name, {"data.column": data.column}, revision, data.subset, any_revision=tiny))
    if not tiny:
        return _rows_of_hub(name, found, data)
    text = "".join(
        text for split in SPLITS if split in found.splits for (text,) in found.splits[split] if isinstance(text, str)
    )
    if _sha256(text) != SHA256:
        raise InputError(f"{name} at {revision} has SHA-256 {_sha256(text)}, expected {SHA256}; use --data.source auto")
    return Source.of_text(text, f"Tiny Shakespeare, from the hub ({name})")


def _rows_of_hub(name: str, found: HubRows, data: TextConfig) -> Source:
    version = f"{found.commit} {data.subset}"
    splits = {
        split: HubDocuments(rows, f"hub:{name}, split {split}", version, _row_options(data))
        for split, rows in found.splits.items()
    }
    validation = next((splits[split] for split in ("validation", "test") if split in splits), None)
    read = [splits["train"], *([] if validation is None else [validation])]
    notes = tuple(note for split in read for note in split.options.left_out(split.rows()))
    return Source(splits["train"], f"{name}, from the hub (commit {found.commit[:7]})", validation, notes)


def _through_datasets(texts: list[str]) -> list[str]:
    """The rows of a `datasets.Dataset`."""
    datasets = needed_package("datasets", "reading text")
    return list(datasets.Dataset.from_dict({"text": texts})["text"])


def main() -> None:
    """Write the text of a source to a file, and say what it is; a validation text of its own comes last."""
    parser = StrictParser(prog="python -m data.text", description="Write the text of a source to a file.")
    parser.add_class_arguments(TextConfig, skip={"unknown", "packing", *ANSWER_COLUMNS})
    parser.add_argument("--output", type=str, required=True, help="where to write the text")
    arguments = parser.parse_args()
    names = [field.name for field in fields(TextConfig) if field.name in arguments]
    source = load_source(TextConfig(**{name: arguments[name] for name in names}))
    try:
        written = _write(source, Path(arguments.output))
    except OSError as error:
        raise InputError(f"cannot write {arguments.output}: {error.strerror}") from error
    print(f"source      {source.origin}")
    for note in source.notes:
        print(f"note        {note}")
    print(f"bytes       {written.size:,}")
    print(f"characters  {written.length:,}, {written.different:,} different ones")
    if source.validation is not None:
        print(f"validation  {written.validation:,} characters, the last ones")
    print(f"sha256      {written.sha256}")


class _Written(NamedTuple):
    size: int
    length: int
    different: int
    validation: int
    sha256: str


def _write(source: Source, path: Path) -> _Written:
    """Write a text, and then the one to validate on, if there is one."""
    # Beside its place: the file may be one of those that are read.
    beside = path if path.exists() and not path.is_file() else path.with_name(f".{path.name}.new")
    digest, size, length, validation, characters = hashlib.sha256(), 0, 0, 0, set[str]()
    try:
        with beside.open("wb") as file:
            for documents in (source.documents, source.validation or InMemory([])):
                for text, _ in documents:
                    content = text.encode()
                    file.write(content)
                    digest.update(content)
                    characters.update(text)
                    size, length = size + len(content), length + len(text)
                    validation += len(text) * (documents is source.validation)
        if beside != path:
            beside.replace(path)
    finally:
        if beside != path:  # What a bad row, or a full disk, has cut short.
            beside.unlink(missing_ok=True)
    return _Written(size, length, len(characters), validation, digest.hexdigest())


if __name__ == "__main__":
    sys.exit(exit_code(main))
