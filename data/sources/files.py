"""The files of a source, and of the folders that it names: what is read, and what is left out, by its reason."""

import glob
import os
import re
import sysconfig
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from data.config import TEXT_SOURCES
from data.listing import listed
from data.sources.encodings import Encoding, NoText, find_encoding
from training.runtime.errors import InputError

MAX_NAMED = 3
WILD = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
PYTHON, PROJECT = "python", "transformers-from-scratch"
PACKAGES = {"site-packages", "dist-packages"}
"""Folders that may stand below the standard library, and need not be of this environment."""

Fits = Callable[[str], bool]
"""Whether a file of a folder is asked for, by its path below that folder."""


class ListedFile(NamedTuple):
    """A file that a source names, or that was found, not read yet; `reason`: why it is not even tried."""

    path: Path
    name: str
    is_named: bool
    reason: str | None = None


class FoundFile(NamedTuple):
    """A file that is read, and how."""

    path: Path
    encoding: Encoding


class Found(NamedTuple):
    """The files of a source, where they came from, and what is done to read them, with what is left out."""

    files: tuple[FoundFile, ...]
    origin: str
    notes: tuple[str, ...]


def list_files(source: str, include: str | None = None) -> list[ListedFile]:
    """The files of a source: a file, a folder, a pattern such as `texts/*.txt`, or several of these with commas.

    A name that exists as it stands is no pattern and no list; `~` is the home folder. `include` says which files of
    folders are asked for; see `fitting`. Of `python` they are those of the standard library, then those of the
    packages, without this project, in sorted order, wherever they are installed.

    Raises:
        InputError: Something that is named does not exist.
    """
    if source != PYTHON:
        fits = fitting(include)
        return [file for path, is_named in _expand(source) for file in _walk(path, "", fits, is_named=is_named)]
    own, wanted = _own_files(), fitting(include or "**")

    def is_source(name: str) -> bool:
        return name.endswith(".py") and name not in own and PACKAGES.isdisjoint(name.split("/")) and wanted(name)

    roots = dict.fromkeys(os.path.realpath(sysconfig.get_path(kind)) for kind in ("stdlib", "purelib", "platlib"))
    return [file for root in map(Path, roots) for file in _walk(root, "", is_source, is_named=True)]


def look_into(listed_files: Iterable[ListedFile], source: str, include: str | None = None) -> Found:
    """What files are, and how they are read; each is read to its end.

    What is named must be text, or rows (.jsonl, .parquet); of what is only found the rest is left out.

    Raises:
        InputError: Something that is named is no text, or nothing is left.
    """
    files = list[FoundFile]()
    read, left_out = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for path, name, is_named, reason in listed_files:
        found = reason or _encoding(path, is_named=is_named)
        if source == PYTHON and (found.codec.lower() != "utf-8" if isinstance(found, Encoding) else "UTF-8" in found):
            found = "not UTF-8"
        if isinstance(found, str):
            left_out[found.removeprefix("is ")].append(name)
            continue
        files.append(FoundFile(path, found))
        if found.note is not None:
            read[found.note].append(name)
    rest = "; ".join(f"{len(names):,} {reason}: {listed(names, MAX_NAMED)}" for reason, names in left_out.items())
    if not files:
        nothing = ": it is empty" if include is None else f" that fits data.include {include}"
        raise InputError(f"data.source {source} holds no text{f', only {rest}' if rest else nothing}")
    notes = [f"{note}: {listed(names, MAX_NAMED)}" for note, names in read.items()]
    return Found(tuple(files), *_described(source, files, notes + ([f"left out: {rest}"] if rest else [])))


def _described(source: str, files: list[FoundFile], notes: list[str]) -> tuple[str, tuple[str, ...]]:
    """Where the text of some files came from, and the notes."""
    count = f"{len(files):,} file{'s' * (len(files) > 1)}"
    if source == PYTHON:
        size = sum(os.stat(file.path).st_size for file in files)
        return "the Python sources of this environment", (f"{count}, {size:,} bytes", *notes)
    alone = len(files) == 1 and os.path.isfile(os.path.expanduser(source))
    return source if alone else f"{source} ({count})", tuple(notes)


def _own_files() -> set[str]:
    """The files of this project where packages are installed."""
    try:
        return {str(file) for file in metadata.files(PROJECT) or ()}
    except metadata.PackageNotFoundError:
        return set()


def fitting(include: str | None) -> Fits:
    """Whether the path of a file fits one of some patterns with commas, or anything if there are none.

    A pattern is for the path below the folder: `*` is anything but a slash, `**` anything. One without a slash is for
    the name alone.
    """
    if include is None:
        return lambda name: True
    patterns = [part.strip() for part in include.split(",") if part.strip()]
    expression = re.compile("|".join(_regex(part if "/" in part else f"**/{part}") for part in patterns))
    return lambda name: expression.fullmatch(name) is not None


def _regex(pattern: str) -> str:
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern.removeprefix("./"))
    return "".join(WILD[part] if part in WILD else re.escape(part) for part in parts)


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


def _walk(path: Path, name: str, fits: Fits, *, is_named: bool) -> Iterator[ListedFile]:
    """A file, or all files below a folder in sorted order; `name` is its path below the source."""
    reason = None if is_named else _reason_to_leave(path)
    if reason is None and os.path.isdir(path):
        try:
            with os.scandir(path) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            for entry in entries:
                below = f"{name}/{entry.name}" if name else entry.name
                is_folder = os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
                if is_folder or fits(below):
                    yield from _walk(path / entry.name, below, fits, is_named=False)
            return
    # A name that is not UTF-8 can be shown, too.
    yield ListedFile(path, (name or str(path)).encode(errors="replace").decode(), is_named, reason)


def _encoding(path: Path, *, is_named: bool) -> Encoding | str:
    if is_named and os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"data.source {path} is no regular file: write what comes from it to one first")
    try:
        return Encoding() if path.suffix.lower() == ".parquet" and path.is_file() else find_encoding(path)
    except NoText as error:
        if is_named:
            raise
        return error.reason + (f", convert with {error.command}" if error.command else "")


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
