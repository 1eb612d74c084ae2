"""Rows of a file: JSON lines, an array of JSON objects, or separated values (CSV, TSV) in the dialect that they have.

csv.Sniffer guesses the separator from the line that names the columns, where no text misleads it; only without such a
line, from the first lines. It knows no escapes: how quotes are meant, the number of rows that do not fit decides.
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from statistics import mode
from textwrap import shorten
from typing import Any

from data.sources.encodings import read_text
from training.runtime.errors import InputError

SEPARATORS = {"\t": "tabs", ";": "semicolons", "|": "bars", ",": "commas"}
"""Of those that fit alike, the one that texts have least comes first."""
SAID = {"skipinitialspace": "without the space after it", "escapechar": '\\" for a quote', "quoting": "quotes as text"}
SAMPLE_LINES, SAMPLE = 100, 2**14
"""What csv.Sniffer looks at, in lines and in characters: its time grows with their square."""
LONGEST_FIELD = 2**31 - 1
NAME = re.compile(r"[^\W\d](?:[\w .:/-]{,40}\w)?")
"""What the name of a column looks like: no sentence with its full stop, and no number."""

Row = dict[str, Any] | str
"""The values of a row by their columns, or what is wrong with it."""
Fields = list[str] | str
"""The fields of a row, or what is wrong with it."""
Dialect = dict[str, Any]
"""Arguments of csv.reader."""


def read_rows(path: Path, columns: tuple[str, str], *, chosen: bool) -> tuple[list[tuple[str, Row]], list[str]]:
    """Read a file that ends in .jsonl, .json, .csv or .tsv, in capitals or not.

    Args:
        path: The file.
        columns: Those that are asked for: names, or, for a table without a line of names, numbers from 1 on.
        chosen: Whether somebody chose them: if not, the two columns of a table without names are taken for them.

    Returns:
        The rows, each with its place, and what was guessed to read them, in words.

    Raises:
        InputError: The file is no text, or its table lacks a column.
    """
    text, note = read_text(path)
    guesses = [note] if note else []
    suffix = path.suffix.lower()
    if suffix == ".json" and text.lstrip().startswith("["):
        return list(_array(path, text)), guesses
    lines = list(io.StringIO(text, newline=""))  # The csv module reads line ends itself.
    if suffix in (".csv", ".tsv"):
        numbered, more = _table(path, lines, columns, chosen=chosen)
        guesses += more
    else:
        numbered = [(number, json_object(line)) for number, line in enumerate(lines, start=1) if line.strip()]
    return [(f"{path}, line {number}", row) for number, row in numbered], guesses


def _array(path: Path, text: str) -> Iterator[tuple[str, Row]]:
    try:
        values = _parse(text)
    except (ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(f"{path}{line}: expected an array of JSON objects ({_reason(error)})") from error
    for number, value in enumerate(values, start=1):
        yield f"{path}, row {number}", flat_columns(value)


def json_object(line: str) -> Row:
    """The row of a JSON line, or what is wrong with it."""
    try:
        value = _parse(line)
    except (ValueError, RecursionError) as error:
        return f"expected a JSON object, got none ({_reason(error)})"
    return flat_columns(value)


def _parse(text: str) -> Any:
    """A value of JSON, its numbers as they are written; NaN is null."""
    return json.loads(text, parse_int=str, parse_float=str, parse_constant=lambda _: None)


def _reason(error: Exception) -> str:
    return getattr(error, "msg", "nested too deep")


def check_whole(text: str, column: str) -> None:
    """Raise a `ValueError` where the text of a column holds half of a character of UTF-16, which has no bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"column {column} holds half of a surrogate pair, which is no character") from None


def flat_columns(value: Any) -> Row:
    """The values of an object; of {"translation": {"en": "…"}} the column is translation.en."""
    if not isinstance(value, dict):
        return f"expected a JSON object, got {type(value).__name__}"
    try:
        return dict(_leaves(value))
    except RecursionError as error:
        return f"expected a JSON object, got none ({_reason(error)})"


def _leaves(value: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from ((f"{name}.{below}", leaf) for below, leaf in _leaves(inner))
        else:
            yield name, inner


def _table(
    path: Path, lines: Sequence[str], columns: tuple[str, str], *, chosen: bool
) -> tuple[list[tuple[int, Row]], list[str]]:
    """The rows below the line of names, each with the line that it begins at, and what was guessed."""
    mark = re.fullmatch(r'"?sep=([^"])"?\s*', lines[0])  # Spreadsheets read such a line, and some write it.
    begin = next((number for number in range(bool(mark), len(lines)) if lines[number].strip()), None)
    if begin is None:
        return [], []
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    dialect, head = _find_dialect(lines, begin, columns, mark[1] if mark else usual, fixed=mark is not None)
    rows = list(_fields(lines, begin, dialect))
    headed, guesses = set(columns) <= set(head), []
    width = len(head) if headed else mode([len(fields) for _, fields in rows if isinstance(fields, list)] or [0])
    names: Sequence[str] = head if headed else [str(number) for number in range(1, width + 1)]
    if not headed and not set(columns) <= set(names):
        if chosen or width != len(columns) or _look_like_names(head):
            lacking = next(name for name in columns if name not in {*head, *names})
            raise InputError(
                f"{path}, line {begin + 1}: no column {lacking}: choose "
                f"data.source_column and data.target_column ({shorten(', '.join(head), 200)}), or, where this line "
                f"is a pair itself, numbers: --data.source_column 1 --data.target_column 2"
            )
        names = columns
    if twice := next((name for name in columns if headed and head.count(name) > 1), None):
        raise InputError(f"{path}, line {begin + 1}: two columns of the name {twice}: call one otherwise")
    needed = 1 + max(map(names.index, columns))
    dialect, rows = _find_quotes(lines, begin, dialect, rows, width, needed)
    if dialect["delimiter"] != usual:
        guesses.append(f"separated by {SEPARATORS.get(dialect['delimiter'], repr(dialect['delimiter']))}")
    guesses += [said for option, said in SAID.items() if dialect.get(option)]
    if not headed:
        numbers = [names.index(column) + 1 for column in columns]
        guesses.append("no header: column {} is the source, column {} the target".format(*numbers))
    return [(number, _named(fields, names)) for number, fields in rows[headed:]], guesses


def _find_dialect(
    lines: Sequence[str], begin: int, columns: tuple[str, str], separator: str, *, fixed: bool
) -> tuple[Dialect, list[str]]:
    """The first of the usual and the guessed dialects in which the first row names the columns, and that row.

    If there is none, the first in which it could be names, else what the first lines look like.
    """
    allowed = separator if fixed else "".join(SEPARATORS)
    dialects: list[Dialect] = [{"delimiter": separator}]
    sniffer = csv.Sniffer()
    sniffer.preferred = list(SEPARATORS)
    for sample in (lines[begin], "".join(lines[begin : begin + SAMPLE_LINES])[:SAMPLE]):
        try:
            found = sniffer.sniff(sample, allowed)
        except csv.Error:
            continue
        spaced = found.skipinitialspace and found.delimiter != "\t"
        dialects.append({"delimiter": found.delimiter, "skipinitialspace": bool(spaced)})
    options = []
    for dialect in dialects:
        _, fields = next(_fields(lines, begin, dialect))
        head = [] if isinstance(fields, str) else fields
        is_guess = "skipinitialspace" in dialect
        options.append((dialect, [name.strip() for name in head] if is_guess else head))
    for fits in (set(columns).issubset, _look_like_names):
        for dialect, head in options:
            if fits(head):
                return dialect, head
    return options[0 if fixed or separator == "\t" else -1]


def _look_like_names(head: Sequence[str]) -> bool:
    return len(head) > 1 and all(map(NAME.fullmatch, head))


def _find_quotes(
    lines: Sequence[str], begin: int, dialect: Dialect, rows: list[tuple[int, Fields]], width: int, needed: int
) -> tuple[Dialect, list[tuple[int, Fields]]]:
    """The dialect and its rows, or where that has rows that do not fit, those of the dialect that has the fewest."""

    def misfits(option: tuple[Dialect, list[tuple[int, Fields]]]) -> int:
        return sum(isinstance(fields, str) or not needed <= len(fields) <= width for _, fields in option[1])

    options = [(dialect, rows)]
    if misfits(options[0]) == 0:
        return options[0]
    others: list[Dialect] = []
    if any('\\"' in line for line in lines):
        others.append(dialect | {"escapechar": "\\"})
    if dialect["delimiter"] == "\t" and '"' not in lines[begin]:
        others.append(dialect | {"quoting": csv.QUOTE_NONE})
    options += [(other, list(_fields(lines, begin, other))) for other in others]
    return min(options, key=misfits)


def _fields(lines: Sequence[str], begin: int, dialect: Dialect) -> Iterator[tuple[int, Fields]]:
    """The rows from a line on that are not empty; where one is no row, the next begins a line below its first one."""
    csv.field_size_limit(LONGEST_FIELD)
    while begin < len(lines):
        first = begin
        reader = csv.reader(map(lines.__getitem__, range(first, len(lines))), strict=True, **dialect)
        try:
            for fields in reader:
                if fields:
                    yield begin + 1, fields
                begin = first + reader.line_num
        except csv.Error as error:
            yield begin + 1, str(error)
            begin += 1


def _named(fields: Fields, names: Sequence[str]) -> Row:
    if isinstance(fields, str):
        return fields
    if len(fields) > len(names):
        return f"expected {len(names)} fields, got more"
    return dict(zip_longest(names, fields))
