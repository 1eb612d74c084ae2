"""Text files and folders of them, as a source names them: what is read, and what is left out, by its reason."""

import glob
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data.config import TEXT_SOURCES
from data.encodings import NoText, read_text
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
    found = _Found()
    for path, is_named in _expand(source):
        found.folder = path if os.path.isdir(path) else Path()
        if os.path.isdir(path) and is_named:
            found.visit_folder(path)
        elif is_named:
            found.read(path)
        else:
            found.visit(path)
    left_out = "; ".join(f"{len(names):,} {reason}: {_list(names)}" for reason, names in found.left_out.items())
    if not found.texts:
        raise InputError(f"data.source {source} holds no text{f', only {left_out}' if left_out else ': it is empty'}")
    notes = [f"{note}: {_list(names)}" for note, names in found.notes.items()]
    count = len(found.texts)
    alone = count == 1 and os.path.isfile(os.path.expanduser(source))
    return Texts(
        found.texts,
        source if alone else f"{source} ({count:,} file{'s' * (count > 1)})",
        (*notes, *([f"left out: {left_out}"] if left_out else [])),
    )


class _Found:
    """What has been read so far, and the names of what has not, by the reason."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.notes: defaultdict[str, list[str]] = defaultdict(list)
        self.left_out: defaultdict[str, list[str]] = defaultdict(list)
        self.folder = Path()

    def visit(self, path: Path) -> None:
        """Read a file that was found, or all files below a folder in sorted order, as far as they are texts."""
        if (reason := _reason_to_leave(path)) is not None:
            self._leave(path, reason)
        elif os.path.isdir(path):
            self.visit_folder(path)
        else:
            try:
                self.read(path)
            except NoText as error:
                self._leave(path, error.reason + (f", convert with {error.command}" if error.command else ""))

    def visit_folder(self, folder: Path) -> None:
        """Read the files below a folder, in sorted order."""
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            self._leave(folder, error.strerror or str(error))
            return
        for name in names:
            self.visit(folder / name)

    def read(self, path: Path) -> None:
        """Read a file, or raise a `NoText`."""
        text, note = read_text(path)
        self.texts.append(text)
        if note is not None:
            self.notes[note].append(self._name(path))

    def _leave(self, path: Path, reason: str) -> None:
        self.left_out[reason.removeprefix("is ")].append(self._name(path))

    def _name(self, path: Path) -> str:
        """A path as short as it is clear; a name that is not UTF-8 can be shown, too."""
        name = str(path.relative_to(self.folder) if path.is_relative_to(self.folder) else path)
        return name.encode(errors="replace").decode()


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


def _list(names: list[str]) -> str:
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more:,} more" if more > 0 else "")
