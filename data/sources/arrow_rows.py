"""Columns of text in Arrow files."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from training.runtime.packages import needed_package

if TYPE_CHECKING:
    from datasets import Dataset
    from pyarrow import Scalar

BATCH = 256
"""Rows that are looked at at a time: views of the files."""


@dataclass(frozen=True)
class ArrowRows:
    """Columns of text in Arrow files, which are mapped into memory and read anew each time: nothing is held.

    A row holds the columns in the order in which they were asked for; a text may be null, and bytes if it is no UTF-8.
    """

    files: tuple[str, ...]
    columns: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.table())

    def __iter__(self) -> Iterator[tuple[str | bytes | None, ...]]:
        table = self.table().select_columns(list(self.columns)).with_format("arrow")
        for batch in table.iter(BATCH):
            for row in zip(*(batch.column(name) for name in self.columns), strict=True):
                yield tuple(map(_text, row))

    def table(self) -> "Dataset":
        """All columns, those in others as well: {"translation": {"en": "…"}} has a column translation.en."""
        datasets = needed_package("datasets", "rows of the hub")
        table = datasets.concatenate_datasets([datasets.Dataset.from_file(file) for file in self.files])
        return table if set(self.columns) <= set(table.column_names) else table.flatten()


def _text(value: "Scalar") -> str | bytes | None:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return value.as_buffer().to_pybytes()
