"""Corpora: Python sources, rows of files as documents, chunks, and what their fingerprints notice."""

import os
import sysconfig
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.cache import remembered
from data.config import TextConfig
from data.sources import files
from data.sources.documents import Chunk, InMemory, chunks, joined
from data.text import Source, load_source
from training.runtime.errors import InputError


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def put(files: dict[str, bytes | str]) -> None:
    for name, content in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())


def load(source: str, **options: str) -> Source:
    return load_source(TextConfig(source=source, **options))


def texts(source: Source) -> list[str]:
    assert all(chunk.last for chunk in source.documents)
    return [chunk.text for chunk in source.documents]


# Chunks.


@settings(deadline=None)
@given(st.text("a\n \r", max_size=80), st.lists(st.integers(1, 9), min_size=1), st.integers(2, 12))
def test_chunks_are_the_document_cut_at_lines_whatever_pieces_it_comes_in(
    text: str, lengths: list[int], size: int
) -> None:
    pieces, start = [], 0
    while start < len(text):
        pieces.append(text[start : start + lengths[len(pieces) % len(lengths)]])
        start += len(pieces[-1])
    cut = list(chunks(pieces, size))
    assert cut == list(chunks([text], size))
    assert "".join(chunk.text for chunk in cut) == text
    assert [chunk.last for chunk in cut] == [False] * (len(cut) - 1) + [True]
    start = 0
    for chunk in cut[:-1]:
        end, start = start + len(chunk.text), start + len(chunk.text)
        assert 0 < len(chunk.text) <= size
        if text[end - 2 : end + 1] != "a\na":
            assert "a\na" not in text[end - len(chunk.text) : end + 1]
            assert len(chunk.text) == size


def test_a_document_is_cut_behind_its_last_line_that_fits() -> None:
    assert list(chunks(["one\ntwo\n three\nfour"], 16)) == [Chunk("one\ntwo\n three\n", False), Chunk("four", True)]
    assert list(chunks(["one\ntwo\n three\nfour"], 14)) == [
        Chunk("one\n", False),
        Chunk("two\n three\n", False),
        Chunk("four", True),
    ]
    assert list(chunks(["x" * 5], 2)) == [Chunk("xx", False), Chunk("xx", False), Chunk("x", True)]
    assert list(chunks([])) == [Chunk("", True)]


def test_a_text_in_memory_and_a_file_are_cut_alike() -> None:
    text = "é" * 99 + "\n"
    put({"a.txt": text * 30_000})
    found = list(load("a.txt").documents)
    assert found == list(InMemory([text * 30_000]))
    assert [chunk.last for chunk in found] == [False, False, True]
    assert len(found[0].text) == 2**20 // 100 * 100


# The Python sources of an environment.


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A standard library and some packages; the project is one of them."""
    library = {"b.py": "B", "a/z.py": "Z", "a/empty.py": "", "a/lib.so": b"\0", "site-packages/other.py": "O"}
    packages = {
        "pip/x.py": "X",
        "pip/y.txt": "Y",
        "latin.py": "é".encode("latin-1"),
        "gpt/model.py": "G",
        "wide.py": "W".encode("utf-16"),
        "marked.py": "\ufeffM",
    }
    put({f"lib/{name}": content for name, content in library.items()})
    put({f"lib/site-packages/{name}": content for name, content in packages.items()})
    put({f"packages/{name}": content for name, content in packages.items()})
    paths = {"stdlib": "lib", "purelib": "packages", "platlib": "packages"}
    monkeypatch.setattr(sysconfig, "get_path", paths.__getitem__)
    monkeypatch.setattr(metadata, "files", lambda name: [metadata.PackagePath("gpt/model.py")])


@pytest.mark.usefixtures("environment")
def test_the_python_sources_are_the_library_and_the_packages_without_the_project() -> None:
    source = load("python")
    assert texts(source) == ["Z", "B", "M", "X"]
    assert source.notes == (
        "4 files, 7 bytes",
        "without its byte order mark: marked.py",
        "left out: 1 empty: a/empty.py; 2 not UTF-8: latin.py, wide.py",
    )
    assert texts(load("python", include="a/*, pip/")) == ["Z"]
    assert source.documents.fingerprint() == load("python").documents.fingerprint()


def test_the_python_sources_of_this_environment_are_found_in_the_same_order_each_time() -> None:
    source = load("python", include="json/*.py")
    assert "def dumps(" in joined(source.documents)
    assert [chunk.text for chunk in source.documents] == [
        chunk.text for chunk in load("python", include="json/*.py").documents
    ]
    assert source.origin == "the Python sources of this environment"
    assert source.notes[0].startswith("5 files, ")


# What is included.


@pytest.mark.parametrize(
    ("include", "found"),
    [
        ("**/*.py", ["a.py", "b/c.py", "b/d/e.py"]),
        ("*.py", ["a.py", "b/c.py", "b/d/e.py"]),
        ("./*.py,", ["a.py"]),
        ("b/*.py", ["b/c.py"]),
        ("b/**", ["b/c.py", "b/d/e.py", "b/f.txt"]),
        ("*.txt, b/?.py", ["b/c.py", "b/f.txt"]),
        ("**/d/*", ["b/d/e.py"]),
    ],
)
def test_patterns_choose_the_files_of_a_folder(include: str, found: list[str]) -> None:
    put({name: name for name in ("t/a.py", "t/b/c.py", "t/b/d/e.py", "t/b/f.txt", "t/.g/h.py")})
    source = load("t", include=include)
    assert [text.removeprefix("t/") for text in texts(source)] == found
    assert all("f.txt" not in note for note in source.notes), "what was not asked for is not left out"


def test_a_pattern_that_fits_nothing_is_said() -> None:
    put({"t/a.py": "x"})
    with pytest.raises(InputError, match=r"data.source t holds no text that fits data.include \*.md"):
        load("t", include="*.md")


# Rows.


def test_each_row_is_a_document_that_ends_a_line() -> None:
    table = pyarrow.table({"text": ["four", None, "five\n"], "body": ["x", "y", "z"]})
    put({"t/a.jsonl": '{"text": "one\\ntwo"}\n{"text": null}\n{"text": ""}\n{"text": "three\\n"}\n', "t/c.txt": "six"})
    pyarrow.parquet.write_table(table, "t/b.parquet")
    assert texts(load("t")) == ["one\ntwo\n", "\n", "three\n", "four\n", "five\n", "six"]
    assert texts(load("t/b.parquet", column="body")) == ["x\n", "y\n", "z\n"]


def test_a_nested_column_is_named_by_its_path() -> None:
    put({"a.jsonl": '{"t": {"en": "yes"}}\n{"t": null}\n{"t": {"en": "no"}}\n'})
    assert texts(load("a.jsonl", column="t.en")) == ["yes\n", "no\n"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"body": "x", "id": 1}', "no column text: choose one with --data.column (body, id)"),
        ("{}", "no column text: choose one with --data.column (there is none)"),
        ('{"text": ["x"]}', "column text must hold text, got list"),
        ('{"text": "\\ud83d"}', "column text holds half of a surrogate pair, which is no character"),
        ('{"text": "x"', "expected a JSON object, got none (Expecting ',' delimiter)"),
    ],
)
def test_a_bad_row_is_named_or_left_out_and_counted(row: str, message: str) -> None:
    put({"a.jsonl": '{"text": "one"}\n' + row + '\n{"text": "two"}\n' + (row + "\n") * 25})
    with pytest.raises(InputError) as caught:
        joined(load("a.jsonl").documents)
    assert str(caught.value) == f"a.jsonl, line 2: {message} (--data.on_bad_row skip leaves such rows out)"
    source = load("a.jsonl", on_bad_row="skip")
    assert texts(source) == ["one\n", "two\n"]
    (note,) = source.notes
    assert note.startswith(f"26 rows left out: a.jsonl, line 2 ({message}), a.jsonl, line 4 ({message}), ")
    assert note.endswith(" and 6 more")


# Fingerprints.


def test_a_fingerprint_notices_every_change_of_a_file_and_of_the_way_it_is_read() -> None:
    put({"t/a.txt": "one", "t/b.jsonl": '{"text": "two", "body": "x"}\n'})

    def now(**options: str) -> str | None:
        return load("t", **options).documents.fingerprint()

    seen = [now(), now(column="body"), now(on_bad_row="skip"), now(include="*.txt")]
    assert now() == seen[0], "whatever reads it"
    stamp = os.stat("t/a.txt")
    put({"t/a.txt": "ONE"})
    os.utime("t/a.txt", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    seen.append(now())  # The same size and time of change: its inode's own time tells.
    put({"t/a.txt": "\ufeffone"})
    seen.append(now())
    os.rename("t/a.txt", "t/c.txt")
    seen.append(now())
    assert len(set(seen)) == len(seen)
    documents = load("t").documents
    os.remove("t/c.txt")
    with pytest.raises(InputError, match="cannot read t/c.txt: No such file or directory"):
        documents.fingerprint()
    with pytest.raises(InputError, match="cannot read t/c.txt: No such file or directory"):
        joined(documents)


def test_a_file_that_changes_its_encoding_while_it_is_read_is_said_to() -> None:
    put({"a.txt": "one"})
    documents = load("a.txt").documents
    put({"a.txt": b"\xff\xff"})
    with pytest.raises(InputError, match="a.txt has changed while it was read: leave it alone, and start again"):
        joined(documents)


def test_texts_in_memory_have_no_fingerprint() -> None:
    assert load("auto").documents.fingerprint() is None
    assert replace(InMemory(["x"])).fingerprint() is None


def test_files_of_a_large_source_are_looked_into_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(remembered, "LARGE", 5)
    looked = list[Path]()
    find_encoding = files.find_encoding
    monkeypatch.setattr(files, "find_encoding", lambda path: looked.append(path) or find_encoding(path))
    put({"t/a.txt": "\ufeffA", "t/b.txt": "B".encode("utf-16"), "t/c.jsonl": '{"text": "C"}\n[]\n', "t/d.txt": b"\0"})
    first = load("t", on_bad_row="skip")
    assert len(looked) == 4
    again = load("t", on_bad_row="skip")
    assert len(looked) == 4, "nothing was read"
    assert (texts(again), again.notes, again.origin) == (["A", "B", "C\n"], first.notes, first.origin)
    assert again.documents.fingerprint() == first.documents.fingerprint()
    assert [note.split(":")[0] for note in again.notes] == [
        *("without its byte order mark", "read as UTF-16LE", "left out", "1 row left out")
    ]
    put({"t/d.txt": "D"})
    assert texts(load("t", on_bad_row="skip")) == ["A", "B", "C\n", "D"]
    with pytest.raises(InputError, match="c.jsonl, line 2"):
        joined(load("t").documents)
    for broken in (tmp_path / "home").rglob("*-files.json"):
        broken.write_text("{")
    assert texts(load("t", on_bad_row="skip")) == ["A", "B", "C\n", "D"]
