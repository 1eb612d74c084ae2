"""Files, folders, patterns and lists of them: what is read, in which order, and what is said of the rest."""

import gzip
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from data import text as data
from data.cache.tokens import sha256
from data.config import TextConfig
from data.sources.documents import joined
from data.sources.files import Found, list_files, look_into
from data.text import load_source
from gpt.config import GPTConfig, ModelConfig
from gpt.task import GPTTask
from training.config.command_line import StrictParser
from training.config.sections import TrainingConfig
from training.runtime.errors import InputError

MODEL = ModelConfig(max_len=8, d_model=8, num_heads=1, num_layers=1)
FRENCH = (
    "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de "
    "conscience et doivent agir les uns envers les autres dans un esprit de fraternité, "
    "là où chacun a été reçu à bras ouverts.\n"
)


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def find_files(source: str) -> Found:
    return look_into(list_files(source), source)


def put(files: dict[str, bytes | str]) -> None:
    for name, content in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())


def junk(folder: str) -> None:
    """What lies about in a folder of texts."""
    files = {"book.pdf": b"%PDF-1.7", "cover.png": b"\x89PNG\r\n\x1a\n", "old.gz": gzip.compress(b"text"), "empty": b""}
    backups = {"b.txt~": "B", "#b.txt#": "B", ".b.txt.swp": "B", "c.swp": "B"}
    hidden = {f".{name}": "H" for name in ("git/config", "DS_Store", "x", "y")}
    run = {"runs/gpt-1/config.yaml": "seed: 1", "runs/gpt-1/checkpoints/last": "x", "runs/gpt-1/samples/1.txt": "S"}
    put({f"{folder}/{name}": content for name, content in (files | backups | hidden | run).items()})
    put({"elsewhere/more.txt": "M"})
    Path(folder, "linked").symlink_to(Path("elsewhere").absolute())
    Path(folder, "loop").symlink_to("loop")
    os.mkfifo(Path(folder, "pipe"))


def test_a_folder_is_read_and_what_is_left_out_is_counted_and_named() -> None:
    put({"texts/b.txt": "\ufeffB", "texts/a/z.txt": "A", "texts/c.txt": FRENCH.encode("latin-1")})
    junk("texts")
    source = load_source(TextConfig(source="texts"))
    assert joined(source.documents) == "AB" + FRENCH
    assert source.origin == "texts (3 files)"
    assert source.notes == (
        "without its byte order mark: b.txt",
        "read as WINDOWS-1252, a guess: c.txt",
        "left out: 4 editor's backup: #b.txt#, .b.txt.swp, b.txt~ and 1 more; "
        "4 hidden: .DS_Store, .git, .x and 1 more; 1 no text (PDF): book.pdf; 1 no text (PNG): cover.png; "
        "1 empty: empty; 1 linked folder (to read it, name it as a source, too): linked; "
        "1 Too many levels of symbolic links: loop; 1 no text (gzip): old.gz; 1 no regular file: pipe; "
        "1 folder of a run: runs/gpt-1",
    )


def test_only_a_folder_with_nothing_left_is_an_error() -> None:
    junk("texts")
    with pytest.raises(InputError, match="data.source texts holds no text, only 4 editor's backup: #b.txt#, .*"):
        find_files("texts")


def test_a_folder_that_may_not_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    put({"texts/a.txt": "A", "texts/closed/b.txt": "B"})
    scandir = os.scandir

    def refuse(path: Path) -> Any:
        if path.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert find_files("texts").notes == ("left out: 1 Permission denied: closed",)


def test_an_unclear_encoding_in_a_folder_comes_with_the_command_that_converts_the_file() -> None:
    put({"my texts/a.txt": "A", "my texts/b.txt": "naïve".encode("latin-1")})
    (note,) = find_files("my texts").notes
    assert note.startswith("left out: 1 not UTF-8, perhaps WINDOWS-1252 or ")
    assert ", convert with iconv -f WINDOWS-1252 -t UTF-8 'my texts/b.txt' > 'my texts/b.utf-8.txt': b.txt" in note


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("b.txt, more,a.txt", "BCDA"),
        ("*.txt", "[]AB"),
        ("*.txt, more/**/*.txt", "[]ABCD"),
        ("~/h.txt", "H"),
        ("[ab].txt", "[]"),  # the name of a file, before it is a pattern
        ("one, two.md", ","),
        ("a.txt, a.txt", "AA"),
    ],
)
def test_several_sources_patterns_and_the_home_folder(source: str, text: str) -> None:
    put({"a.txt": "A", "b.txt": "B", "[ab].txt": "[]", "more/c.txt": "C", "more/d/d.txt": "D", "one, two.md": ","})
    put({"home/h.txt": "H", "x.txt~": "X"})
    assert joined(load_source(TextConfig(source=source)).documents) == text


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a.txt, gone.txt", "data.source gone.txt does not exist: expected auto, comedies, hub, "),
        ("*.md", r"data.source \*.md: no file has such a name"),
        ("a.txt, b.pdf", r"^b.pdf is no text \(PDF\)"),
        ("*.pdf", r"data.source \*.pdf holds no text, only 1 no text \(PDF\): b.pdf"),
    ],
)
def test_what_is_named_must_be_there_and_text(source: str, message: str) -> None:
    put({"a.txt": "A", "b.pdf": b"%PDF-"})
    with pytest.raises(InputError, match=message):
        find_files(source)


def test_what_is_named_is_read_more_than_once_and_so_no_pipe() -> None:
    os.mkfifo("pipe")
    with pytest.raises(InputError, match="data.source pipe is no regular file: write what comes from it to one first"):
        find_files("pipe")


def test_a_plain_file_is_known_by_the_same_sha256_as_ever() -> None:
    put({"a.txt": "hello\n", "marked.txt": "\ufeffhello\n", "wide.txt": "hello\n".encode("utf-16")})
    shas = {sha256(load_source(TextConfig(source=f"{name}.txt"))) for name in ("a", "marked", "wide")}
    assert shas == {"5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"}


def test_notes_are_told_by_the_task_and_by_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put({"a.txt": ("\ufeff" + "hello " * 100).encode("utf-16-le")})
    config = GPTConfig(data=TextConfig(source="a.txt"), model=MODEL, training=TrainingConfig(max_steps=1))
    assert GPTTask(config).data.notes == ("read as UTF-16LE: a.txt",)
    monkeypatch.setattr(sys, "argv", ["data", "--source", "a.txt", "--output", "out.txt"])
    data.main()
    assert capsys.readouterr().out.startswith(
        "source      a.txt\nnote        read as UTF-16LE: a.txt\nbytes       600\n"
    )
    assert Path("out.txt").read_text() == "hello " * 100
    monkeypatch.setattr(sys, "argv", ["data", "--source", "a.txt, out.txt", "--output", "out.txt"])
    data.main()
    assert Path("out.txt").read_text() == "hello " * 200, "a text may be written to a file that it is made of"
    assert sorted(os.listdir()) == ["a.txt", "out.txt"]


def test_a_text_that_cannot_be_written_whole_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    put({"bad.jsonl": '{"text": "a"}\n{"text"\n'})
    monkeypatch.setattr(sys, "argv", ["data", "--source", "bad.jsonl", "--output", "new.txt"])
    with pytest.raises(InputError, match="bad.jsonl, line 2"):
        data.main()
    assert not [name for name in os.listdir() if "new" in name]


def test_a_pattern_that_the_shell_has_replaced_is_said_to_want_quotes() -> None:
    parser = StrictParser()
    parser.add_class_arguments(GPTConfig)
    message = "^unrecognized arguments: b.txt c.txt: put a value with spaces, or a pattern such as '.*', in quotes"
    with pytest.raises(InputError, match=message):
        parser.parse_args(["--data.source", "a.txt", "b.txt", "c.txt"])
