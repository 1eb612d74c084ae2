"""What the files of a source were found to be, kept so that a large one is not read for that at each start."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from data.cache.token_cache import cache_folder
from data.sources.encodings import Encoding
from data.sources.files import Found, FoundFile, ListedFile
from training.storage.files import replace_text
from training.storage.reading import FileError, built, read_json

VERSION = 1
LARGE = 2**24
"""Bytes of files that take long enough to be remembered."""


@dataclass(frozen=True)
class _Saved:
    """`others`: the codec and the length of the mark of files that are not plain UTF-8."""

    stamp: str
    files: list[str]
    others: dict[str, str]
    origin: str
    notes: list[str]


def remembered(files: Sequence[ListedFile], options: Sequence[str | None], look: Callable[[], Found]) -> Found:
    """What `look` finds in files, or found when they had the same names, sizes, times and inodes.

    Args:
        files: All that the source names.
        options: All else that what is found depends on.
        look: Reads them.
    """
    stamp, size = _stamp(files)
    if size < LARGE:
        return look()
    key = hashlib.sha256(json.dumps([os.getcwd(), *options]).encode()).hexdigest()[:32]
    file = cache_folder() / "sources" / f"{key}-files.json"
    with suppress(FileError):
        saved = built(_Saved, read_json(file), file)
        if saved.stamp == stamp:
            return Found(tuple(_files(saved)), saved.origin, tuple(saved.notes))
    found = look()
    others = {
        str(path): f"{encoding.codec} {encoding.mark}"
        for path, encoding in found.files
        if encoding[:2] != Encoding()[:2]
    }
    paths = [str(file.path) for file in found.files]
    about = {"stamp": stamp, "files": paths, "others": others, "origin": found.origin, "notes": found.notes}
    with suppress(OSError):  # It only saves the next start a pass.
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, json.dumps(about))
    return found


def _files(saved: _Saved) -> Iterator[FoundFile]:
    for path in saved.files:
        codec, _, mark = saved.others.get(path, "utf-8 0").partition(" ")
        yield FoundFile(Path(path), Encoding(codec, int(mark)))


def _stamp(files: Sequence[ListedFile]) -> tuple[str, int]:
    """What changes when one of the files does, and their size in bytes."""
    digest, size = hashlib.sha256(str(VERSION).encode()), 0
    for path, _, is_named, reason in files:
        about: list[object] = [str(path), is_named, reason]
        if reason is None:
            with suppress(OSError):
                now = os.stat(path)
                about += [now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino]
                size += now.st_size
        digest.update(json.dumps(about).encode())
    return digest.hexdigest(), size
