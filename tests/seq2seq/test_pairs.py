"""Pairs from files and from a hub on loopback; bad rows are named by file and line."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_hub import SmallHub, parquet, serving

from seq2seq.config import DataConfig
from seq2seq.pairs import FilePairs
from seq2seq.tasks import split_of
from training.errors import InputError

NUMBERS = [{"source": f"{n} squared", "target": str(n * n)} for n in range(200)]


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def json_lines(rows: list[Any]) -> list[str]:
    return [json.dumps(row) for row in rows]


def load(path: Path | str, **options: Any) -> FilePairs:
    return FilePairs(DataConfig(task="pairs", source=str(path), **options), seed=1)


def all_pairs(pairs: FilePairs) -> set[tuple[str, str]]:
    return {pair[:2] for split in pairs.splits.values() for pair in split}


def test_json_lines_and_csv_give_the_same_pairs(tmp_path: Path) -> None:
    from_json = load(write(tmp_path / "a.jsonl", json_lines(NUMBERS)))
    rows = ["note,target,source", *(f'"a, b",{row["target"]},{row["source"]}' for row in NUMBERS)]
    from_csv = load(write(tmp_path / "a.csv", rows))
    assert all_pairs(from_json) == all_pairs(from_csv) == {(row["source"], row["target"]) for row in NUMBERS}
    assert from_json.sha256 == from_csv.sha256
    assert from_csv.splits["train"][0].place == f"{tmp_path / 'a.csv'}, line 2"


def test_a_spreadsheets_mark_and_line_ends_and_quotes_do_no_harm(tmp_path: Path) -> None:
    rows = "".join(f'q{n},"{n} ""x"",\ny"\r\n' for n in range(100))
    (tmp_path / "a.csv").write_bytes(("\ufeffsource,target\r\n" + rows).encode())
    pairs = load(tmp_path / "a.csv")
    assert ("q7", '7 "x",\ny') in all_pairs(pairs)


def test_other_columns_can_be_chosen(tmp_path: Path) -> None:
    rows = [{"en": row["source"], "de": row["target"]} for row in NUMBERS]
    pairs = load(write(tmp_path / "a.jsonl", json_lines(rows)), source_column="en", target_column="de")
    assert ("3 squared", "9") in all_pairs(pairs)


def test_pairs_are_split_by_their_sources_so_that_none_is_in_two_splits(tmp_path: Path) -> None:
    rows = NUMBERS + [{"source": row["source"], "target": "another"} for row in NUMBERS]
    pairs = load(write(tmp_path / "a.jsonl", json_lines(rows)))
    for split, found in pairs.splits.items():
        assert all(split_of(pair.source) == split for pair in found)
    assert len(pairs.splits["train"]) == pytest.approx(0.8 * 400, abs=40)


def test_an_epoch_has_every_training_pair_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    pairs = load(write(tmp_path / "a.jsonl", json_lines(NUMBERS)))
    size = len(pairs.splits["train"])
    epochs = [[pairs.pair("train", epoch * size + index) for index in range(size)] for epoch in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(pairs.splits["train"])
    assert epochs[0] != epochs[1]


def test_a_part_of_a_split_is_spread_over_it(tmp_path: Path) -> None:
    pairs = load(write(tmp_path / "a.jsonl", json_lines(NUMBERS)))
    train = pairs.splits["train"]
    some = pairs.distinct("train", 10)
    assert len(set(some)) == 10
    assert train.index(some[-1]) > 0.8 * len(train)
    assert pairs.distinct("train", 10**6) == train


@pytest.mark.parametrize(
    ("suffix", "line", "message"),
    [
        (".jsonl", '{"source": "a"', "line 3: expected a JSON object, got none (Expecting ',' delimiter)"),
        (".jsonl", '["a", "b"]', "line 3: expected a JSON object, got list"),
        (
            ".jsonl",
            '{"source": "a"}',
            "line 3: no column target: choose data.source_column and data.target_column (source)",
        ),
        (".jsonl", '{"source": "a", "target": null}', "line 3: column target is missing"),
        (".jsonl", '{"source": 7, "target": "b"}', "line 3: column source must hold text, got int"),
        (".jsonl", '{"source": " ", "target": "b"}', "line 3: column source is empty"),
        (".jsonl", '{"source": "\\ud800", "target": "b"}', "line 3: column source holds half of a surrogate pair"),
        (".csv", "a", "line 3: column target is missing"),
        (".csv", "a,", "line 3: column target is empty"),
        (".csv", "a,b,c", "line 3: expected 2 fields, got more"),
        (".csv", '"a"b,c', "line 3: ',' expected after '\"'"),
        (".csv", '"a\nb",', "line 3: column target is empty"),
        (".csv", '\n"a\nb"', "line 4: column target is missing"),
        (".csv", '"a\nb', "line 3: unexpected end of data"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, suffix: str, line: str, message: str) -> None:
    good = json.dumps(NUMBERS[0])
    lines = [good, good, line, good] if suffix == ".jsonl" else ["source,target", "x,y", line, "x,y"]
    path = write(tmp_path / f"rows{suffix}", lines)
    with pytest.raises(InputError, match=re.escape(f"{path}, {message}")):
        load(path)


def test_a_row_that_is_longer_than_the_model_is_named(tmp_path: Path) -> None:
    rows = [*NUMBERS, {"source": "long " * 4, "target": "b"}, {"source": "a", "target": "long" * 5}]
    path = write(tmp_path / "a.jsonl", json_lines(rows))
    load(path).check_lengths(22)
    with pytest.raises(
        InputError, match=r"a\.jsonl, line 201: the source has 20 characters, at most 19 fit into model"
    ):
        load(path).check_lengths(21)
    with pytest.raises(
        InputError, match=r"line 202: the target has 20 characters, at most 19 fit into model.max_len 20"
    ):
        load(write(path, json_lines([*NUMBERS, rows[0], rows[-1]]))).check_lengths(20)
    assert load(write(path, json_lines(rows)), tokens="words").check_lengths(6) is None


def test_files_that_cannot_be_read_and_too_few_pairs_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read data.source \S+no.jsonl: No such file or directory"):
        load(tmp_path / "no.jsonl")
    (tmp_path / "latin.csv").write_bytes("source,target\né,b\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin.csv, line 2: not UTF-8 \(byte 0xe9\)"):
        load(tmp_path / "latin.csv")
    with pytest.raises(InputError, match="has no pairs for training: it takes some dozens"):
        load(write(tmp_path / "empty.jsonl", []))
    with pytest.raises(InputError, match="has no pairs for "):
        load(write(tmp_path / "one.jsonl", json_lines(NUMBERS[:1])))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"task": "pairs"},
            "data.source must be a file that ends in .jsonl or .csv, or hub:OWNER/NAME, with data.task pa",
        ),
        (
            {"task": "pairs", "source": "a.txt"},
            "data.source must be a file that ends in .jsonl or .csv, or hub:OWNER/NAM",
        ),
        (
            {"task": "pairs", "source": "hub:x"},
            "data.source must be a file that ends in .jsonl or .csv, or hub:OWNER/NAM",
        ),
        ({"source": "a.csv"}, "data.source is for data.task pairs only, got data.task copy"),
        (
            {"task": "pairs", "source": "a.csv", "max_length": 9},
            "data.max_length is for data.task copy and reverse only, got data.task pairs",
        ),
        ({"tokens": "words"}, "data.tokens words is for data.task pairs: the symbols of copy are characters"),
        (
            {"task": "pairs", "source": "a.csv", "revision": "v1"},
            "data.revision is for sources hub:OWNER/NAME only, got ",
        ),
        ({"symbols": "aa"}, "data.symbols must be different characters, at least one, got 'aa'"),
        ({"symbols": ""}, "data.symbols must be different characters, at least one, got ''"),
        ({"symbols": "a\n"}, r"data.symbols must be characters of one line, got 'a\n'"),
        ({"max_length": 0}, "data.max_length must be at least data.min_length (1), got 0"),
        ({"min_length": 0}, "data.min_length must be at least 1, got 0"),
        ({"val_samples": 0}, "data.val_samples must be between 1 and 10000, got 0"),
    ],
)
def test_options_that_do_not_fit_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        DataConfig(**options)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallHub]:
    """A hub with pairs: one data set with all three splits, one with training pairs alone."""
    columns = {name: [row[name] for row in NUMBERS] for name in ("source", "target")}
    few = {name: values[:3] for name, values in columns.items()}
    own = {split: parquet(**(columns if split == "train" else few)) for split in ("train", "validation", "test")}
    with serving() as hub:
        hub.datasets = {
            "us/three": {"main": {f"{split}.parquet": file for split, file in own.items()}},
            "us/one": {"main": {"train.parquet": own["train"]}},
            "us/gaps": {"main": {"train.parquet": parquet(source=["a", "b"], target=["c", None])}},
        }
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.chdir(tmp_path)
        yield hub


@pytest.mark.usefixtures("hub")
def test_a_data_set_of_the_hub_has_its_own_splits_or_is_split_by_hash() -> None:
    three = load("hub:us/three")
    assert {split: len(pairs) for split, pairs in three.splits.items()} == {"train": 200, "val": 3, "test": 3}
    assert re.fullmatch(r"us/three, from the hub \(commit \w{7}\)", three.origin)
    one = load("hub:us/one")
    assert sum(map(len, one.splits.values())) == 200
    assert all(split_of(pair.source) == split for split, pairs in one.splits.items() for pair in pairs)


@pytest.mark.usefixtures("hub")
def test_bad_columns_and_rows_of_the_hub_are_named() -> None:
    with pytest.raises(
        InputError, match=r"hub:us/one has no column en: choose one with --data.source_column \(source, tar"
    ):
        load("hub:us/one", source_column="en")
    with pytest.raises(InputError, match="hub:us/gaps, split train, row 1: column target is missing"):
        load("hub:us/gaps")
