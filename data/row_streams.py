"""Rows of files of any size, one after the other."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from data.rows import Row, flat_columns
from training.runtime.errors import InputError
from training.runtime.packages import needed_package

BATCH_ROWS = 1024


def stream_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """The rows of a Parquet file, each with its place: file and row from 1 on.

    Raises:
        InputError: The file cannot be read, is no such file, or has no such column.
    """
    parquet, arrow = needed_package("pyarrow.parquet", str(path)), needed_package("pyarrow", str(path))
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = [file.schema.column(place).path for place in range(len(file.schema))]
            for column in columns:
                if not any(f"{name}.".startswith(f"{column}.") for name in names):
                    raise InputError(f"{path} has no column {column}: choose one of {', '.join(names)}")
            for batch in file.iter_batches(BATCH_ROWS, columns=list(columns)):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", flat_columns(row)
    except arrow.ArrowException as error:
        raise InputError(f"{path} is no Parquet file, or a damaged one ({str(error).splitlines()[0]})") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
