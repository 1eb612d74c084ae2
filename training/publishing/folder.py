"""A folder that exists whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training.runtime.errors import InputError, refusal
from training.storage.files import sync


def check_new_folder(path: Path) -> None:
    """Raise an `InputError` now if `new_folder` could not make it later."""
    if os.path.lexists(path):
        raise InputError(f"{path} exists, and nothing is overwritten: choose another --output")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write files into, which is moved to its place when all of them are there; else nothing is.

    Args:
        path: Its place; folders above it are made.

    Raises:
        InputError: There is something already, or the disk refuses.
    """
    check_new_folder(path)
    beside = path.with_name(f".{path.name}.new-{os.getpid()}")
    try:
        beside.mkdir(parents=True)
        yield beside
        for file in beside.iterdir():
            sync(file)
        sync(beside)
        check_new_folder(path)  # Nobody else may have made it meanwhile.
        os.rename(beside, path)
        sync(path.parent)
    except OSError as error:
        raise refusal(error) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file of JSON, in UTF-8."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
