"""Rows with answers: which tokens count, how they are split and packed, and what is said of bad ones."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pyarrow
import pyarrow.parquet
import pytest
import torch

from data.answers.rows import FoundRows, LeftOut, answered
from data.answers.tokens import RowTokens, answer_tokens
from data.answers.windows import AnswerData
from data.cache.tokens import held_out_documents, sha256
from data.config import TextConfig
from data.split import MIN_DOCUMENTS
from data.text import Source, load_source
from data.tokenizers.byte_tokenizer import ByteTokenizer
from data.tokenizers.characters import CharTokenizer
from data.tokenizers.chat import Chat
from training.runtime.errors import InputError
from training.task import IGNORED

COLUMNS = {"prompt_column": "prompt", "answer_column": "answer"}


def write(file: Path, rows: Sequence[Any]) -> TextConfig:
    """A file of prompts and answers, and the configuration that reads it as bytes."""
    file.write_text("".join(json.dumps(dict(zip(("prompt", "answer"), row, strict=True))) + "\n" for row in rows))
    return TextConfig(source=str(file), tokenizer="bytes", **COLUMNS)


def sums(count: int) -> list[tuple[str, str]]:
    return [(f"{number} + {number * 7 % 50} = ", str(number + number * 7 % 50)) for number in range(count)]


def read(options: dict[str, Any]) -> AnswerData:
    data = TextConfig(**options)
    return AnswerData(load_source(data), 16, 1, data)


def texts(rows: RowTokens, tokenizer: Any) -> list[tuple[str, str]]:
    """Of each row, what does not count and what does; the end of a text as a bar."""
    found = []
    for first, last in pairwise(rows.starts_R):
        counts = rows.counts_N[first:last]
        parts = [rows.tokens_N[first:last][which].tolist() for which in (~counts, counts)]
        prompt, answer = (
            "".join("|" if t == tokenizer.end_of_text else tokenizer.decode([t]) for t in part) for part in parts
        )
        found.append((prompt, answer))
    return found


def test_answers_count_with_their_end_and_the_last_rows_are_validated_on(tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", sums(20))
    source = load_source(data)
    assert source.rows is not None
    found = answer_tokens(source.rows, data, 32)
    expected = [(prompt, f"{answer}|") for prompt, answer in sums(20)]
    assert texts(found.training, found.tokenizer) == expected[:18]
    assert texts(found.validation, found.tokenizer) == expected[18:]
    assert found.prompt == expected[18][0]
    assert found.validation.num_targets == sum(len(answer) for _, answer in expected[18:])
    assert found.validation.target_bytes(found.tokenizer) == sum(len(answer) for _, answer in sums(20)[18:])
    assert found.sha256 == sha256(source, data, found.tokenizer)


def test_an_answer_of_characters_ends_its_line(tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", [("a", "b"), ("c", "d\n"), ("e", "f")])
    data = TextConfig(source=data.source, **COLUMNS)
    found = answer_tokens(load_source(data).rows, data, 8)  # type: ignore[arg-type]
    assert isinstance(found.tokenizer, CharTokenizer)
    assert found.tokenizer.characters == "\nabcdef", "of rows that are held out as well"
    assert texts(found.training, found.tokenizer) == [("a", "b\n"), ("c", "d\n")]


def test_of_many_rows_a_prompt_is_on_one_side_alone(tmp_path: Path) -> None:
    rows = [(f"prompt {number % 300}", f"answer {number}") for number in range(MIN_DOCUMENTS)]
    data = write(tmp_path / "a.jsonl", rows)
    found = answer_tokens(load_source(data).rows, data, 64)  # type: ignore[arg-type]
    training, validation = ({prompt for prompt, _ in texts(part, ByteTokenizer())} for part in found[:2])
    assert len(training) + len(validation) == 300
    assert not training & validation
    assert 10 < len(validation) < 60
    shuffled = write(tmp_path / "b.jsonl", rows[::-1])
    again = answer_tokens(load_source(shuffled).rows, shuffled, 64)  # type: ignore[arg-type]
    assert {prompt for prompt, _ in texts(again.validation, ByteTokenizer())} == validation


def test_windows_hold_each_row_once_with_targets_at_its_answer(tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", sums(60))
    found = AnswerData(load_source(data), 32, 1, data)
    batch = found.training_batch(0, found.samples_per_epoch)
    tokens_BT, places_BT = batch.inputs
    rows = []
    for line in range(len(tokens_BT)):
        starts = [*(places_BT[line] == 0).nonzero().flatten().tolist(), 32]
        for first, last in pairwise(starts):
            own, targets = tokens_BT[line, first:last].tolist(), batch.targets_BT[line, first:last].tolist()
            if own != [0]:  # What fills a window up.
                rows.append((bytes(own).decode(), [t for t in targets if t != IGNORED]))
                assert targets[: own.index(ord("=")) + 1] == [IGNORED] * (own.index(ord("=")) + 1)
    expected = [(prompt + answer, [*answer.encode(), 256]) for prompt, answer in sums(60)[:54]]
    assert sorted(rows) == sorted(expected)
    assert batch.num_targets == round(found.tokens_per_sample * found.samples_per_epoch)
    assert sum(each.num_targets for each in found.validation_batches(1)) == found.validation_targets


def test_batches_are_a_pure_function_of_seed_and_place(tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", sums(60))
    found, again, other = (AnswerData(load_source(data), 32, seed, data) for seed in (1, 1, 2))
    whole = found.training_batch(3, 40)
    parts = [again.training_batch(first, 10) for first in (33, 3, 23, 13)]
    parts = [parts[1], parts[3], parts[2], parts[0]]
    assert torch.equal(whole.inputs[0], torch.cat([part.inputs[0] for part in parts]))
    assert torch.equal(whole.targets_BT, torch.cat([part.targets_BT for part in parts]))
    assert not torch.equal(whole.inputs[0], other.training_batch(3, 40).inputs[0])
    epochs = [found.training_batch(number * found.samples_per_epoch, found.samples_per_epoch) for number in (0, 1)]
    rows = [sorted(map(tuple, epoch.inputs[0].tolist())) for epoch in epochs]
    assert rows[0] == rows[1]
    assert found.describe_samples(0, 2).startswith("epoch 0, windows of rows ")
    shares = [list(found.validation_batches(1, rank, 2)) for rank in (0, 1)]
    assert sum(batch.num_targets for share in shares for batch in share) == found.validation_targets


BAD = [
    ({"prompt": "x"}, "no column answer: choose one with --data.answer_column (prompt)"),
    ({"prompt": "x", "answer": None}, "column answer is empty"),
    ({"prompt": "", "answer": "y"}, "column prompt is empty"),
    ({"prompt": 3, "answer": ["y"]}, "column answer must hold text, got list"),
    (["x"], "expected a JSON object, got list"),
    ({"prompt": "x" * 20, "answer": "y"}, "it has 22 tokens, at most 17 fit into model.max_len 16"),
]


def test_half_a_character_anywhere_in_a_conversation_is_a_bad_row() -> None:
    row = {"messages": [{"role": "assistant", "content": "A"}, {"role": "user", "content": "x\ud83d"}]}
    left_out = LeftOut(skip=True)
    data = TextConfig(source="a.jsonl", tokenizer="a/tokenizer.json", messages_column="messages")
    assert list(answered([("line 1", row)], data, cast(Chat, object()), left_out)) == []
    assert "column messages holds half of a surrogate pair" in left_out.notes[0]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_a_bad_row_ends_the_run_or_is_left_out(tmp_path: Path, row: Any, reason: str) -> None:
    data = write(tmp_path / "a.jsonl", sums(8))
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:4], json.dumps(row), *lines[4:]]))
    with pytest.raises(InputError) as caught:
        AnswerData(load_source(data), 16, 1, data)
    place = f"{tmp_path / 'a.jsonl'}, line 5"
    assert str(caught.value) == f"{place}: {reason} (--data.on_bad_row skip leaves such rows out)"
    skips = TextConfig(source=data.source, tokenizer="bytes", on_bad_row="skip", **COLUMNS)
    found = AnswerData(load_source(skips), 16, 1, skips)
    assert f"1 row left out: {place} ({reason})" in found.notes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"prompt_column": "p"},
            "data.prompt_column is for rows of a prompt and its answer: give data.answer_column too",
        ),
        (
            {"answer_column": "a"},
            "data.answer_column is for rows of a prompt and its answer: give data.prompt_column too",
        ),
        ({"messages_column": "m", **COLUMNS}, "data.messages_column is for rows without data.prompt_column and "),
        ({"column": "body", **COLUMNS}, "data.column is for rows of text, in the place of data.prompt_column"),
        ({"source": "auto", **COLUMNS}, "data.prompt_column is for sources with rows"),
        ({"source": "auto", "mix": "a.jsonl=1", **COLUMNS}, "data.prompt_column is for one source: give data.source"),
        ({"source": "notes.txt", **COLUMNS}, "data.prompt_column is for rows, and notes.txt has none: name .jsonl"),
        ({"messages_column": "prompt"}, "data.messages_column needs a chat template: use --data.tokenizer FOLDER/"),
    ],
)
def test_columns_that_do_not_fit_are_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", sums(8))
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(InputError) as caught:
        read({"source": "a.jsonl", **options})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_one_row_is_too_few(tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", sums(1))
    with pytest.raises(InputError, match=r"a\.jsonl has no rows to train on: it takes more of them$"):
        AnswerData(load_source(data), 32, 1, data)


def test_many_rows_of_one_prompt_cannot_be_split(tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", [("a", "b")] * MIN_DOCUMENTS)
    with pytest.raises(InputError, match=r"a\.jsonl has no rows to \w+ on: it takes more prompts, by which they are"):
        AnswerData(load_source(data), 32, 1, data)


@pytest.mark.parametrize("rows", [sums(6), sums(8), [*sums(6), ("6 + 42 = ", "49")]])
def test_rows_that_change_while_they_are_read_are_one_line(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    data = write(tmp_path / "a.jsonl", sums(7))

    class Changing(list[Any]):
        def __iter__(self) -> Any:
            passes.append(1)
            write(tmp_path / "a.jsonl", sums(7) if len(passes) == 1 else rows)
            source = load_source(data)
            assert source.rows is not None
            return iter(source.rows.training)

    passes = list[int]()
    with pytest.raises(InputError, match="^rows has changed while it was read: start again$"):
        answer_tokens(FoundRows(Changing(), "rows"), data, 32)


def test_lines_of_windows_with_a_mark_are_read_as_others(tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", sums(6))
    plain = AnswerData(load_source(data), 32, 1, data)
    lines = (tmp_path / "a.jsonl").read_bytes().replace(b"\n", b"\r\n")
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines + b"\r\n")
    assert AnswerData(load_source(data), 32, 1, data).sha256 == plain.sha256


def test_the_prompt_of_a_sample_is_one_that_can_be_read(tmp_path: Path) -> None:
    rows = [("a", "b")] * 18 + [("a" * 20, "b"), ("ébé", "a")]
    data = TextConfig(source=write(tmp_path / "a.jsonl", rows).source, unknown="skip", on_bad_row="skip", **COLUMNS)
    found = AnswerData(load_source(data), 8, 1, data, CharTokenizer("\nab"))
    assert found.prompt == "b", "not of a row that is left out, and without what is unknown"


def test_characters_that_a_tokenizer_lacks_are_an_error_or_left_out(tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", [("aé", "b"), ("a", "bé")])
    known = CharTokenizer("\nab")
    with pytest.raises(InputError, match=r"unknown character 'é' \(U\+00E9\) at line 1, column 2 of .*, line 1"):
        AnswerData(load_source(data), 8, 1, data, known)
    data = TextConfig(source=data.source, unknown="skip", **COLUMNS)
    rows = load_source(data).rows
    assert rows is not None
    found = answer_tokens(rows, data, 8, known)
    assert [texts(part, known) for part in found[:2]] == [[("a", "b\n")], [("a", "b\n")]]


def test_the_same_text_with_other_answers_is_other_data(tmp_path: Path) -> None:
    digests = set()
    for row in (("ab", "c"), ("a", "bc")):
        data = write(tmp_path / "a.jsonl", [row] * 3)
        digests.add(sha256(load_source(data), data, ByteTokenizer()))
    assert len(digests) == 2


def test_parquet_and_several_files_are_read_alike(tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", sums(20))
    columns = dict(zip(("prompt", "answer"), map(list, zip(*sums(20), strict=True)), strict=True))
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "b.parquet")
    table = TextConfig(source=str(tmp_path / "b.parquet"), tokenizer="bytes", **COLUMNS)
    both = TextConfig(source=f"{data.source},{table.source}", tokenizer="bytes", **COLUMNS)
    found = [AnswerData(load_source(each), 32, 1, each) for each in (data, table, both)]
    assert found[0].sha256 == found[1].sha256 != found[2].sha256
    assert found[2].notes[0].startswith("40 rows, 4 of them to validate on (the last ones)")


def test_bpe_is_learnt_from_the_training_rows_alone(tmp_path: Path) -> None:
    rows = [("to be or not", "to be or not")] * 9 + [("zzzz zzzz zzzz", "zzzz zzzz zzzz")]
    data = write(tmp_path / "a.jsonl", rows)
    data = TextConfig(source=data.source, tokenizer="bpe:300", **COLUMNS)
    tokenizer = AnswerData(load_source(data), 32, 1, data).tokenizer
    assert len(tokenizer.encode("to be")) < 5
    assert len(tokenizer.encode("zzzz")) == 4


def test_no_text_of_rows_is_held_out(tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", sums(8))
    with pytest.raises(InputError, match="is read as rows with answers, of which no text is held out"):
        next(held_out_documents(load_source(data), data))


def test_rows_of_a_source_that_is_text_have_no_answers() -> None:
    assert Source.of_text("text", "somewhere").rows is None
