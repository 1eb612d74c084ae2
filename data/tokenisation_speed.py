"""How fast a text becomes tokens on the disk: ours, and `datasets.map` with the library `tokenizers` alone."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from data.cache.tokens import tokenized
from data.config import TextConfig
from data.text import Source
from training.runtime.packages import needed_package
from training.runtime.threads import available_cores

BATCH_CHARACTERS = 2**22
"""Of a batch of `datasets.map`, where documents are of middling length: its own 1,000 rows can be any size."""


class Text(NamedTuple):
    """What is tokenised."""

    origin: str
    sha256: str
    documents: int
    num_bytes: int
    num_tokens: int


@contextmanager
def prepared(source: Source, data: TextConfig) -> Iterator[tuple[Text, dict[str, Callable[[], float]]]]:
    """The text, and the ways to make tokens of it, each of which gives its seconds.

    The tokenizer is learnt before; nothing else is kept from one pass to the next.
    """
    tokenizers, datasets = (needed_package(name, "the benchmark") for name in ("tokenizers", "datasets"))
    with tempfile.TemporaryDirectory() as folder, _home(folder):
        found = tokenized(source, data)
        library = tokenizers.Tokenizer.from_str(found.tokenizer.to_json())
        library.encode_special_tokens = True

        def ours() -> float:
            with _fresh(folder) as home, _home(str(home)):
                start = time.perf_counter()
                tokenized(source, data, found.tokenizer)
                return time.perf_counter() - start

        def theirs(processes: int | None) -> float:
            with _fresh(folder) as cache, _parallelism_kept():
                start = time.perf_counter()
                map_documents(source, library, datasets, cache, processes)
                return time.perf_counter() - start

        count, num_bytes = 0, 0
        for chunk in source.documents:
            count, num_bytes = count + chunk.last, num_bytes + len(chunk.text.encode())
        num_tokens = len(found.training.tokens_N) + len(found.validation.tokens_N)
        cores = available_cores()
        yield (
            Text(source.origin, found.sha256, count, num_bytes, num_tokens),
            {
                "ours": ours,
                "datasets.map, threads": partial(theirs, None),
                f"datasets.map, {cores} processes": partial(theirs, cores),
            },
        )


@contextmanager
def _home(folder: str) -> Iterator[None]:
    """While entered, tokens are kept there."""
    before = os.environ.get("HF_HOME")
    os.environ["HF_HOME"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["HF_HOME"]
        else:
            os.environ["HF_HOME"] = before


@contextmanager
def _parallelism_kept() -> Iterator[None]:
    """`datasets.map` with processes takes threads from the library, and gives them back in Python's copy alone."""
    environment, name = os.environ, "TOKENIZERS_PARALLELISM"
    before = environment.get(name)
    try:
        yield
    finally:
        os.environ = environment  # noqa: B003
        os.environ[name] = before or "true"


@contextmanager
def _fresh(folder: str) -> Iterator[Path]:
    scratch = Path(tempfile.mkdtemp(dir=folder))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def map_documents(source: Source, library: Any, datasets: Any, cache: Path, processes: int | None) -> Any:
    """Make an Arrow file of the text's chunks, and another one of their tokens, which is returned."""

    def rows() -> Iterator[dict[str, str]]:
        return ({"text": chunk.text} for chunk in source.documents)

    rows_of_text = datasets.Dataset.from_generator(rows, cache_dir=str(cache))
    mean = rows_of_text.data.nbytes / max(len(rows_of_text), 1)
    return rows_of_text.map(
        partial(_encode, library),
        batched=True,
        batch_size=max(1, min(1000, int(BATCH_CHARACTERS / max(mean, 1)))),
        remove_columns=["text"],
        num_proc=processes,
        cache_file_name=str(cache / "tokens.arrow"),
    )


def _encode(library: Any, rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
    return {"ids": [encoding.ids for encoding in library.encode_batch_fast(rows["text"], add_special_tokens=False)]}
