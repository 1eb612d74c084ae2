"""Rows of files of any size, one after the other: JSON lines, and Parquet."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data.listing import listed
from data.sources.encodings import find_encoding, opened
from data.sources.rows import Row, flat_columns, json_object
from training.runtime.errors import InputError
from training.runtime.packages import needed_package

if TYPE_CHECKING:
    from pyarrow import RecordBatch
    from pyarrow.parquet import ParquetFile

ROW_FILES = (".jsonl", ".parquet")
MAX_LINE = 2**26
"""Characters of the longest row of JSON: a file that is one line, an array, say, is not held as a whole."""
BATCH_ROWS, BATCH_BYTES = 1024, 2**22
"""What is held of a Parquet file: so many rows, or so many bytes of them where rows are of usual size."""
BUFFER = 2**20
MAX_NAMES = 20


def is_row_file(path: Path) -> bool:
    """Whether a file holds rows, by the end of its name, in capitals or not."""
    return path.suffix.lower() in ROW_FILES


def stream_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """The rows of a .jsonl or .parquet file, each with its place: file and line, or file and row from 1 on.

    A row is its values by column, nested ones as in `translation.en`, or what is wrong with it. Of a Parquet file only
    the columns that are asked for are read.

    Raises:
        InputError: The file cannot be read, is no such file, or has, if Parquet, no such column.
    """
    return _parquet(path, columns) if path.suffix.lower() == ".parquet" else _json_lines(path)


def _json_lines(path: Path) -> Iterator[tuple[str, Row]]:
    number = 0
    with opened(path, find_encoding(path)) as file:
        while line := file.readline(MAX_LINE + len("\r\n")):
            number += 1
            too_long = len(line.rstrip("\r\n")) > MAX_LINE
            while too_long and line and line[-1] not in "\r\n":  # The rest is not held either.
                line = file.readline(BUFFER)
            if too_long:
                yield f"{path}, line {number}", f"expected a JSON object of at most {MAX_LINE:,} characters, got more"
            elif line.strip():
                yield f"{path}, line {number}", json_object(line)


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Row]]:
    parquet, arrow = needed_package("pyarrow.parquet", str(path)), needed_package("pyarrow", str(path))
    number = 0
    try:
        # Without these two a row group is read as a whole, and it may be the whole file.
        with parquet.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as file:
            _check_columns(path, file, columns)
            size = sum(file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups))
            rows = min(BATCH_ROWS, max(1, BATCH_BYTES * file.metadata.num_rows // max(size, 1)))
            for batch in file.iter_batches(rows, columns=list(columns), use_threads=False):
                for index in range(len(batch)):
                    number += 1
                    yield f"{path}, row {number}", _row(batch, index)
    except arrow.ArrowException as error:
        raise InputError(f"{path} is no Parquet file, or a damaged one ({str(error).splitlines()[0]})") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _check_columns(path: Path, file: "ParquetFile", columns: Sequence[str]) -> None:
    names = [file.schema.column(number).path for number in range(len(file.schema))]
    for column in columns:
        if not any(f"{name}.".startswith(f"{column}.") for name in names):
            raise InputError(f"{path} has no column {column}: choose one of {listed(names, MAX_NAMES) or 'none'}")
        if file.schema_arrow.names.count(column.partition(".")[0]) > 1:
            raise InputError(f"{path} has two columns of the name {column.partition('.')[0]}: call one otherwise")


def _row(batch: "RecordBatch", index: int) -> Row:
    try:
        return flat_columns({name: batch.column(name)[index].as_py() for name in batch.schema.names})
    except UnicodeDecodeError:
        return "expected text in UTF-8, got other bytes"
