"""Rows of data sets of the Hugging Face hub.

One process of each machine brings a data set into the cache of `datasets`; all of them read its Arrow files from there.
What may wait for the hub runs in a process of its own, `data.sources.hub_process`, which can be ended whatever it does.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data.sources.arrow_rows import ArrowRows
from training.runtime.errors import InputError
from training.runtime.packages import needed_package

if TYPE_CHECKING:
    from datasets import Dataset

PARQUET_REVISION = "refs/convert/parquet"
"""The branch on which the hub keeps a copy in Parquet of most data sets, one folder for each subset."""

MESSAGES = "data.messages_column"
"""The option of a column that holds lists."""
SPLITS = ("train", "validation", "test")
SETTINGS = {
    "HF_HUB_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    # The other way to download, Xet, has limits of its own, which are longer.
    "HF_HUB_DISABLE_XET": "1",
}
NO_BARS = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}


class Request(NamedTuple):
    """What to load.

    Attributes:
        name: OWNER/NAME.
        columns: Columns of text, by the option that chooses each.
        revision, subset: None for the data set's own defaults.
        any_revision: Whether another revision serves in offline mode, because whoever asks checks the content.
    """

    name: str
    columns: dict[str, str]
    revision: str | None
    subset: str | None
    any_revision: bool = False


class HubRows(NamedTuple):
    """Rows of the splits train, validation and test, as far as there are any, and the commit they are from."""

    splits: dict[str, ArrowRows]
    commit: str


def load_hub_rows(request: Request) -> HubRows:
    """Load rows from the hub, or, in offline mode (HF_HUB_OFFLINE=1), from its cache; all processes call this.

    Raises:
        InputError: The hub does not answer or stalls, or has no such text; the message says what to do.
    """
    from training.runtime.processes import once_per_machine

    needed_package("datasets", f"hub:{request.name}")
    prepared = once_per_machine(lambda: _prepare(request))
    columns = tuple(request.columns.values())
    splits = {split: ArrowRows(tuple(files), columns) for split, files in prepared["files"].items()}
    for rows in splits.values():
        _check_columns(request, rows.table())
    return HubRows(splits, prepared["commit"])


def _prepare(request: Request) -> dict[str, Any]:
    """Bring a data set into the cache; return its commit and, by split, its Arrow files there."""
    if Path(request.name).exists():  # `datasets` would take it for the data set.
        raise InputError(f"{request.name} exists in this folder: load hub:{request.name} from another one")
    environment = SETTINGS | ({} if sys.stderr.isatty() else NO_BARS) | os.environ
    paths = [str(Path(__file__).parents[2]), environment.get("PYTHONPATH")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    command = [sys.executable, "-P", "-m", "data.sources.hub_process", json.dumps(request)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise InputError(f"the process that loads hub:{request.name} ended with code {done.returncode}: try again")
    answer: dict[str, Any] = json.loads(done.stdout)
    if "error" in answer:
        raise InputError(answer["error"])
    return answer


def _check_columns(request: Request, table: "Dataset") -> None:
    for option, column in request.columns.items():
        if column not in table.column_names:
            columns = ", ".join(table.column_names)
            raise InputError(f"hub:{request.name} has no column {column}: choose one with --{option} ({columns})")
        dtype = getattr(table.features[column], "dtype", "list")
        if dtype not in ("string", "large_string") and option != MESSAGES:
            strings = [key for key, value in table.features.items() if getattr(value, "dtype", "") == "string"]
            raise InputError(
                f"column {column} of hub:{request.name} holds no text but {dtype}: choose a column of text with "
                f"--{option} ({', '.join(strings) or 'there is none'})"
            )
