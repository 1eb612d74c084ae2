"""`python -m data.sources.hub_process REQUEST` brings a data set of the hub into the cache.

Request and answer are JSON.

Some requests of the hub's client have no time limit, others are repeated for minutes, and its threads would keep a run
from ending. Three rules bound a slow or dead hub:

- The first request, for the commit, is small and made once, with the client's own limit: HF_HUB_DOWNLOAD_TIMEOUT, 10 s.
- The client resumes a file that stalls five times, with the same limit, then gives up: after 65 s.
- Whatever else happens, the process ends when the cache has not grown for 7 times that limit: 70 s.
"""

import json
import os
import re
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from huggingface_hub import HfApi, constants, errors

from data.sources.hub import PARQUET_REVISION, SPLITS, Request
from training.runtime.errors import InputError

if TYPE_CHECKING:
    from datasets import DatasetBuilder

PATIENCE = 7
CHUNK_BYTES = 2**16


def main() -> None:
    """Answer one request."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Of Ctrl-C the process that waits for this one speaks.
    request = Request(*json.loads(sys.argv[1]))
    threading.Thread(target=_watch, args=(request.name,), daemon=True).start()
    try:
        _answer(_prepare(request))
    except InputError as error:
        _answer({"error": str(error)})
    except Exception as error:  # The client's errors have no common class.
        _answer({"error": _in_our_words(request, error)})


def _answer(answer: dict[str, Any]) -> NoReturn:
    sys.stdout.buffer.write(json.dumps(answer, ensure_ascii=False).encode())
    sys.stdout.flush()
    os._exit(0)  # A plain exit would wait for the client's threads.


def _watch(name: str) -> None:
    """End the process when the cache has not grown for too long."""
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    limit = PATIENCE * timeout
    size, since = -1, time.monotonic()
    while time.monotonic() - since <= limit:
        time.sleep(1)
        if (now := _cache_size(name.split("/")[0])) > size:
            size, since = now, time.monotonic()
    if sys.stderr.isatty():
        print(file=sys.stderr)  # To leave the line of the progress bar.
    todo = f"try again, on a slow line with a higher HF_HUB_DOWNLOAD_TIMEOUT (now {timeout} s)"
    _answer({"error": f"nothing more of hub:{name} has come from {constants.ENDPOINT} for {limit} s: {todo}"})


def _cache_size(owner: str) -> int:
    """Bytes and files in the caches of the owner's data sets, where other processes' downloads count as well."""
    prepared = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets"))
    roots = [*Path(constants.HF_HUB_CACHE).glob(f"datasets--{owner}--*"), *prepared.glob(f"{owner}___*")]
    size = 0
    for file in (os.path.join(folder, name) for root in roots for folder, _, names in os.walk(root) for name in names):
        with suppress(FileNotFoundError):  # Renamed since it was listed.
            size += 1 + os.lstat(file).st_size
    return size


def _prepare(request: Request) -> dict[str, Any]:
    # Files are written in chunks of 10 MB otherwise: too coarse to see that a slow line brings something.
    constants.DOWNLOAD_CHUNK_SIZE = CHUNK_BYTES
    builder = _builder(request)
    builder.download_and_prepare()
    splits = builder.as_dataset()
    if "train" not in splits:
        raise InputError(f"hub:{request.name} has no split train, only {', '.join(splits)}: choose another data set")
    files = {name: [file["filename"] for file in splits[name].cache_files] for name in SPLITS if name in splits}
    return {"files": files, "commit": builder.hash}


def _builder(request: Request) -> "DatasetBuilder":
    from datasets import load_dataset_builder

    name, revision, subset = request.name, request.revision, request.subset
    if constants.HF_HUB_OFFLINE:
        if revision is not None and not request.any_revision:
            # The cache gives the newest version that it has, whatever was asked for.
            raise InputError(
                f"data.revision {revision} cannot be looked up in offline mode (HF_HUB_OFFLINE): leave it out to take "
                "the newest version in the cache, or leave offline mode"
            )
        return load_dataset_builder(name, subset)
    try:
        info = HfApi().dataset_info(name, revision=revision, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
    except (errors.HfHubHTTPError, errors.HFValidationError):
        raise
    except Exception as error:
        raise InputError(
            f"cannot reach the hub at {constants.ENDPOINT} ({_reason(error)}): check the network, or take what is in "
            "the cache with HF_HUB_OFFLINE=1"
        ) from error
    # A commit, not None or a branch: it cannot change on the way, and spares a question to another server.
    commit = info.sha
    folders = sorted({file.rfilename.split("/")[0] for file in info.siblings or () if "/" in file.rfilename})
    if revision != PARQUET_REVISION or (len(folders) <= 1 and subset is None):
        return load_dataset_builder(name, subset, revision=commit)
    if subset not in folders:
        raise InputError(_choose_subset(request, folders))
    return load_dataset_builder(name, data_dir=subset, revision=commit)


def _in_our_words(request: Request, error: Exception) -> str:
    """What to do about an error that the client or `datasets` ended with."""
    name, endpoint, text = request.name, constants.ENDPOINT, str(error)
    account = "(hf auth login, or HF_TOKEN)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"hub:{name} has no revision {request.revision}: give --data.revision a branch, a tag or a commit"
    if isinstance(error, errors.GatedRepoError) or "is a gated dataset" in text:
        return f"hub:{name} is gated: ask for access at {endpoint}/datasets/{name}, then log in {account}"
    if isinstance(error, errors.RepositoryNotFoundError):
        todo = f"check the name, or log in to an account that may read it {account}"
        return f"{endpoint} has no data set {name}, or a private one: {todo}"
    if isinstance(error, errors.HfHubHTTPError):
        code = error.response.status_code
        todo = f"log in again {account}" if code in (401, 403) else "try again later"
        return f"{endpoint} answers {code} to the request for {name}: {todo}"
    if isinstance(error, errors.HFValidationError):
        return f"hub:{name} is no name of a data set: {error}"
    if "scripts are no longer supported" in text:
        todo = f"take the hub's own copy of its text with --data.revision {PARQUET_REVISION}"
        return f"hub:{name} is made by a script, which is not run: {todo}"
    if subsets := re.search(r"[Aa]vailable(?: configs)?(?: in the cache)?: \[(.*?)\]", text):
        return _choose_subset(request, re.findall(r"'(.*?)'", subsets[1]))
    if constants.HF_HUB_OFFLINE and isinstance(error, ConnectionError):
        return f"hub:{name} is not in the cache, and offline mode (HF_HUB_OFFLINE) is on: load it once without"
    return f"cannot load hub:{name} ({_reason(error)}): try again, or use a local copy of its text"


def _choose_subset(request: Request, subsets: list[str]) -> str:
    got = f"no subset {request.subset}" if request.subset else "several subsets"
    return f"hub:{request.name} has {got}: choose one with --data.subset ({', '.join(subsets)})"


def _reason(error: BaseException) -> str:
    """The first line of the error that began it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


if __name__ == "__main__":
    main()
