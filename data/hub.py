"""Rows of data sets of the Hugging Face hub.

A process of its own loads it (`python -m data.hub REQUEST` prints the answer, both JSON), so that it can be ended
whatever it waits for: some requests of the hub's client have no time limit, others are repeated for minutes, and its
threads would keep a run from ending. Three rules bound a slow or dead hub:

- The first request, for the commit, is small and made once, with the client's own limit: HF_HUB_DOWNLOAD_TIMEOUT, 10 s.
- The client resumes a file that stalls five times, with the same limit, then gives up: after 65 s.
- Whatever else happens, the process ends when the cache has not grown for 7 times that limit: 70 s.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from training.runtime.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder
    from huggingface_hub.hf_api import DatasetInfo

PARQUET_REVISION = "refs/convert/parquet"
"""The branch on which the hub keeps a copy in Parquet of most data sets, one folder for each subset."""

SPLITS = ("train", "validation", "test")
PATIENCE = 7
CHUNK_BYTES = 2**16
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
    """Rows of text of the splits train, validation and test, as far as there are any, and the commit they are from.

    A row holds the columns in the order in which they were asked for; a text may be null.
    """

    splits: dict[str, list[list[str | None]]]
    commit: str


def load_hub_rows(request: Request) -> HubRows:
    """Load rows from the hub, or, in offline mode (HF_HUB_OFFLINE=1), from its cache.

    Raises:
        InputError: The hub does not answer or stalls, or has no such text; the message says what to do.
    """
    if Path(request.name).exists():  # `datasets` would take it for the data set.
        raise InputError(f"{request.name} exists in this folder: load hub:{request.name} from another one")
    environment = SETTINGS | ({} if sys.stderr.isatty() else NO_BARS) | os.environ
    paths = [str(Path(__file__).parents[1]), environment.get("PYTHONPATH")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    command = [sys.executable, "-P", "-m", "data.hub", json.dumps(request)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise InputError(f"the process that loads hub:{request.name} ended with code {done.returncode}: try again")
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise InputError(answer["error"])
    return HubRows(**answer)


def main() -> None:
    """Answer one request."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Of Ctrl-C the process that waits for this one speaks.
    request = Request(*json.loads(sys.argv[1]))
    loaded = threading.Event()
    threading.Thread(target=_watch, args=(request.name, loaded), daemon=True).start()
    try:
        answer = _load(request, loaded)._asdict()
    except InputError as error:
        answer = {"error": str(error)}
    except Exception as error:  # the client's errors have no common class
        answer = {"error": _in_our_words(request, error)}
    loaded.set()
    _answer(answer)


def _answer(answer: dict[str, Any]) -> NoReturn:
    sys.stdout.buffer.write(json.dumps(answer, ensure_ascii=False).encode())
    sys.stdout.flush()
    os._exit(0)  # A plain exit would wait for the client's threads.


def _watch(name: str, loaded: threading.Event) -> None:
    """End the process when the cache has not grown for too long."""
    from huggingface_hub import constants

    limit = PATIENCE * constants.HF_HUB_DOWNLOAD_TIMEOUT
    size, since = -1, time.monotonic()
    while not loaded.wait(1):
        if (now := _cache_size(name.split("/")[0])) > size:
            size, since = now, time.monotonic()
        elif time.monotonic() - since > limit:
            if sys.stderr.isatty():
                print(file=sys.stderr)  # to leave the line of the progress bar
            _answer(
                {
                    "error": f"nothing more of hub:{name} has come from {constants.ENDPOINT} for {limit} s: try again, "
                    f"on a slow line with a higher HF_HUB_DOWNLOAD_TIMEOUT (now {constants.HF_HUB_DOWNLOAD_TIMEOUT} s)"
                }
            )


def _cache_size(owner: str) -> int:
    """Bytes and files in the caches of the owner's data sets, where other processes' downloads count as well."""
    from huggingface_hub import constants

    datasets_cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets"))
    folders = [*Path(constants.HF_HUB_CACHE).glob(f"datasets--{owner}--*"), *datasets_cache.glob(f"{owner}___*")]
    size = 0
    for folder, _, files in (step for root in folders for step in os.walk(root)):
        for file in files:
            try:
                size += 1 + os.lstat(os.path.join(folder, file)).st_size
            except FileNotFoundError:  # renamed since it was listed
                continue
    return size


def _load(request: Request, loaded: threading.Event) -> HubRows:
    from huggingface_hub import constants

    # Files are written in chunks of 10 MB otherwise: too coarse to see that a slow line brings something.
    constants.DOWNLOAD_CHUNK_SIZE = CHUNK_BYTES
    info = None
    if not constants.HF_HUB_OFFLINE:
        info = _find(request)
    elif request.revision is not None and not request.any_revision:
        # The cache gives the newest version that it has, whatever was asked for.
        raise InputError(
            f"data.revision {request.revision} cannot be looked up in offline mode (HF_HUB_OFFLINE): leave it out to "
            "take the newest version in the cache, or leave offline mode"
        )
    builder = _builder(request, info)
    builder.download_and_prepare()
    loaded.set()
    splits: dict[str, Dataset] = builder.as_dataset()
    if "train" not in splits:
        raise InputError(f"hub:{request.name} has no split train, only {', '.join(splits)}: choose another data set")
    found = {split: _rows(request, splits[split]) for split in SPLITS if split in splits}
    return HubRows(found, builder.hash)


def _find(request: Request) -> "DatasetInfo":
    """Ask the hub for the commit and its files: the one request that tells most of what can be wrong."""
    from huggingface_hub import HfApi, constants, errors

    name, endpoint = request.name, constants.ENDPOINT
    try:
        return HfApi().dataset_info(name, revision=request.revision, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
    except errors.RevisionNotFoundError as error:
        raise InputError(
            f"hub:{name} has no revision {request.revision}: give --data.revision a branch, a tag or a commit"
        ) from error
    except errors.GatedRepoError as error:
        raise InputError(_gated(name)) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{endpoint} has no data set {name}, or a private one: check the name, or log in to an account that may "
            "read it (hf auth login, or HF_TOKEN)"
        ) from error
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        todo = "log in again (hf auth login, or HF_TOKEN)" if code in (401, 403) else "try again later"
        raise InputError(f"{endpoint} answers {code} to the request for {name}: {todo}") from error
    except errors.HFValidationError as error:
        raise InputError(f"hub:{name} is no name of a data set: {error}") from error
    except Exception as error:  # the client's errors have no common class
        raise InputError(
            f"cannot reach the hub at {endpoint} ({_reason(error)}): check the network, or take what is in the cache "
            "with HF_HUB_OFFLINE=1"
        ) from error


def _builder(request: Request, info: "DatasetInfo | None") -> "DatasetBuilder":
    from datasets import load_dataset_builder

    name, subset = request.name, request.subset
    # A commit, not None or a branch: it cannot change on the way, and spares a question to another server.
    commit = info.sha if info else None
    if info is None or request.revision != PARQUET_REVISION:
        return load_dataset_builder(name, subset, revision=commit)
    subsets = sorted({file.rfilename.split("/")[0] for file in info.siblings or () if "/" in file.rfilename})
    if len(subsets) > 1 or subset is not None:
        if subset not in subsets:
            raise InputError(_choose_subset(request, subsets))
        return load_dataset_builder(name, data_dir=subset, revision=commit)
    return load_dataset_builder(name, revision=commit)


def _rows(request: Request, dataset: "Dataset") -> list[list[str | None]]:
    if not set(request.columns.values()) <= set(dataset.column_names):
        dataset = dataset.flatten()  # {"translation": {"en": "…"}} has a column translation.en then.
    for option, column in request.columns.items():
        if column not in dataset.column_names:
            columns = ", ".join(dataset.column_names)
            raise InputError(f"hub:{request.name} has no column {column}: choose one with --{option} ({columns})")
        dtype = getattr(dataset.features[column], "dtype", "list")
        if dtype not in ("string", "large_string"):
            strings = [key for key, value in dataset.features.items() if getattr(value, "dtype", "") == "string"]
            raise InputError(
                f"column {column} of hub:{request.name} holds no text but {dtype}: choose a column of text with "
                f"--{option} ({', '.join(strings) or 'there is none'})"
            )
    return [list(row) for row in zip(*(dataset[column][:] for column in request.columns.values()), strict=True)]


def _in_our_words(request: Request, error: Exception) -> str:
    """What to do about an error that the client or `datasets` ended with."""
    from huggingface_hub import constants

    text, name = str(error), request.name
    if "scripts are no longer supported" in text:
        return (
            f"hub:{name} is made by a script, which is not run: take the hub's own copy of its text with "
            f"--data.revision {PARQUET_REVISION}"
        )
    if "is a gated dataset" in text:
        return _gated(name)
    if subsets := re.search(r"[Aa]vailable(?: configs)?(?: in the cache)?: \[(.*?)\]", text):
        return _choose_subset(request, re.findall(r"'(.*?)'", subsets[1]))
    if constants.HF_HUB_OFFLINE and isinstance(error, ConnectionError):
        return f"hub:{name} is not in the cache, and offline mode (HF_HUB_OFFLINE) is on: load it once without"
    return f"cannot load hub:{name} ({_reason(error)}): try again, or use a local copy of its text"


def _choose_subset(request: Request, subsets: list[str]) -> str:
    got = f"no subset {request.subset}" if request.subset else "several subsets"
    return f"hub:{request.name} has {got}: choose one with --data.subset ({', '.join(subsets)})"


def _gated(name: str) -> str:
    from huggingface_hub import constants

    return (
        f"hub:{name} is gated: ask for access at {constants.ENDPOINT}/datasets/{name}, then log in (hf auth login, "
        "or HF_TOKEN)"
    )


def _reason(error: BaseException) -> str:
    """The first line of the error that began it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


if __name__ == "__main__":
    main()
