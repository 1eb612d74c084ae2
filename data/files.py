"""Text files and folders of them, as a source names them: what is read, and what is left out, by its reason."""

import glob
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data.config import TEXT_SOURCES
from data.encodings import NoText, TextFile, read_text
from data.listing import listed
from training.runtime.errors import InputError

MAX_NAMED = 3


class Texts(NamedTuple):
    """The texts of some files, where they came from, and what was done to read them, with what is left out."""

    texts: list[str]
    origin: str
    notes: tuple[str, ...]


def read_sources(source: str) -> Texts:
    """The texts of a source: a file, a folder, a pattern such as `texts/*.txt`, or several of these with commas.

    A name that exists as it stands is no pattern and no list; `~` is the home folder. What is named must be text; of
    what is only found, in a folder or by a pattern, the rest is left out.

    Raises:
        InputError: Something that is named does not exist or is no text, or nothing is left.
    """
    texts: list[str] = []
    read, left_out = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for path, is_named in _expand(source):
        for file, found in _read(path, is_named=is_named):
            name = _name(file, path)
            if isinstance(found, str):
                left_out[found.removeprefix("is ")].append(name)
                continue
            texts.append(found.text)
            if found.note is not None:
                read[found.note].append(name)
    rest = "; ".join(f"{len(names):,} {reason}: {listed(names, MAX_NAMED)}" for reason, names in left_out.items())
    if not texts:
        raise InputError(f"data.source {source} holds no text{f', only {rest}' if rest else ': it is empty'}")
    notes = [f"{note}: {listed(names, MAX_NAMED)}" for note, names in read.items()]
    if rest:
        notes.append(f"left out: {rest}")
    alone = len(texts) == 1 and os.path.isfile(os.path.expanduser(source))
    count = f"{len(texts):,} file{'s' * (len(texts) > 1)}"
    return Texts(texts, source if alone else f"{source} ({count})", tuple(notes))


def _expand(source: str) -> Iterator[tuple[Path, bool]]:
    """The files and folders of a source, each with whether it was named, or only found by a pattern."""
    whole = os.path.lexists(os.path.expanduser(source))
    for part in [source] if whole else [part.strip() for part in source.split(",") if part.strip()]:
        path = os.path.expanduser(part)
        if os.path.exists(path):
            yield Path(path), True
        elif not glob.has_magic(path):
            raise InputError(f"data.source {part} does not exist: expected {TEXT_SOURCES}")
        elif matches := sorted(map(Path, glob.glob(path, recursive=True))):
            yield from ((match, False) for match in matches)
        else:
            raise InputError(f"data.source {part}: no file has such a name")


def _read(path: Path, *, is_named: bool) -> Iterator[tuple[Path, TextFile | str]]:
    """A file, or all files below a folder in sorted order, each as its text or as the reason why it is left out."""
    reason = None if is_named else _reason_to_leave(path)
    if reason is not None:
        yield path, reason
    elif os.path.isdir(path):
        try:
            names = sorted(os.listdir(path))
        except OSError as error:
            yield path, error.strerror or str(error)
            return
        for name in names:
            yield from _read(path / name, is_named=False)
    else:
        try:
            yield path, read_text(path)
        except NoText as error:
            if is_named:
                raise
            yield path, error.reason + (f", convert with {error.command}" if error.command else "")


def _reason_to_leave(path: Path) -> str | None:
    """Why a file or folder that was found is not even tried."""
    name = path.name
    if name.endswith(("~", ".swp", ".swo")) or (name.startswith("#") and name.endswith("#")):
        return "editor's backup"
    if name.startswith("."):
        return "hidden"
    if not os.path.isdir(path):
        return None if os.path.isfile(path) or not os.path.exists(path) else "no regular file"
    if path.is_symlink():
        return "linked folder (to read it, name it as a source, too)"
    # The folder of a run that learns these texts would grow into them.
    is_run = os.path.exists(path / "config.yaml") and os.path.exists(path / "checkpoints")
    return "folder of a run" if is_run else None


def _name(file: Path, source: Path) -> str:
    """The path of a file below its source, if that is a folder; a name that is not UTF-8 can be shown, too."""
    name = str(file.relative_to(source) if os.path.isdir(source) else file)
    return name.encode(errors="replace").decode()
