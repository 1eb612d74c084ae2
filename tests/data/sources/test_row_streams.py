"""Rows of JSON lines and Parquet files, one after the other, in bounded memory."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from reliability.text_memory import read_through

from data.sources import row_streams
from data.sources.row_streams import stream_rows
from training.runtime.errors import InputError


def test_json_lines_have_their_line_and_what_is_wrong_with_bad_ones(tmp_path: Path) -> None:
    file = tmp_path / "a.JSONL"
    lines = ['{"text": "é\\n", "n": 1.50}', "", '{"translation": {"en": "yes"}}', '["x"]', '{"text": ']
    file.write_bytes("\ufeff".encode() + "\r\n".join(lines).encode())
    assert list(stream_rows(file, ["text"])) == [
        (f"{file}, line 1", {"text": "é\n", "n": "1.50"}),
        (f"{file}, line 3", {"translation.en": "yes"}),
        (f"{file}, line 4", "expected a JSON object, got list"),
        (f"{file}, line 5", "expected a JSON object, got none (Expecting value)"),
    ]


def test_an_enormous_line_is_one_bad_row_and_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_streams, "MAX_LINE", 100)
    for tail in ('\n{"text": "after"}\n', ""):
        for longest in (100, 101, 202, 1000):
            row = json.dumps({"text": "x" * (longest - 12)})
            (tmp_path / "a.jsonl").write_text('{"text": "before"}\n' + row + tail)
            first, second, *others = (row for _, row in stream_rows(tmp_path / "a.jsonl", ["text"]))
            assert first == {"text": "before"}
            too_long = "expected a JSON object of at most 100 characters, got more"
            assert second == ({"text": "x" * 88} if longest == 100 else too_long)
            assert others == ([{"text": "after"}] if tail else [])


def test_parquet_rows_are_those_of_the_columns_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    translation = [{"en": "yes", "de": "ja"}, None, {"en": None, "de": "nein"}]
    table = pyarrow.table({"text": ["one", None, "three"], "n": [1, 2, 3], "translation": translation})
    pyarrow.parquet.write_table(table, file, row_group_size=2)
    assert list(stream_rows(file, ["text", "translation.en"])) == [
        (f"{file}, row 1", {"text": "one", "translation.en": "yes"}),
        (f"{file}, row 2", {"text": None, "translation": None}),
        (f"{file}, row 3", {"text": "three", "translation.en": None}),
    ]
    assert [row for _, row in stream_rows(file, ["n"])] == [{"n": 1}, {"n": 2}, {"n": 3}]


def test_bytes_in_a_column_of_text_are_a_bad_row(tmp_path: Path) -> None:
    binary = pyarrow.array([b"ok", b"\xff\xfe"], pyarrow.binary())
    text = pyarrow.Array.from_buffers(pyarrow.string(), 2, binary.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"text": text}), tmp_path / "a.parquet")
    rows = [row for _, row in stream_rows(tmp_path / "a.parquet", ["text"])]
    assert rows == [{"text": "ok"}, "expected text in UTF-8, got other bytes"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.jsonl", None, "cannot read .*gone.jsonl: No such file or directory"),
        ("gone.parquet", None, "cannot read .*gone.parquet: .*No such file or directory"),
        ("a.jsonl", b"\xff\xfe\0", "a.jsonl is damaged UTF-16LE"),
        ("a.parquet", b"PAR1 of another kind", r"a.parquet is no Parquet file, or a damaged one \("),
    ],
)
def test_a_file_that_is_none_of_these_is_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(stream_rows(tmp_path / name, ["text"]))


def test_a_column_that_a_parquet_file_lacks_is_named_with_those_it_has(tmp_path: Path) -> None:
    table = pyarrow.table({"body": ["x"], "translation": [{"en": "yes"}]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a.parquet has no column tran: choose one of body, translation.en"):
        list(stream_rows(tmp_path / "a.parquet", ["tran"]))


def test_a_damaged_parquet_file_is_named_when_its_rows_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": [f"row {n}" for n in range(9000)]}), file, use_dictionary=False)
    content = bytearray(file.read_bytes())
    content[4:2000] = bytes(1996)
    file.write_bytes(content)
    with pytest.raises(InputError, match="a.parquet is no Parquet file, or a damaged one|cannot read .*a.parquet"):
        list(stream_rows(file, ["text"]))


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A folder with 64 MB of text in 2,000 rows of JSON and one row group of Parquet."""
    text = [f"{n} " + "lorem ipsum " * 2700 for n in range(2000)]
    table = pyarrow.table({"text": text})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", use_dictionary=False, write_batch_size=32)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in text))
    return tmp_path


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_rows_of_a_large_file_take_little_memory(large: Path, name: str) -> None:
    count, most = read_through(stream_rows(large / name, ["text"]))
    assert count == 2000
    assert most < 30e6
