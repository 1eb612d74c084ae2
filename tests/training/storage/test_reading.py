"""What a file holds is as it should be, or it is one error that names the file and its fault."""

import errno
import json
import os
import pickle  # noqa: TID251 by which torch sends an error to other processes
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from data.sources.encodings import NoText
from training.runtime.errors import InputError
from training.storage import reading
from training.storage.reading import (
    Amount,
    Count,
    FileError,
    MalformedFileError,
    MissingFileError,
    Scalar,
    built,
    parse_json,
    parse_yaml,
    read_bytes,
    read_json,
    read_json_lines,
    read_text,
    read_yaml,
)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


KINDS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a FIFO": (os.mkfifo, "not a regular file"),
    "a folder": (Path.mkdir, "Is a directory"),
    "a loop of links": (loop, "Too many levels of symbolic links"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "nothing": (lambda path: None, "there is no such file"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("read", [read_bytes, read_text, read_json, read_yaml, lambda path: list(lines(path))])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str, read: Callable[[Path], Any]) -> None:
    make, fault = KINDS[kind]
    make(tmp_path / "file")
    with pytest.raises(FileError, match=f"^{tmp_path}/file: {fault}") as caught:
        read(tmp_path / "file")
    assert isinstance(caught.value, InputError)
    assert isinstance(caught.value, MissingFileError) == (kind == "nothing")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_what_the_system_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refusing(*arguments: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(reading.os, "open", refusing)
    with pytest.raises(FileError, match=f"^{tmp_path}/file: {os.strerror(number)}$"):
        read_bytes(tmp_path / "file")


def test_sizes_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bytes(tmp_path / "file", max_bytes=5) == read_bytes(tmp_path / "file", size=5) == b"12345"
    with pytest.raises(MalformedFileError, match="file: expected at most 4 bytes, found 5"):
        read_bytes(tmp_path / "file", max_bytes=4)
    with pytest.raises(MalformedFileError, match="file: expected 6 bytes, found 5"):
        read_bytes(tmp_path / "file", size=6)


def test_text_is_utf8(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes("ab\xff".encode("latin-1"))
    with pytest.raises(MalformedFileError, match=r"file: not UTF-8 \(byte 2 is 0xff\)"):
        read_text(tmp_path / "file")


NO_JSON = {
    '{"step": 1e999}': "the number '1e999', which is too large",
    f'{{"step": {"7" * 400}}}': "a number of 400 digits",
    f'{{"step": {"7" * 9999}}}': "a number of 9999 digits",
    '{"step": NaN}': "NaN, which is no number of JSON",
    "[-Infinity]": "-Infinity, which is no number of JSON",
    "[" * 100_000: "nested too deep",
    '{"a":' * 100_000: "nested too deep",
    '{"step": 1, "step": 2}': "a name that is given twice",
    '{"step": 1': "not JSON",
    "": "not JSON",
}


@pytest.mark.parametrize(("text", "fault"), NO_JSON.items(), ids=map(str, range(len(NO_JSON))))
def test_what_is_no_json_is_named(text: str, fault: str) -> None:
    with pytest.raises(MalformedFileError, match=f"^a.json: {fault}") as caught:
        parse_json(text, Path("a.json"))
    assert len(str(caught.value)) < 200


def test_yaml_is_plain() -> None:
    assert parse_yaml("a: {b: 1}", Path("a.yaml")) == {"a": {"b": 1}}
    for text in ("a: &b 1", "a: [", "[" * 100_000, "a: !!python/object:os.system x"):
        with pytest.raises(MalformedFileError, match=r"^a.yaml: not plain YAML \([^\n]*\)$"):
            parse_yaml(text, Path("a.yaml"))


def no_fault(value: Any) -> None:
    return None


def lines(path: Path, **options: Any) -> list[Any]:
    return [value for _, value in read_json_lines(path, no_fault, **options)]


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("block", [1, 7, 2**16])
@pytest.mark.parametrize("end", ["\n", "", '\n{"step": 4, "tr', "\n{", "\n\n"])
def test_lines_are_read_from_both_ends_without_one_that_was_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, newest_first: bool, block: int, end: str
) -> None:
    monkeypatch.setattr(reading, "_BLOCK", block)
    values = [{"step": step, "name": "ü" * step} for step in (1, 2, 3)]
    (tmp_path / "file").write_text("\n".join(json.dumps(value, ensure_ascii=False) for value in values) + end)
    assert lines(tmp_path / "file", newest_first=newest_first) == (values[::-1] if newest_first else values)


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("[" * 100_000, "longer than 65,536 bytes"),
        ("[" * 60_000, "nested too deep"),
        ('{"step": 2', "not JSON"),
        ('{"step": 1e999}', "the number '1e999'"),
        ("odd", "not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, fault: str, newest_first: bool) -> None:
    (tmp_path / "file").write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    place = "line 3 from the end" if newest_first else "line 2"  # The end itself counts as an empty line.
    with pytest.raises(MalformedFileError, match=f"file: {place}: {fault}"):
        lines(tmp_path / "file", newest_first=newest_first)


def test_of_a_long_file_only_the_end_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("nonsense\n" * 100_000 + '{"step": 3}\n')
    assert next(read_json_lines(tmp_path / "file", no_fault, newest_first=True)) == (b'{"step": 3}', {"step": 3})


@dataclass
class Inner:
    count: Count
    amount: Amount = 0.0
    name: str | None = None


@dataclass
class Outer:
    inner: Inner
    kind: Literal["a", "b"] = "a"
    values: dict[str, Scalar] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)


def test_a_dataclass_is_built_of_what_a_file_holds() -> None:
    value = {"inner": {"count": 3, "amount": 2, "name": None, "later": []}, "values": {"x": True}, "names": ["ü"]}
    assert built(Outer, value, Path("a")) == Outer(Inner(3, 2), values={"x": True}, names=["ü"])


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ([], r"expected an object, got \[\]"),
        ({}, "inner is missing"),
        ({"inner": {}}, "inner.count is missing"),
        ({"inner": {"count": "3"}}, r"inner.count: expected a whole number from 0 to 1e\+15, got '3'"),
        ({"inner": {"count": True}}, r"inner.count: expected a whole number from 0 to 1e\+15, got True"),
        ({"inner": {"count": 3.0}}, r"inner.count: expected a whole number from 0 to 1e\+15, got 3.0"),
        ({"inner": {"count": -1}}, r"inner.count: expected a whole number from 0 to 1e\+15, got -1"),
        ({"inner": {"count": 1, "amount": -0.5}}, "inner.amount: expected a number from 0 to"),
        ({"inner": {"count": 1, "name": 7}}, "inner.name: expected text or null, got 7"),
        ({"inner": {"count": 1}, "kind": "c"}, "kind: expected one of 'a', 'b', got 'c'"),
        ({"inner": {"count": 1}, "values": {"x": []}}, "values.x: expected text or a whole number or a number or"),
        ({"inner": {"count": 1}, "names": ["a", 1]}, r"names\[1\]: expected text, got 1"),
        ({"inner": {"count": 1}, "names": ["\ud800"]}, r"names\[0\]: expected text, got '\\ud800'"),
    ],
)
def test_what_does_not_fit_is_named(value: Any, fault: str) -> None:
    with pytest.raises(MalformedFileError, match=f"^a: {fault}"):
        built(Outer, value, Path("a"))


def test_numbers_fit_their_kind() -> None:
    assert [built(float, 3, Path("a")), built(float, 3.5, Path("a")), built(int | None, None, Path("a"))] == [
        3,
        3.5,
        None,
    ]
    with pytest.raises(MalformedFileError, match="^a: step: expected a whole number from 0 to"):
        built(Count, 10**15 + 1, Path("a"), "step")
    with pytest.raises(MalformedFileError, match="^a: x: expected a number, got 'b'$"):
        built(dict[str, float] | None, {"x": "b"}, Path("a"))


def test_an_error_can_be_sent_to_another_process(tmp_path: Path) -> None:
    errors = [MalformedFileError(tmp_path / "a.json", "not JSON"), NoText("a.txt", "is no text", "say which", " x")]
    for error in errors:
        found = pickle.loads(pickle.dumps(error))
        assert (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))
