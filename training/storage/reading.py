"""Strict readers of the files of a run: what is not as it should be is one error, with the file and its fault.

A file is regular, of a bounded size, and of its format. Opening one never waits: not even for the writer of a FIFO.
"""

import json
import math
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from io import BufferedReader
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple, NoReturn, Union, get_args, get_origin
from typing import get_type_hints as type_hints

import yaml

from training.config.plain_yaml import load_yaml
from training.config.sections import shown
from training.runtime.errors import InputError

MAX_BYTES = 64 * 2**20
"""Of a JSON, YAML or text file: far more than a vocabulary of 200,000 tokens takes."""
MAX_LINE = 2**16
"""Bytes of a line of JSON."""
_BLOCK = 2**16
_MAX_DIGITS = 19


class FileError(InputError):
    """A file cannot be read, though it may be as it should.

    Args:
        file: Which one.
        fault: What is wrong with it.
    """

    def __init__(self, file: Path, fault: str) -> None:
        super().__init__(f"{file}: {fault}")
        self.fault = fault


class MissingFileError(FileError):
    """There is no such file."""


class MalformedFileError(FileError):
    """A file can be read, and its content is not what it should be."""


class Range(NamedTuple):
    """What a number may be, both ends included; the second part of an `Annotated` type."""

    least: float
    most: float


Count = Annotated[int, Range(0, 10**15)]
Amount = Annotated[float, Range(0, 1e300)]
Scalar = str | int | float | bool | None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Raise what the system refuses of a file as a `FileError`."""
    try:
        yield
    except FileNotFoundError as error:
        raise MissingFileError(path, "there is no such file") from error
    except OSError as error:
        raise FileError(path, error.strerror or str(error)) from error


def open_file(path: Path, *, size: int | None = None) -> BufferedReader:
    """Open a regular file to read, or raise a `FileError` at once.

    Args:
        path: The file.
        size: How large it must be, in bytes; None for any size.

    Raises:
        FileError: It cannot be read.
        MalformedFileError: It has another size.
    """
    with naming(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    file: BufferedReader = regular(descriptor, path, "rb")
    found = os.fstat(descriptor).st_size
    if size is not None and found != size:
        file.close()
        raise MalformedFileError(path, f"expected {size:,} bytes, found {found:,}")
    return file


def regular(descriptor: int, path: Path, mode: str) -> Any:
    """The open file of a descriptor; where that is a folder's, FIFO's or device's, a `FileError`."""
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind):
        return open(descriptor, mode)
    os.close(descriptor)
    raise FileError(path, "Is a directory" if stat.S_ISDIR(kind) else "not a regular file, but a FIFO or a device")


def read_bytes(path: Path, *, max_bytes: int = MAX_BYTES, size: int | None = None) -> bytes:
    """The content of a file.

    Args:
        path: The file.
        max_bytes: How large it may be, in bytes.
        size: How large it must be; None for any up to `max_bytes`.

    Raises:
        FileError: It cannot be read.
        MalformedFileError: It has another size, and nothing was read.
    """
    with open_file(path, size=size) as file, naming(path):
        found = os.fstat(file.fileno()).st_size
        if size is None and found > max_bytes:
            raise MalformedFileError(path, f"expected at most {max_bytes:,} bytes, found {found:,}")
        return file.read()


def read_text(path: Path, *, max_bytes: int = MAX_BYTES) -> str:
    """The content of a file of UTF-8, or a `FileError`."""
    return decoded(read_bytes(path, max_bytes=max_bytes), path)


def decoded(content: bytes, path: Path) -> str:
    """The text of a file's content, or a `MalformedFileError` where that is not UTF-8."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise MalformedFileError(path, f"not UTF-8 (byte {error.start:,} is 0x{content[error.start]:02x})") from error


def read_json(path: Path) -> Any:
    """The value in a JSON file, or a `FileError`; see `parse_json`."""
    return parse_json(read_text(path), path)


def parse_json(text: str, path: Path) -> Any:
    """The value of JSON text: with numbers that are finite and no longer than 64 bits, and names that are given once.

    Raises:
        MalformedFileError: It is not, or it is nested too deep.
    """
    try:
        return _DECODER.decode(text)
    except RecursionError as error:
        raise MalformedFileError(path, "nested too deep") from error
    except json.JSONDecodeError as error:
        raise MalformedFileError(path, f"not JSON ({error})") from error
    except ValueError as error:
        raise MalformedFileError(path, str(error)) from error


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {shown(text)}, which is too large")
    return value


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text}, which is no number of JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name that is given twice")
    return values


_DECODER = json.JSONDecoder(parse_int=_integer, parse_float=_float, parse_constant=_constant, object_pairs_hook=_object)


def read_json_lines(
    path: Path, check: Callable[[Any], None], *, newest_first: bool = False
) -> Iterator[tuple[bytes, Any]]:
    """The lines of a file of JSON lines, each with its value; one at the end that was cut short is left out.

    Args:
        path: The file.
        check: Raises a `MalformedFileError` for a value that is not what it should be.
        newest_first: Read from the end, and no more than is asked for.

    Raises:
        FileError, MalformedFileError: The file cannot be read, or a line is not what it should be.
    """
    with open_file(path) as file, naming(path):
        lines = _backward(file) if newest_first else _forward(file)
        for number, (line, ended) in enumerate(lines, start=1):
            where = f"line {number:,}{' from the end' if newest_first else ''}"
            if len(line) > MAX_LINE:
                raise MalformedFileError(path, f"{where}: longer than {MAX_LINE:,} bytes")
            if not line.strip():
                continue
            try:
                value = parse_json(decoded(line, path), path)
                check(value)
            except MalformedFileError as error:
                if not ended and isinstance(error.__cause__, json.JSONDecodeError):
                    continue
                raise MalformedFileError(path, f"{where}: {error.fault}") from error
            yield line, value


def _forward(file: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """The lines, each with whether it was ended; of one that is too long, its beginning."""
    while line := file.readline(MAX_LINE + 2):
        yield line.removesuffix(b"\n"), line.endswith(b"\n")


def _backward(file: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """The same from the last line to the first."""
    position, rest, ended = file.seek(0, os.SEEK_END), b"", False
    while position and len(rest) <= MAX_LINE:
        size = min(_BLOCK, position)
        position = file.seek(position - size)
        rest, *lines = (file.read(size) + rest).split(b"\n")
        for line in reversed(lines):
            yield line, ended
            ended = True
    yield rest, ended


def parse_yaml(text: str, path: Path) -> Any:
    """The value of plain YAML, or a `MalformedFileError`; see `load_yaml`."""
    try:
        return load_yaml(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise MalformedFileError(path, f"not plain YAML ({' '.join(str(error).split())[:200]})") from error


def read_yaml(path: Path) -> Any:
    """The value in a YAML file, or a `FileError`; see `parse_yaml`."""
    return parse_yaml(read_text(path), path)


def built(annotation: Any, value: Any, path: Path, name: str = "") -> Any:
    """What a file holds, as its type has it: a dataclass is made of an object, without names that it does not have.

    Args:
        annotation: The type: a number, text, bool, None, list, dict of names, dataclass, Literal, a union of these, or
            `Annotated` with a `Range` for the numbers that are allowed.
        value: As JSON or YAML gave it.
        path: The file.
        name: What to call the value.

    Raises:
        MalformedFileError: A field is missing, or of another type or range than the annotation's.
    """
    kind, inner = get_origin(annotation) or annotation, get_args(annotation)
    if not _is_of(value, annotation):
        prefix = f"{name}: " if name else ""
        raise MalformedFileError(path, f"{prefix}expected {_described(annotation)}, got {shown(value)}")
    if kind in (Union, UnionType):
        return built(next(choice for choice in inner if _is_of(value, choice)), value, path, name)
    if kind is list:
        return [built(inner[0], part, path, f"{name}[{index}]") for index, part in enumerate(value)]
    has_fields = is_dataclass(kind)
    if kind is not dict and not has_fields:
        return value
    parts = type_hints(kind, include_extras=True) if has_fields else dict.fromkeys(value, inner[1])
    for field in fields(kind) if has_fields else ():
        if field.name not in value and field.default is MISSING and field.default_factory is MISSING:
            raise MalformedFileError(path, f"{_inside(name, field.name)} is missing")
    return kind(**{key: built(parts[key], value[key], path, _inside(name, key)) for key in value if key in parts})


def _is_of(value: Any, annotation: Any) -> bool:
    """Whether a value is of a type, whatever its parts are."""
    kind, inner = get_origin(annotation) or annotation, get_args(annotation)
    if kind in (Union, UnionType):
        return any(_is_of(value, choice) for choice in inner)
    if kind is Annotated:
        return _is_of(value, inner[0]) and inner[1].least <= value <= inner[1].most
    if kind is Literal:
        return type(value) is str and value in inner
    if kind is str:
        return type(value) is str and not any("\ud800" <= character <= "\udfff" for character in value)
    if kind is float:
        return type(value) in (int, float)
    return kind is Any or type(value) is (dict if is_dataclass(kind) else kind)


def _inside(name: str, key: str) -> str:
    return f"{name}.{key}" if name else shown(key)[1:-1]


_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    NoneType: "null",
    list: "a list",
}


def _described(annotation: Any) -> str:
    kind, inner = get_origin(annotation) or annotation, get_args(annotation)
    if kind is Annotated:
        return f"{_described(inner[0])} from {inner[1].least:g} to {inner[1].most:g}"
    if kind in (Union, UnionType):
        return " or ".join(map(_described, inner))
    return f"one of {', '.join(map(repr, inner))}" if kind is Literal else _WORDS.get(kind, "an object")
