"""Writing files so that a crash leaves the old content or the new, never half of it.

Some file systems cannot do all that this takes: exFAT and Google Drive have no symbolic links, NFS and Lustre may have
no locks, CIFS and FUSE may flush no folders. A run does without, and says once which promise goes with it.
"""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Literal

Ability = Literal["links", "locks", "flushed folders"]
PROMISES: dict[Ability, str] = {
    "links": "has no symbolic links: best and last are small text files with the name of a checkpoint",
    "locks": "has no locks (flock): nothing keeps a second process from writing to the same run, so start only one",
    "flushed folders": "flushes no folders (fsync): a killed run loses nothing, but after a power failure its newest "
    "checkpoint may be gone",
}
_CANNOT = {
    *(errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL),
    *(errno.ENOLCK, errno.ENOTTY, errno.EBADF, errno.EISDIR, errno.EIO),
}
"""How file systems say that they cannot."""
_said: set[Ability] = set()


@contextmanager
def doing_without(ability: Ability, path: Path) -> Iterator[None]:
    """While entered, let go by that a file system cannot do something; say once what that costs.

    Args:
        ability: What is tried.
        path: Where.

    Raises:
        OSError: It fails for another reason.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        if ability not in _said:
            from tqdm import tqdm

            _said.add(ability)
            # Above the bar, where there is one.
            tqdm.write(f"warning     the file system of {path} {PROMISES[ability]} ({error.strerror})")
            sys.stdout.flush()


def sync(path: Path) -> None:
    """Flush a file's content to the disk, or a folder's list of names, where the file system can."""
    with doing_without("flushed folders", path) if path.is_dir() else nullcontext():
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
    """Point a relative symbolic link elsewhere in one move; it is a text file where there are no links."""
    beside = link.with_name(f".{link.name}.new")
    beside.unlink(missing_ok=True)
    with doing_without("links", link.parent):
        beside.symlink_to(target)
    if not beside.is_symlink():
        write_synced(beside, f"{target}\n".encode())
    os.replace(beside, link)
    sync(link.parent)
