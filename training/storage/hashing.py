"""Files that are hashed while they are written, and flushed to the disk, or while they are read."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from training.storage.reading import MalformedFileError

CHUNK = 4 * 2**20
"""Bytes that are written, or read, at once."""
FLUSH = 64 * 2**20
"""Bytes after which a flush begins while more is written: left to itself, the system keeps all of it for the end."""


def chunks(memory: memoryview) -> Iterator[memoryview]:
    """The same memory in parts."""
    return (memory[begin : begin + CHUNK] for begin in range(0, len(memory), CHUNK))


def write_hashed(path: Path, parts: Iterable[memoryview]) -> tuple[int, str]:
    """Write a new file and flush it; a thread hashes the bytes meanwhile, and another one flushes what is there so far.

    So it takes as long as the slowest of the three, and holds no more than one of the parts.

    Returns:
        The size and SHA-256 of what was written.

    Raises:
        OSError: The disk refused; the error names the file.
    """
    sha256, size, flushed = hashlib.sha256(), 0, 0
    try:
        with path.open("xb", buffering=0) as file, ThreadPoolExecutor(2) as pool:
            hashing: Future[None] = pool.submit(sha256.update, b"")
            flushing: Future[None] = hashing
            for chunk in (chunk for part in parts for chunk in chunks(part)):
                hashing.result()
                hashing = pool.submit(sha256.update, chunk)
                _write(file, chunk)
                size += len(chunk)
                if size - flushed >= FLUSH and flushing.done():
                    flushing.result()  # The system tells of a write that failed once only.
                    flushing, flushed = pool.submit(os.fsync, file.fileno()), size
            hashing.result()
            flushing.result()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = str(path)
        raise
    return size, sha256.hexdigest()


def _write(file: BinaryIO, chunk: memoryview) -> None:
    while chunk:
        chunk = chunk[file.write(chunk) :]


class HashedReading:
    """Reads an open file once from its beginning, and hashes what it reads: what is used is what was hashed.

    Args:
        file: The file.
        path: What to call it in an error.
    """

    def __init__(self, file: BufferedReader, path: Path) -> None:
        self.path, self.size = path, os.fstat(file.fileno()).st_size
        self._file, self._sha256 = file, hashlib.sha256()
        file.seek(0)

    @property
    def left(self) -> int:
        """Bytes that are still to be read."""
        return self.size - self._file.tell()

    @property
    def sha256(self) -> str:
        """Of what was read."""
        return self._sha256.hexdigest()

    def read(self, size: int) -> bytes:
        """The next bytes; see `fill`."""
        content = bytearray(size)
        self.fill(memoryview(content))
        return bytes(content)

    def fill(self, memory: memoryview) -> None:
        """Read as many bytes as the memory has, into it.

        Raises:
            MalformedFileError: There are no more so many.
        """
        for chunk in chunks(memory):
            if self._file.readinto(chunk) < len(chunk):
                raise MalformedFileError(self.path, f"it ends after {self._file.tell():,} bytes")
            self._sha256.update(chunk)
