"""Writing files so that a crash leaves the old content or the new, never half of it."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file and flush it to the disk.

    Raises:
        OSError: The disk refuses; the error names the file.
    """
    try:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = str(path)
        raise


def replace_text(path: Path, text: str) -> None:
    """Replace a file's content in one move."""
    beside = path.with_name(f".{path.name}.new")
    write_synced(beside, text.encode())
    os.replace(beside, path)
    sync(path.parent)


def replace_link(link: Path, target: str) -> None:
    """Point a relative symbolic link elsewhere in one move."""
    beside = link.with_name(f".{link.name}.new")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    os.replace(beside, link)
    sync(link.parent)
