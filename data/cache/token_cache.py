"""Where tokens are kept on the disk: folders that exist whole or not at all, each under a key of what made it.

One that is interrupted starts over. Runs that want the same one at once wait for the first, which makes it for all.
"""

import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from training.runtime.errors import InputError
from training.storage.files import sync

PARTIAL = ".partial"
SMALL = 64 * 2**20
"""Bytes of a text whose tokens may lie among temporary files, which some systems keep in memory."""


def cache_folder() -> Path:
    """The folder of this project's tokens in the cache of Hugging Face's libraries."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.path.expanduser(home), "transformers-from-scratch", "tokens")


def cached(
    key: str, make: Callable[[Path], None], is_whole: Callable[[Path], bool], num_bytes: int
) -> tuple[Path, str]:
    """The folder under a key, made where it is not there.

    Args:
        key: The name of the folder.
        make: Fills an empty folder.
        is_whole: Whether a folder holds all that it should.
        num_bytes: Of the text: tokens of a small one lie among temporary files where the cache refuses them.

    Returns:
        The folder, and what is to be said of its place.

    Raises:
        InputError: The disk refuses.
    """
    try:
        return _made(cache_folder(), key, make, is_whole), ""
    except OSError as error:
        said = f"{error.strerror or error} in {cache_folder()}, the cache of tokens"
        if num_bytes > SMALL:
            raise InputError(f"{said}: set HF_HOME to a folder with room for a text of {num_bytes:,} bytes") from error
        try:
            return _made(_temporary_folder(), key, make, is_whole), f"{said}: they are in {_temporary_folder()}"
        except OSError as other:
            raise InputError(f"{said}: set HF_HOME to a folder that can be written to") from other


def find_cached(key: str, is_whole: Callable[[Path], bool]) -> Path | None:
    """The folder under a key, where there is one."""
    path = cache_folder() / key
    return path if is_whole(path) else None


def _temporary_folder() -> Path:
    """A folder for temporary files that nobody else may write to."""
    folder = Path(tempfile.gettempdir(), f"transformers-from-scratch-tokens-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{folder} can be written to by others")
    return folder


def _made(folder: Path, key: str, make: Callable[[Path], None], is_whole: Callable[[Path], bool]) -> Path:
    path = folder / key
    if is_whole(path):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f"{key}.lock") as alone:
        if is_whole(path):
            return path
        if alone:
            _clear(folder, key)
        partial = folder / f"{key}.{secrets.token_hex(4)}{PARTIAL}"
        try:
            partial.mkdir()
            make(partial)
            sync(partial)
            _move(partial, path, is_whole)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        sync(folder)
    return path


def _move(partial: Path, path: Path, is_whole: Callable[[Path], bool]) -> None:
    try:
        partial.rename(path)
    except OSError:  # Where there are no locks another run may have been faster.
        if not is_whole(path):
            raise


def _clear(folder: Path, key: str) -> None:
    """Remove what lies damaged under a key that is locked, and what runs that were killed have left."""
    import fcntl

    shutil.rmtree(folder / key, ignore_errors=True)
    for partial in folder.glob(f"*{PARTIAL}"):
        other = partial.name.split(".")[0]
        with suppress(OSError), (folder / f"{other}.lock").open("a") as lock:
            if other != key:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """While entered, no other process is; a file system without locks lets all of them in, and that is given."""
    # Windows has none: imported above, it would end every command there before it could say so.
    import fcntl

    with path.open("a") as lock:
        alone = True
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("note        another run makes the same tokens: waiting for them", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            alone = False
        yield alone
