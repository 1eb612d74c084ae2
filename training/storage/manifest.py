"""The manifest of a checkpoint: the size and SHA-256 of each of its files, and a seal of its own.

It is written last and read first: what it does not match is not what was written.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.config.sections import shown
from training.runtime.errors import InputError
from training.storage.reading import (
    Count,
    FileError,
    MalformedFileError,
    MissingFileError,
    built,
    misfit,
    read_bytes,
    read_json,
)

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
class _Entry:
    size: Count
    sha256: str


def seal(version: int, files: Mapping[str, Any]) -> str:
    """What a manifest says of itself."""
    return hashlib.sha256(json.dumps([version, files], sort_keys=True).encode()).hexdigest()


def verified_contents(folder: Path) -> dict[str, bytes]:
    """Read all files of a checkpoint, each against the manifest.

    Raises:
        DamagedCheckpointError: It is incomplete or damaged; the message names the file.
        CheckpointError: It is missing, cannot be read, or has the format of another version.
    """
    contents = {}
    for name, expected in verified_manifest(folder).items():
        try:
            content = read_bytes(folder / name, size=expected["size"])
        except MissingFileError as error:
            raise DamagedCheckpointError(f"checkpoint {folder} is damaged: {name} is missing") from error
        except MalformedFileError as error:
            raise DamagedCheckpointError(f"checkpoint {folder} is damaged: {name}: {error.fault}") from error
        except FileError as error:
            raise CheckpointError(f"cannot read checkpoint {folder}: {name}: {error.fault}") from error
        if hashlib.sha256(content).hexdigest() != expected["sha256"]:
            raise DamagedCheckpointError(f"checkpoint {folder} is damaged: {name} does not match its SHA-256")
        contents[name] = content
    return contents


def verified_manifest(folder: Path) -> dict[str, Any]:
    """Size and SHA-256 of each file of a checkpoint. Raises: as `verified_contents`."""
    file = folder / MANIFEST
    try:
        manifest = built(_Manifest, read_json(file), file)
    except MissingFileError as error:
        if not folder.exists():
            raise CheckpointError(f"checkpoint {folder} does not exist") from error
        raise DamagedCheckpointError(f"{folder} has no manifest, so it is not a complete checkpoint") from error
    except MalformedFileError as error:
        fault = f"{MANIFEST} makes no sense ({error.fault})"
        raise DamagedCheckpointError(f"checkpoint {folder} is damaged: {fault}") from error
    except FileError as error:
        raise CheckpointError(f"cannot read checkpoint {folder}: {MANIFEST}: {error.fault}") from error
    if manifest.seal != seal(manifest.format, manifest.files):
        raise DamagedCheckpointError(f"checkpoint {folder} is damaged: {MANIFEST} does not match its own seal")
    if manifest.format != FORMAT:
        raise CheckpointError(f"checkpoint {folder} has format {manifest.format}, this version reads {FORMAT} only")
    odd = next(
        (f"{shown(name)} is no name of a file" for name in manifest.files if os.path.basename(name) != name), None
    )
    unfit = odd or misfit(manifest.files, dict[str, _Entry], "files")
    if unfit is not None:
        raise DamagedCheckpointError(f"checkpoint {folder} is damaged: {MANIFEST} makes no sense ({unfit})")
    return manifest.files
