"""Builds and loads libraries in C++."""

import ctypes
import hashlib
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")


class NativeError(Exception):
    """Native code cannot be had; the message says why."""


def library(source: Path, *flags: str) -> ctypes.CDLL:
    """The library of a source file, built with `FLAGS` and more unless it was before.

    Raises:
        NativeError: There is no compiler, or it failed.
    """
    compiler = find_compiler()
    try:
        built = _cache_folder() / f"{source.stem}-{_fingerprint(compiler, source, flags)}.so"
        if not built.exists():
            with tempfile.TemporaryDirectory(dir=built.parent) as folder:
                # Whoever builds it at the same time replaces it by the same.
                build(compiler, source, flags, Path(folder, built.name)).replace(built)
        return _load(built)
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {error.returncode}"]
        raise NativeError(f"{compiler} failed: {said[0]}") from error
    except OSError as error:
        raise NativeError(f"{compiler} could not build it: {error}") from error


def _load(built: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(built))
    except OSError:
        built.unlink()  # Damaged: the next one builds it anew.
        raise


def build(compiler: str, source: Path, flags: Sequence[str], output: Path) -> Path:
    """Compile the library into a file, and return that."""
    command = [*shlex.split(compiler), *FLAGS, *flags, str(source), "-o", str(output)]
    subprocess.run(command, capture_output=True, check=True)
    return output


def find_compiler() -> str:
    """The C++ compiler.

    Raises:
        NativeError: There is none.
    """
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        raise NativeError("there is no C++ compiler: install g++, or name one in CXX")
    return compiler


def _cache_folder() -> Path:
    """The user's cache; where there is no home, or none that can be written to, a folder for temporary files.

    Raises:
        NativeError: That one belongs to somebody else, whose code would be run.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "transformers-from-scratch"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):
        pass
    folder = Path(tempfile.gettempdir(), f"transformers-from-scratch-native-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise NativeError(f"{folder} can be written to by others: set XDG_CACHE_HOME to a folder of your own")
    return folder


def _fingerprint(compiler: str, source: Path, flags: Sequence[str]) -> str:
    """Of all that the result depends on: the source, the compiler and its flags, and the processor."""
    version = subprocess.run([*shlex.split(compiler), "--version"], capture_output=True, check=True).stdout
    processor = Path("/proc/cpuinfo")
    lines = processor.read_text().splitlines() if processor.exists() else []
    features = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    content = repr((source.read_bytes(), version, FLAGS, flags, features))
    return hashlib.sha256(content.encode()).hexdigest()[:16]
