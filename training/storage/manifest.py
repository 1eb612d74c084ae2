"""The manifest of a checkpoint: the size and SHA-256 of each of its files, and a seal of its own.

It is written last and read first: what it does not match is not what was written.
"""

import hashlib
import json
import os
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.config.sections import shown
from training.runtime.errors import InputError
from training.storage.files import replace_text, sync, write_synced
from training.storage.hashing import HashedReading
from training.storage.reading import (
    Count,
    FileError,
    MalformedFileError,
    MissingFileError,
    built,
    naming,
    open_file,
    read_bytes,
    read_json,
)
from training.storage.tensor_file import SUFFIX, Stored, read_header, read_tensors, write_tensors
from training.storage.whole import wholes

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
FORMAT = 1


class CheckpointError(InputError):
    """A checkpoint is missing, or cannot be read or written."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is incomplete, or its content is not what was written."""


@dataclass
class _Manifest:
    format: Count
    files: dict[str, Any]
    seal: str


@dataclass
class Entry:
    """What a manifest says of a file."""

    size: Count
    sha256: str


def seal(version: int, files: Mapping[str, Any]) -> str:
    """What a manifest says of itself."""
    return hashlib.sha256(json.dumps([version, files], sort_keys=True).encode()).hexdigest()


class SealedFiles:
    """The files of a checkpoint: each has the size that the manifest says, and a text its SHA-256.

    Files of tensors stay open, so that what becomes of their names changes nothing; `verify` compares them, and so does
    whatever reads one to its end.

    Args:
        folder: Of the checkpoint.

    Attributes:
        texts: The content of each file that is not of tensors.

    Raises:
        DamagedCheckpointError: It is incomplete or damaged; the message names the file.
        CheckpointError: It is missing, cannot be read, or has the format of another version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.texts = folder, dict[str, bytes]()
        self._entries = verified_manifest(folder)
        self._open: dict[str, BufferedReader] = {}
        weakref.finalize(self, _close, self._open)
        for name, entry in self._entries.items():
            with _judging(folder, name):
                if name.endswith(SUFFIX):
                    self._open[name] = open_file(folder / name, size=entry.size)
                else:
                    self.texts[name] = read_bytes(folder / name, size=entry.size)
                    self._compare(name, hashlib.sha256(self.texts[name]).hexdigest())

    @property
    def names(self) -> set[str]:
        """What files there are."""
        return set(self._entries)

    def verify(self, *names: str) -> None:
        """Compare files of tensors with the manifest, all of them without names, several at a time.

        Raises:
            DamagedCheckpointError: One is not what was written; the message names the first.
            CheckpointError: One cannot be read.
        """
        names = names or tuple(self._open)
        with ThreadPoolExecutor(len(names) or 1) as pool:
            for name, sha256 in zip(names, pool.map(self._digest, names), strict=True):
                self._compare(name, sha256)

    def header(self, name: str) -> dict[str, Stored]:
        """What a file of tensors holds, before its content is compared. Raises: as `tensors`."""
        with self._reading(name) as reading:
            return read_header(reading)

    def tensors(self, name: str) -> "Iterator[tuple[str, Tensor]]":
        """The tensors of a file, one at a time. Only who has read to the end knows that they are what was written.

        Raises:
            DamagedCheckpointError: They are not; at the end at the latest.
            CheckpointError: They are, and make no sense, or the file cannot be read.
        """
        with self._reading(name) as reading:
            yield from read_tensors(reading)
            self._compare(name, reading.sha256)

    @contextmanager
    def _reading(self, name: str) -> Iterator[HashedReading]:
        path = self.folder / name
        try:
            with naming(path):
                yield HashedReading(self._open[name], path)
        except MalformedFileError as error:
            self.verify(name)  # Damage is told as such.
            raise CheckpointError(f"{path} cannot be read: {error.fault}") from error
        except FileError as error:
            raise CheckpointError(f"cannot read checkpoint {self.folder}: {name}: {error.fault}") from error

    def _digest(self, name: str) -> str:
        with _judging(self.folder, name), naming(self.folder / name):
            self._open[name].seek(0)
            return hashlib.file_digest(self._open[name], "sha256").hexdigest()

    def _compare(self, name: str, sha256: str) -> None:
        if sha256 != self._entries[name].sha256:
            raise DamagedCheckpointError(f"checkpoint {self.folder} is damaged: {name} does not match its SHA-256")


def _close(files: Mapping[str, BufferedReader]) -> None:
    for file in files.values():
        file.close()


def verified_manifest(folder: Path) -> dict[str, Entry]:
    """Size and SHA-256 of each file of a checkpoint. Raises: as `SealedFiles`."""
    file = folder / MANIFEST
    with _judging(folder, MANIFEST):
        manifest: _Manifest = built(_Manifest, read_json(file), file)
        if manifest.seal != seal(manifest.format, manifest.files):
            raise DamagedCheckpointError(f"checkpoint {folder} is damaged: {MANIFEST} does not match its own seal")
        if manifest.format != FORMAT:
            raise CheckpointError(f"checkpoint {folder} has format {manifest.format}, this version reads {FORMAT} only")
        for name in manifest.files:
            if os.path.basename(name) != name:
                raise MalformedFileError(file, f"{shown(name)} is no name of a file")
        entries: dict[str, Entry] = built(dict[str, Entry], manifest.files, file, "files")
    return entries


@contextmanager
def _judging(folder: Path, name: str) -> Iterator[None]:
    """Raise what is wrong with a file as what is wrong with its checkpoint."""
    try:
        yield
    except MissingFileError as error:
        if not folder.exists():
            raise CheckpointError(f"checkpoint {folder} does not exist") from error
        if name == MANIFEST:
            raise DamagedCheckpointError(f"{folder} has no manifest, so it is not a complete checkpoint") from error
        raise DamagedCheckpointError(f"checkpoint {folder} is damaged: {name} is missing") from error
    except MalformedFileError as error:
        fault = f"{name} makes no sense ({error.fault})" if name == MANIFEST else f"{name}: {error.fault}"
        raise DamagedCheckpointError(f"checkpoint {folder} is damaged: {fault}") from error
    except FileError as error:
        raise CheckpointError(f"cannot read checkpoint {folder}: {name}: {error.fault}") from error


def write_sealed(
    folder: Path,
    tensors: "Mapping[str, Mapping[str, Tensor]]",
    values: "Iterator[Tensor] | None",
    texts: Mapping[str, str],
) -> None:
    """Write the folder of a checkpoint, flushed to the disk before its manifest is, and the manifest too.

    Args:
        folder: It must not exist.
        tensors: For each safetensors file, its tensors.
        values: Their values, as `wholes` gives them, one file after another; None to write all files at once.
        texts: For each other file, its content.

    Raises:
        OSError: The disk refused.
    """

    def write(name: str) -> tuple[int, str]:
        group = tensors[name]
        own = wholes({name: group}) if values is None else islice(values, len(group))
        return write_tensors(folder / f"{name}{SUFFIX}", group, own)

    folder.mkdir()
    with ThreadPoolExecutor(len(tensors) or 1) as pool:  # A core hashes less in a second than most disks write.
        sizes = (pool.map if values is None else map)(write, tensors)
        written = dict(zip((f"{name}{SUFFIX}" for name in tensors), sizes, strict=True))
    entries = {name: Entry(size, sha256) for name, (size, sha256) in written.items()}
    entries |= {name: _write_text(folder / name, text) for name, text in texts.items()}
    sync(folder)
    write_synced(folder / MANIFEST, manifest_of(entries).encode())
    sync(folder)


def add_sealed(folder: Path, name: str, text: str, instead_of: str | None) -> None:
    """Add a text to a checkpoint in one move, which is that of its manifest: before it, nothing has changed.

    Args:
        folder: Of the checkpoint.
        name: A file that is not of it yet.
        text: Its content.
        instead_of: A file that it takes the place of.

    Raises:
        OSError: The disk refused.
        CheckpointError: The manifest cannot be read.
    """
    entries = verified_manifest(folder) | {name: _write_text(folder / name, text)}
    if instead_of is not None:
        del entries[instead_of]
    sync(folder)
    replace_text(folder / MANIFEST, manifest_of(entries))
    if instead_of is not None:
        (folder / instead_of).unlink()


def _write_text(path: Path, text: str) -> Entry:
    content = text.encode()
    write_synced(path, content)
    return Entry(len(content), hashlib.sha256(content).hexdigest())


def manifest_of(entries: Mapping[str, Entry]) -> str:
    """The content of the manifest of such files."""
    files = {name: {"size": entry.size, "sha256": entry.sha256} for name, entry in sorted(entries.items())}
    return json.dumps({"format": FORMAT, "files": files, "seal": seal(FORMAT, files)}, indent=1)
