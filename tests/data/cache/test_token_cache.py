"""Tokens on the disk: made once, whole or not at all, whatever interrupts them, and where the disk refuses."""

import os
import signal
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from reliability.full_disk import largest_file

from data.cache import token_cache
from data.cache.token_cache import cache_folder
from data.cache.tokens import Tokenized, tokenized
from data.config import TextConfig
from data.sources.documents import Chunk
from data.text import Source
from data.tokenizers.byte_tokenizer import ByteTokenizer
from training.runtime.errors import InputError

TEXT = "".join(f"{number} bottles\n" for number in range(2000))


class Files:
    """A file of text that is known by its fingerprint, and counts how often it was read."""

    def __init__(self, file: Path) -> None:
        self.file, self.passes = file, 0

    def __iter__(self) -> Iterator[Chunk]:
        self.passes += 1
        for line in self.file.read_text().splitlines(keepends=True):
            yield Chunk(line, last=False)
        yield Chunk("", last=True)

    def fingerprint(self) -> str:
        return str(self.file.stat().st_mtime_ns)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def files(tmp_path: Path) -> Files:
    (tmp_path / "text.txt").write_text(TEXT)
    return Files(tmp_path / "text.txt")


def text_of(found: Tokenized) -> str:
    return "".join(found.tokenizer.decode(part.tokens_N.tolist()) for part in found[:2])


def leftovers() -> list[str]:
    """What is in the cache, apart from locks and whole tokens."""
    whole = [path.name for path in cache_folder().iterdir() if (path / "tokens.json").exists()]
    return [
        path.name
        for path in cache_folder().iterdir()
        if path.name not in (*whole, "sources") and path.suffix != ".lock"
    ]


def test_the_cache_is_that_of_hugging_face(monkeypatch: pytest.MonkeyPatch) -> None:
    below = "transformers-from-scratch/tokens"
    monkeypatch.setenv("HF_HOME", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_folder() == Path("/a", below)
    monkeypatch.delenv("HF_HOME")
    assert cache_folder() == Path("/b/huggingface", below)
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/huggingface" / below


def test_files_that_have_not_changed_are_not_read_again(files: Files) -> None:
    first = tokenized(Source(files, "text"), TextConfig())
    assert files.passes == 2  # To know what they hold, and to make tokens of it.
    again = tokenized(Source(files, "text"), TextConfig())
    assert files.passes == 2
    assert (text_of(again), again.sha256, again.notes) == (TEXT, first.sha256, ())


def test_tokens_that_end_texts_with_another_token_are_others(files: Files) -> None:
    for end in (256, 10, 256):
        tokenizer = ByteTokenizer()
        tokenizer.end_of_text = end
        found = tokenized(Source(files, "text"), TextConfig(tokenizer="bytes"), tokenizer)
        assert found.training.tokens_N[-1] == end


def test_a_file_that_has_changed_is_seen_and_said(files: Files) -> None:
    tokenized(Source(files, "text"), TextConfig())
    files.file.write_text(TEXT + "more\n")
    found = tokenized(Source(files, "text"), TextConfig())
    assert text_of(found) == TEXT + "more\n"
    assert found.notes == ("the text has changed since it was last read",)
    os.utime(files.file)  # Touched, and the same.
    assert tokenized(Source(files, "text"), TextConfig()).notes == ()


def test_a_file_that_changes_while_it_is_read_is_refused(files: Files) -> None:
    class Changing(Files):
        def __iter__(self) -> Iterator[Chunk]:
            yield from super().__iter__()
            os.utime(self.file, ns=(0, self.passes))

    with pytest.raises(InputError, match="text has changed while it was read: start again"):
        tokenized(Source(Changing(files.file), "text"), TextConfig())
    assert leftovers() == []


def test_one_that_is_killed_leaves_nothing_behind(files: Files) -> None:
    class Endless(Files):
        def __iter__(self) -> Iterator[Chunk]:
            yield from super().__iter__()
            if self.passes == 2:
                (self.file.parent / "half").touch()
                time.sleep(60)

    child = os.fork()
    if child == 0:
        tokenized(Source(Endless(files.file), "text"), TextConfig())
        os._exit(1)
    while not (files.file.parent / "half").exists():
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert leftovers()
    assert text_of(tokenized(Source(files, "text"), TextConfig())) == TEXT
    assert leftovers() == []


def test_two_at_once_make_one(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    said, both, begun = list[str](), Event(), count()

    def say(text: str, **options: Any) -> None:
        said.append(text)
        both.set()

    class Slow(Files):
        """Tokens are made while somebody waits for them."""

        def __iter__(self) -> Iterator[Chunk]:
            if self.passes == 1:
                assert both.wait(60)
                time.sleep(0.3)
            return super().__iter__()

    monkeypatch.setattr(token_cache, "print", say, raising=False)
    monkeypatch.setattr("secrets.token_hex", lambda size: f"{next(begun):08}")  # What is begun has a name.
    slow, found = [Slow(files.file), Slow(files.file)], list[str]()
    threads = [
        Thread(target=lambda f=one: found.append(text_of(tokenized(Source(f, "text"), TextConfig())))) for one in slow
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [TEXT, TEXT]
    assert next(begun) == 1
    assert said == ["note        another run makes the same tokens: waiting for them"]


@pytest.mark.parametrize("damage", ["shorter", "gone", "nonsense"])
def test_damaged_tokens_are_made_anew(files: Files, damage: str) -> None:
    tokenized(Source(files, "text"), TextConfig())
    (folder,) = (path.parent for path in cache_folder().glob("*/tokens.json"))
    if damage == "shorter":
        os.truncate(folder / "training.bin", 100)
    elif damage == "gone":
        (folder / "validation.bin").unlink()
    else:
        (folder / "tokens.json").write_text("{")
    assert text_of(tokenized(Source(files, "text"), TextConfig())) == TEXT


def test_a_small_text_goes_elsewhere_where_the_cache_refuses(
    files: Files, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_cache.tempfile, "gettempdir", lambda: str(tmp_path))
    home.write_text("no folder")
    found = tokenized(Source(files, "text"), TextConfig())
    place = tmp_path / f"transformers-from-scratch-tokens-{os.getuid()}"
    assert text_of(found) == TEXT
    assert found.notes == (f"Not a directory in {cache_folder()}, the cache of tokens: they are in {place}",)
    place.chmod(0o777)
    with pytest.raises(InputError, match="the cache of tokens: set HF_HOME to a folder that can be written to"):
        tokenized(Source(files, "text"), TextConfig())


def test_a_full_disk_is_one_line_and_leaves_nothing(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "SMALL", 1000)
    with largest_file(20_000), pytest.raises(InputError) as caught:
        tokenized(Source(files, "text"), TextConfig())
    room = f"set HF_HOME to a folder with room for a text of {len(TEXT):,} bytes"
    assert str(caught.value) == f"File too large in {cache_folder()}, the cache of tokens: {room}"
    assert leftovers() == []
    assert text_of(tokenized(Source(files, "text"), TextConfig())) == TEXT
