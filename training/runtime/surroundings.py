"""What a command finds around it: streams that may be closed, full, gone or unable to show a character; a home."""

import io
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any, TextIO


class _Unfailing(io.FileIO):
    """A descriptor that takes everything: what it refuses is dropped."""

    def write(self, data: Any) -> int:
        try:
            # None where a terminal that does not block is full.
            written: int | None = super().write(data)
        except OSError:
            written = None
        return len(data) if written is None else written


def mend_streams() -> None:
    """Let a command print whatever it wants: closed streams lead nowhere, and characters without a code become `?`.

    A descriptor that was closed is opened, so that no file of the command takes its number and its prints.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            stream = open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout is sys.__stdout__:
        sys.stdout.reconfigure(errors="replace")


def outlive_output() -> None:
    """Let no print fail from here on: a closed terminal, a dead reader or a full disk must not end a run.

    Only what the interpreter itself has opened is replaced, not what a notebook or a test has put in its place.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and stream is getattr(sys, f"__{name}__"):
            stream.flush()
            unfailing = io.BufferedWriter(_Unfailing(stream.fileno(), "w", closefd=False))
            lines = stream.line_buffering
            setattr(sys, name, io.TextIOWrapper(unfailing, stream.encoding, stream.errors, line_buffering=lines))


def flush_or_drop(stream: TextIO) -> None:
    """Write what a stream still holds; where it refuses, let it lead nowhere: the interpreter tries again at exit."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def mend_home() -> None:
    """Where this user has no home (a container's, without HOME and an entry), let libraries keep theirs in one.

    It is a folder for temporary files that nobody else may write to.
    """
    try:
        Path.home()
    except RuntimeError:
        folder = Path(tempfile.gettempdir(), f"transformers-from-scratch-home-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            folder = Path(tempfile.mkdtemp(prefix="transformers-from-scratch-home-"))
        os.environ["HOME"] = str(folder)
