"""Sources, their errors, the split, and batches."""

import hashlib
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from data import text as data
from data.batches.windows import TextData, side_by_side
from data.cache.tokens import sha256
from data.config import TEXT_SOURCES, TextConfig
from data.sources.documents import joined
from data.text import Source, load_source
from data.tokenizers.characters import CharTokenizer
from training.runtime.errors import InputError
from training.task import IGNORED, Batch

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def letters(length: int) -> Source:
    return Source.of_text((LETTERS * (length // 26 + 1))[:length], "letters")


def test_auto_is_tiny_shakespeare() -> None:
    source = load_source(TextConfig())
    assert hashlib.sha256(joined(source.documents).encode()).hexdigest() == data.SHA256
    assert "packaged plays" in source.origin


def test_a_file_keeps_every_byte(tmp_path: Path) -> None:
    content = "naïve\r\nlines\rand\n\u2028more\ufeff".encode()
    (tmp_path / "text.txt").write_bytes(content)
    assert joined(load_source(TextConfig(source=str(tmp_path / "text.txt"))).documents).encode() == content


def test_a_folder_joins_its_files_in_sorted_order(tmp_path: Path) -> None:
    for name, text in {"b.txt": "B", "a/z.txt": "A", "c.txt": "C", ".hidden": "H", ".git/x.txt": "G"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert joined(load_source(TextConfig(source=str(tmp_path))).documents) == "ABC"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist: expected auto, comedies, hub, hub:OWNER/NAME, a text file or a folder"),
        (b"", "is empty: expected text"),
        (b"na\xefve", "text.txt is not UTF-8, perhaps WINDOWS-1252 .*: iconv -f WINDOWS-1252 -t UTF-8 .*text.txt > "),
    ],
)
def test_bad_files_say_what_to_do(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_source(TextConfig(source=str(tmp_path / "text.txt")))


@pytest.mark.parametrize("source", ["", "hub:", "hub:foo", "hub:a/b/c", "hub:a b/c", "hub:a/"])
def test_a_malformed_source_says_what_is_expected(source: str) -> None:
    expected = re.escape(f"data.source must be {TEXT_SOURCES}, got '{source}'")
    with pytest.raises(InputError, match=expected):
        TextConfig(source=source)


@pytest.mark.parametrize(
    ("option", "source", "fitting"),
    [
        ({"column": "body"}, "auto", "sources with rows: hub:OWNER/NAME, .jsonl and .parquet files"),
        ({"on_bad_row": "skip"}, "python", "sources with rows: hub:OWNER/NAME, .jsonl and .parquet files"),
        ({"revision": "v1"}, "text.txt", "sources hub:OWNER/NAME only"),
        ({"subset": "en"}, "auto", "sources hub:OWNER/NAME only"),
        ({"include": "*.py"}, "auto", "folders of files, and for python"),
        ({"include": "*.py"}, "hub:a/b", "folders of files, and for python"),
    ],
)
def test_options_that_a_source_has_no_use_for_are_refused(option: dict[str, str], source: str, fitting: str) -> None:
    (name,) = option
    with pytest.raises(InputError, match=re.escape(f"data.{name} is for {fitting}, got data.source '{source}'")):
        TextConfig(source=source, **option)
    TextConfig(source="texts/" if name == "include" else "hub:a/b", **option)


def test_a_column_of_files_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("text")
    with pytest.raises(InputError, match=r"data.column is for rows, and .*text.txt has none: no .jsonl or .parquet"):
        load_source(TextConfig(source=str(tmp_path / "text.txt"), column="body"))


def test_an_empty_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no text: it is empty"):
        load_source(TextConfig(source=str(tmp_path)))


@pytest.mark.parametrize(("length", "name"), [(8, "training"), (60, "validation")])
def test_a_split_shorter_than_a_context_says_so(length: int, name: str) -> None:
    with pytest.raises(InputError, match=f"the {name} split of letters has .* too few for one context of 8"):
        TextData(letters(length), context=8, seed=1)


def test_a_split_has_a_context_and_one_target_more_at_least() -> None:
    for own in ("", "a"):
        source = Source.of_text("ab" * 9, "letters", validation="ba" * 4 + own)
        if own:
            assert [batch.num_targets for batch in TextData(source, context=8, seed=1).validation_batches(5)] == [8]
            continue
        with pytest.raises(InputError, match="the validation split of letters has 8 characters, too few for one"):
            TextData(source, context=8, seed=1)


def test_the_split_is_by_position() -> None:
    text = "ab" * 450 + "ba" * 50
    batches = list(TextData(Source.of_text(text, "text"), context=10, seed=1).validation_batches(4))
    inputs = torch.cat([batch.inputs[0].flatten() for batch in batches])[:99]
    assert "".join("ab"[i] for i in inputs) == text[900:999]


def test_a_validation_text_of_its_own_is_validated_on() -> None:
    text = TextData(Source.of_text("abc" * 100, "text", "cab" * 10), context=9, seed=1)
    assert text.samples_per_epoch == 300 // 9
    (batch,) = text.validation_batches(4)
    assert "".join("abc"[i] for i in batch.inputs[0].flatten())[:29] == ("cab" * 10)[:29]
    assert text.tokenizer.characters == "abc"


def test_the_sha256_covers_both_texts_and_the_place_of_the_split() -> None:
    sources = [
        Source.of_text("a" * 90 + "b" * 10, ""),
        Source.of_text("a" * 90, "", "b" * 10),
        Source.of_text("a" * 89, "", "a" + "b" * 10),
    ]
    assert sha256(sources[0]) == hashlib.sha256(joined(sources[0].documents).encode()).hexdigest()
    assert len({sha256(source) for source in sources}) == 3
    source = Source.of_text("ab" * 90, "", "b" * 10)
    assert TextData(source, context=8, seed=1).sha256 == sha256(source)


def test_the_vocabulary_is_that_of_the_whole_text() -> None:
    book = "It was the best of times.\n" * 100 + "Licence: you may pay $5.\n"
    text = TextData(Source.of_text(book, "a book"), context=10, seed=1)
    assert text.tokenizer.characters == "".join(sorted(set(book)))
    assert text.notes == ()


def test_what_a_validation_text_of_its_own_has_alone_is_one_error_or_skipped() -> None:
    source = Source.of_text("ab" * 100, "text", "ab" * 20 + "é$é" + "ba" * 20 + "\x07")
    with pytest.raises(InputError) as caught:
        TextData(source, context=8, seed=1)
    assert str(caught.value) == (
        "unknown character 'é' (U+00E9) at line 1, column 41 of the validation text: it does not occur in the training "
        "text (all that do not, with their number: 'é' 2, '$' 1, '\\x07' 1); --data.unknown skip leaves them out"
    )
    text = TextData(source, context=8, seed=1, data=TextConfig(unknown="skip"))
    (batch,) = text.validation_batches(20)
    targets = batch.targets_BT.flatten()
    assert "".join("ab"[i] for i in targets[targets != IGNORED]) == ("ab" * 20 + "ba" * 20)[1:]
    assert text.notes == ("the validation text: 4 unknown characters skipped",)
    assert text.sha256 == sha256(source)


def test_batches_depend_on_seed_and_place_alone() -> None:
    first, second, other = (TextData(letters(500), context=8, seed=seed) for seed in (1, 1, 2))
    for place in (200, 3, 57):
        first.training_batch(place + 1, 2)
        assert torch.equal(first.training_batch(place, 4).inputs[0], second.training_batch(place, 4).inputs[0])
    assert not torch.equal(first.training_batch(0, 16).inputs[0], other.training_batch(0, 16).inputs[0])


def test_a_batch_is_its_samples_in_order_across_the_end_of_an_epoch() -> None:
    text = TextData(letters(500), context=8, seed=1)
    place = 3 * text.samples_per_epoch - 2
    together = text.training_batch(place, 5).inputs[0]
    alone = torch.cat([text.training_batch(place + i, 1).inputs[0] for i in range(5)])
    assert torch.equal(together, alone)


def test_an_epoch_covers_the_ring_once_from_a_fresh_offset_in_a_fresh_order() -> None:
    signs = "".join(chr(0x4E00 + i) for i in range(900))
    text = TextData(Source.of_text(signs + signs[:100], "signs"), context=9, seed=1)
    epochs = [text.training_batch(epoch * 100, 100).inputs[0] for epoch in range(2)]
    for windows in epochs:
        assert sorted(windows.flatten().tolist()) == list(range(900))
        assert len(set((windows[:, 0] % 9).tolist())) == 1
    assert epochs[0][0, 0] % 9 != epochs[1][0, 0] % 9
    assert epochs[0][:, 0].argsort().tolist() != epochs[1][:, 0].argsort().tolist()


def test_targets_are_the_next_characters_of_the_ring() -> None:
    text = TextData(Source.of_text("".join(LETTERS) * 40, "letters"), context=7, seed=1)
    batch = text.training_batch(0, text.samples_per_epoch)
    assert torch.equal(batch.inputs[0][:, 1:], batch.targets_BT[:, :-1])
    assert torch.equal((batch.inputs[0] + 1) % 26, batch.targets_BT)


@pytest.mark.parametrize(("batch_size", "num_ranks"), [(1, 1), (4, 1), (3, 2), (64, 4)])
def test_validation_shows_every_target_once_over_all_ranks(batch_size: int, num_ranks: int) -> None:
    text = TextData(Source.of_text("".join(chr(0x4E00 + i) for i in range(103)) * 10, "signs"), context=10, seed=1)
    seen = []
    for rank in range(num_ranks):
        for batch in text.validation_batches(batch_size, rank, num_ranks):
            assert batch.targets_BT.shape == batch.inputs[0].shape
            seen.append(batch.targets_BT[batch.targets_BT != IGNORED])
    assert len(torch.cat(seen)) == 103 - 1
    assert len(set(torch.cat(seen).tolist())) == 102


@pytest.mark.parametrize(("every", "num_ranks"), [(3, 1), (4, 2), (50, 3)])
def test_the_first_window_of_every_stretch_comes_on_whichever_ranks(every: int, num_ranks: int) -> None:
    text = TextData(Source.of_text("".join(chr(0x4E00 + i) for i in range(203)) * 10, "signs"), context=10, seed=1)
    rows = [
        (tuple(inputs.tolist()), tuple(targets.tolist()))
        for batch_size, ranks, k in ((4, 1, 1), (2, num_ranks, every))
        for rank in range(ranks)
        for batch in text.validation_batches(batch_size, rank, ranks, k)
        for inputs, targets in zip(batch.inputs[0], batch.targets_BT, strict=True)
    ]
    whole, part = rows[:21], rows[21:]
    assert sorted(part) == sorted(whole[::every])


def test_windows_are_cut_when_they_are_asked_for() -> None:
    tokens_N = torch.zeros(1, dtype=torch.uint8).expand(10**13)
    batch = next(side_by_side(tokens_N, 16, 4, rank=1, num_ranks=2))
    assert batch.targets_BT.shape == (4, 16)


def test_tokenizer_round_trip() -> None:
    tokenizer = CharTokenizer.from_texts(["hello\nwörld 🙂"])
    again = CharTokenizer.from_json(tokenizer.to_json())
    assert again.characters == tokenizer.characters == "\n dehlorwö🙂"
    assert again.decode(again.encode("wörld🙂").tolist()) == "wörld🙂"
    assert again.encode("").tolist() == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ab\nbxa", r"unknown character 'x' \(U\+0078\) at line 2, column 2 of the prompt"),
        ("\U0001f600", r"'😀' \(U\+1F600\) at line 1, column 1"),
        ("ac", r"unknown character 'c' \(U\+0063\) at line 1, column 2 of the prompt"),
        ("a\x07", r"'\\x07' \(U\+0007\) at line 1, column 2"),
    ],
)
def test_unknown_characters_are_shown_with_their_position(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        CharTokenizer("\nab").encode(text, "the prompt")


def test_line_ends_of_a_prompt_become_those_of_the_vocabulary() -> None:
    unix, windows = CharTokenizer("\nab"), CharTokenizer("\n\rab")
    assert unix.encode_prompt("a\r\nb\rb\n") == unix.encode("a\nb\nb\n").tolist()
    assert windows.decode(windows.encode_prompt("a\r\nb\n")) == "a\r\nb\n"
    with pytest.raises(InputError, match=r"'x' \(U\+0078\) at line 2, column 1 of the prompt: .*'x' 2, 'y' 1\); leave"):
        unix.encode_prompt("a\r\nxyx")


@pytest.mark.parametrize(("memory", "fits"), [(64 * 4 * 1800, True), (64 * 4 * 1800 - 1, False)])
def test_a_device_cuts_the_same_windows_where_the_text_fits(
    monkeypatch: pytest.MonkeyPatch, memory: int, fits: bool
) -> None:
    text = TextData(letters(2000), context=7, seed=3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=memory))
    cut, place = text.cutter(torch.device("cpu")), text.samples_per_epoch - 3
    assert (cut is not None) == fits
    if cut is not None:
        uncut, expected = cut(place, 8), text.training_batch(place, 8)
        batch = uncut.to(torch.device("cpu"))
        assert torch.equal(batch.inputs[0], expected.inputs[0])
        assert torch.equal(batch.targets_BT, expected.targets_BT)
        assert uncut.num_targets == expected.num_targets == 8 * 7


def test_a_subclass_that_makes_its_own_batches_is_not_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(TextData):
        def training_batch(self, first: int, count: int) -> Batch:
            return super().training_batch(0, count)

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=2**40))
    assert Own(letters(2000), context=7, seed=3).cutter(torch.device("cpu")) is None
