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
from data.encodings import Encoding, NoText, find_encoding
from data.listing import listed
from training.runtime.errors import InputError

MAX_NAMED = 3
WILD = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
PROJECT, PYTHON_FILES = "transformers-from-scratch", "**/*.py"
PACKAGES = {"site-packages", "dist-packages"}
"""Folders that may stand below the standard library, and need not be of this environment."""

Fits = Callable[[str], bool]
"""Whether a file of a folder is asked for, by its path below that folder."""


class FoundFile(NamedTuple):
    """A file that is read, and how."""

    path: Path
    encoding: Encoding


class Found(NamedTuple):
    """The files of a source, where they came from, and what is done to read them, with what is left out."""

    files: tuple[FoundFile, ...]
    origin: str
    notes: tuple[str, ...]


def find_files(source: str, include: str | None = None) -> Found:
    """The files of a source: a file, a folder, a pattern such as `texts/*.txt`, or several of these with commas.

    A name that exists as it stands is no pattern and no list; `~` is the home folder. What is named must be text, or
    rows (.jsonl, .parquet); of what is only found, in a folder or by a pattern, the rest is left out. `include` says
    which files of folders are asked for; see `fitting`.

    Raises:
        InputError: Something that is named does not exist or is no text, or nothing is left.
    """
    fits = fitting(include)
    files, notes, rest = _sorted_out(
        (file, _name(file, path), encoding)
        for path, is_named in _expand(source)
        for file, encoding in _look(path, path, fits, is_named=is_named)
    )
    if not files:
        nothing = ": it is empty" if include is None else f" that fits data.include {include}"
        raise InputError(f"data.source {source} holds no text{f', only {rest}' if rest else nothing}")
    alone = len(files) == 1 and os.path.isfile(os.path.expanduser(source))
    count = f"{len(files):,} file{'s' * (len(files) > 1)}"
    return Found(files, source if alone else f"{source} ({count})", (*notes, *([f"left out: {rest}"] if rest else [])))


def python_files(include: str | None = None) -> Found:
    """The Python sources of this environment in UTF-8: the standard library, then the packages, without this project.

    Those of either are in sorted order, wherever they are installed.
    """
    looked = list[tuple[Path, str, Encoding | str]]()
    roots = dict.fromkeys(os.path.realpath(sysconfig.get_path(kind)) for kind in ("stdlib", "purelib", "platlib"))
    wanted, own = fitting(include or PYTHON_FILES), _own_files()
    for root in map(Path, roots):

        def fits(name: str) -> bool:
            return name.endswith(".py") and name not in own and PACKAGES.isdisjoint(name.split("/")) and wanted(name)

        for file, found in _look(root, root, fits, is_named=True):
            other = found.codec not in ("utf-8", "UTF-8") if isinstance(found, Encoding) else "UTF-8" in found
            looked.append((file, str(file.relative_to(root)), "not UTF-8" if other else found))
    files, notes, rest = _sorted_out(looked)
    size = sum(os.stat(file.path).st_size for file in files)
    note = f"{len(files):,} files, {size:,} bytes" + (f"; left out: {rest}" if rest else "")
    return Found(files, "the Python sources of this environment", (note, *notes))


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


def _sorted_out(
    looked: Iterable[tuple[Path, str, Encoding | str]],
) -> tuple[tuple[FoundFile, ...], list[str], str]:
    """The files that can be read, notes on how some of them are, and what is left out, in words."""
    files = list[FoundFile]()
    read, left_out = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for path, name, found in looked:
        if isinstance(found, str):
            left_out[found.removeprefix("is ")].append(name)
            continue
        files.append(FoundFile(path, found))
        if found.note is not None:
            read[found.note].append(name)
    rest = "; ".join(f"{len(names):,} {reason}: {listed(names, MAX_NAMED)}" for reason, names in left_out.items())
    return tuple(files), [f"{note}: {listed(names, MAX_NAMED)}" for note, names in read.items()], rest


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


def _look(path: Path, source: Path, fits: Fits, *, is_named: bool) -> Iterator[tuple[Path, Encoding | str]]:
    """A file, or all files below a folder in sorted order, each with its encoding or the reason why it is left out."""
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
            below = path / name
            if os.path.isdir(below) or fits(below.relative_to(source).as_posix()):
                yield from _look(below, source, fits, is_named=False)
    else:
        yield path, _encoding(path, is_named=is_named)


def _encoding(path: Path, *, is_named: bool) -> Encoding | str:
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


def _name(file: Path, source: Path) -> str:
    """The path of a file below its source, if that is a folder; a name that is not UTF-8 can be shown, too."""
    name = str(file.relative_to(source) if os.path.isdir(source) else file)
    return name.encode(errors="replace").decode()
