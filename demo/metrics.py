"""The metrics of runs, cached: a `metrics.jsonl` that has grown is read from its end, as far back as it is new."""

import threading
from array import array
from collections import OrderedDict
from math import nan
from pathlib import Path
from typing import NamedTuple, TypeAlias

from training.runtime.errors import InputError
from training.storage.run_folder import RunFolder

COLUMNS = "step", "train_loss", "val_loss", "learning_rate", "tokens_per_second"
KEPT = 64
"""Runs; one with 200,000 lines takes 8 MB."""

Rows: TypeAlias = "array[float]"
"""One row after the other, a value for each column, and NaN for one that was not measured."""


class _Held(NamedTuple):
    version: tuple[int, int]
    rows: Rows
    fault: str


class Metrics:
    """What is in the files of runs, by file, size and time."""

    def __init__(self) -> None:
        self._held: OrderedDict[Path, _Held] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, run: RunFolder) -> Rows:
        """The rows of a run.

        Raises:
            InputError: Its file cannot be read, or a line is not what it should be.
        """
        with self._lock:
            now = version(run.metrics_file)
            held = self._held.pop(run.path, None)
            if held is None or held.version != now:
                held = _Held(now, *_read_on(run, held.rows if held is not None and now[0] else array("d")))
            self._held[run.path] = held
            while len(self._held) > KEPT:
                self._held.popitem(last=False)
        if held.fault:
            raise InputError(held.fault)
        return held.rows

    @property
    def faults(self) -> dict[str, str]:
        """The runs whose files were tried and could not be read, and why."""
        return {path.name: held.fault for path, held in self._held.items() if held.fault}


METRICS = Metrics()
"""Of this process."""


def version(file: Path) -> tuple[int, int]:
    """Size of a file, and when it was changed last, in nanoseconds; zeros if it cannot be had."""
    try:
        found = file.stat()
        return found.st_size, found.st_mtime_ns
    except OSError:
        return 0, 0


def _read_on(run: RunFolder, rows: Rows) -> tuple[Rows, str]:
    """The rows with those that are new; a resumed run has taken its last ones back, and writes them again."""
    width, new = len(COLUMNS), []
    try:
        for line in run.iterate_metrics(newest_first=True):
            row = array("d", (line.get(name, nan) for name in COLUMNS))
            while rows and rows[-width] >= row[0] and rows[-width:].tobytes() != row.tobytes():
                del rows[-width:]
            if rows and rows[-width] >= row[0]:
                break
            new.append(row)
    except (InputError, OSError) as error:
        return array("d"), str(error)
    for row in reversed(new):
        rows.extend(row)
    return rows, ""
