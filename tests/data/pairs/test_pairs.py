"""Pairs from files and from a hub on loopback; bad rows are named by file and line."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from small_hub import SmallHub, parquet, serving

from data.config import PairConfig
from data.pairs.files import FilePairs
from data.pairs.strings import split_of
from data.tokenizers.vocabulary import Vocabulary
from training.runtime.errors import InputError

NESTED = [{"en": f"number {n}", "de": f"Zahl {n}"} for n in range(200)]
NUMBERS = [{"source": f"{n} squared", "target": str(n * n)} for n in range(200)]


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def json_lines(rows: list[Any]) -> list[str]:
    return [json.dumps(row) for row in rows]


def load(path: Path | str, **options: Any) -> FilePairs:
    return FilePairs(PairConfig(task="pairs", source=str(path), **options), seed=1)


def all_pairs(pairs: FilePairs) -> set[tuple[str, str]]:
    return {pair[:2] for split in pairs.splits.values() for pair in split}


def test_json_lines_and_csv_give_the_same_pairs(tmp_path: Path) -> None:
    from_json = load(write(tmp_path / "a.jsonl", json_lines(NUMBERS)))
    rows = ["note,target,source", *(f'"a, b",{row["target"]},{row["source"]}' for row in NUMBERS)]
    from_csv = load(write(tmp_path / "a.csv", rows))
    assert all_pairs(from_json) == all_pairs(from_csv) == {(row["source"], row["target"]) for row in NUMBERS}
    assert from_json.sha256 == from_csv.sha256
    assert from_csv.splits["train"][0].location == f"{tmp_path / 'a.csv'}, line 2"


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
    epochs = [pairs.stream("train", epoch * size, size) for epoch in (0, 1)]
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
        (".jsonl", '{"source": [7], "target": "b"}', "line 3: column source must hold text, got list"),
        (".jsonl", '{"source": NaN, "target": "b"}', "line 3: column source is missing"),
        (
            ".jsonl",
            '{"source": {"en": "a"}, "target": "b"}',
            "line 3: no column source: choose data.source_column and ",
        ),
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
    with pytest.raises(InputError, match=re.escape(f"{path}, {message}")) as caught:
        load(path)
    assert "--data.on_bad_row skip" in str(caught.value)
    with pytest.raises(InputError, match="no pairs .*; [12] rows? left out: line [34] "):
        load(path, on_bad_row="skip")


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
    assert load(write(path, json_lines(rows)), tokenizer="words").check_lengths(6) is None


def test_the_length_of_a_row_counts_in_subwords(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json_lines([*NUMBERS, {"source": "€" * 6, "target": "b"}]))
    with pytest.raises(InputError, match=r"line 201: the source has 18 tokens, at most 12 fit into model.max_len 14"):
        load(path, tokenizer="bytes").check_lengths(14)
    pairs = load(path, tokenizer="bytes", on_bad_row="skip")
    pairs.check_lengths(14)
    assert len(all_pairs(pairs)) == 200
    assert pairs.vocabulary() == (pairs.tokens, "")
    short = load(path, tokenizer="bpe:300", on_bad_row="skip")
    short.check_lengths(6)
    assert all_pairs(pairs) <= all_pairs(short), "' squared' is one token"


def test_the_sha256_is_as_ever_for_symbols_and_covers_the_tokenizer_of_subwords(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json_lines(NUMBERS))
    expected = {"characters": "1ec2a832", "words": "e7635c42"}
    found = {name: load(path, tokenizer=name).sha256[:8] for name in (*expected, "bytes", "bpe:300", "bpe:280")}
    assert {name: found[name] for name in expected} == expected
    assert len(set(found.values())) == 5
    content = load(path, tokenizer="bpe:300").tokens.to_json()
    saved = FilePairs(PairConfig(task="pairs", source=str(path)), 1, Vocabulary.from_json(content))
    assert saved.sha256[:8] == found["bpe:300"]


def texts(
    separator: str, *, header: str = "source{}target", quote: str = "", row: str = "{q}{a}{q}{s}{q}{b}{q}"
) -> str:
    """A table of 60 pairs of sentences, with commas and apostrophes in them."""
    rows = [row.format(q=quote, s=separator, a=f"It's number {n}, isn't it?", b=f"Nummer {n}, ja.") for n in range(60)]
    return "\n".join([header.format(separator), *rows] if header else rows) + "\n"


PAIRS = {(f"It's number {n}, isn't it?", f"Nummer {n}, ja.") for n in range(60)}
BY_NUMBER = {"source_column": "1", "target_column": "2"}
NO_HEADER = "no header: column 1 is the source, column 2 the target"


@pytest.mark.parametrize(
    ("name", "content", "options", "notes"),
    [
        ("a.tsv", texts("\t"), {}, []),
        ("A.CSV", texts(";"), {}, ["separated by semicolons"]),
        ("a.csv", texts("|", header="target{0}note{0}source", row="{b}{s}{s}{a}"), {}, ["separated by bars"]),
        ("a.csv", texts(",", header="source, target", row='"{a}", "{b}"'), {}, ["without the space after it"]),
        ("a.csv", " \n" + texts(",", quote='"'), {}, []),
        ("a.csv", "sep=;\n" + texts(";"), {}, ["separated by semicolons"]),
        ("a.csv", '"sep=*"\r\n' + texts("*"), {}, ["separated by '*'"]),
        ("a.csv", texts("\t").encode("utf-16"), {}, ["read as UTF-16LE; separated by tabs"]),
        ("a.tsv", texts("\t", header=""), {}, [NO_HEADER]),
        ("a.csv", texts(";", header=""), {}, [f"separated by semicolons; {NO_HEADER}"]),
        ("a.csv", texts(",", header="", quote='"'), {}, [NO_HEADER]),
        ("a.tsv", texts("\t", header="", row="{a}{s}{b}{s}CC-BY"), BY_NUMBER, [NO_HEADER]),
        (
            "a.tsv",
            texts("\t", header="", row="{b}{s}{a}"),
            {"source_column": "2", "target_column": "1"},
            ["no header: column 2 is the source, column 1 the target"],
        ),
    ],
)
def test_a_table_is_read_whatever_its_dialect_and_what_was_guessed_is_said(
    tmp_path: Path, name: str, content: str | bytes, options: dict[str, str], notes: list[str]
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    pairs = load(tmp_path / name, **options)
    assert all_pairs(pairs) == PAIRS
    assert pairs.notes == notes


@pytest.mark.parametrize(
    ("name", "row", "expected", "note"),
    [
        ("a.csv", '"{n} ""a"" \\b","c"', ('{n} "a" \\b', "c"), None),
        ("a.csv", '"{n} \\"a\\", b","c"', ('{n} "a", b', "c"), '\\" for a quote'),
        ("a.tsv", '"{n}\ta"\tc', ("{n}\ta", "c"), None),
        ("a.tsv", '"{n}," he said\t"c"', ('"{n}," he said', '"c"'), "quotes as text"),
        ("a.csv", "{n}," + 200_000 * "x", ("{n}", 200_000 * "x"), None),
        ("a.csv", "\"['{n}', 'a']; b\",c", ("['{n}', 'a']; b", "c"), None),
    ],
)
def test_quotes_and_long_fields_are_read_as_they_are_meant(
    tmp_path: Path, name: str, row: str, expected: tuple[str, str], note: str | None
) -> None:
    separator = "\t" if name == "a.tsv" else ","
    rows = [row.replace("{n}", f"row {n}") for n in range(60)]
    pairs = load(write(tmp_path / name, [f"source{separator}target", *rows]))
    assert all_pairs(pairs) == {(expected[0].replace("{n}", f"row {n}"), expected[1]) for n in range(60)}
    assert pairs.notes == ([note] if note else [])


@pytest.mark.parametrize(
    ("first", "names"), [("en,de", "(en, de)"), ("Hund,dog", "(Hund, dog)"), ("Go.,Geh.,CC-BY", "(Go., Geh., CC-BY)")]
)
def test_a_table_without_the_columns_names_both_ways_on(tmp_path: Path, first: str, names: str) -> None:
    path = write(tmp_path / "a.csv", [first, *(f"{n} a,b" + ",c" * (first.count(",") - 1) for n in range(60))])
    with pytest.raises(InputError, match=re.escape(f"{path}, line 1: no column source: ")) as caught:
        load(path)
    assert names in str(caught.value)
    assert str(caught.value).endswith(
        "where this line is a pair itself, numbers: --data.source_column 1 --data.target_column 2"
    )
    assert len(all_pairs(load(path, **BY_NUMBER))) == 61
    with pytest.raises(InputError, match="no column 9: choose"):
        load(path, source_column="9")
    with pytest.raises(InputError, match="no column 9: choose"):
        load(path, source_column="1", target_column="9")


def test_a_column_that_is_there_twice_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ["source,target,target", *(f"{n},b,c" for n in range(60))])
    with pytest.raises(InputError, match="a.csv, line 1: two columns of the name target: call one otherwise"):
        load(path)
    columns = pyarrow.array(["a"] * 60)
    pyarrow.parquet.write_table(pyarrow.table([columns] * 3, ["source", "target", "target"]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="a.parquet has two columns of the name target: call one otherwise"):
        load(tmp_path / "a.parquet")


def test_an_object_that_is_nested_too_deep_is_a_bad_row(tmp_path: Path) -> None:
    deep = '{"a": ' * 900 + "1" + "}" * 900
    (tmp_path / "a.json").write_text(f"[{json.dumps(NUMBERS[0])}, {deep}]")
    with pytest.raises(InputError, match="a.json, row 2: expected a JSON object, got none .nested too deep"):
        load(tmp_path / "a.json")


@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_of_json_is_read_and_numbers_are_as_they_are_written(tmp_path: Path, indent: int | None) -> None:
    rows = [{"source": n, "target": n / 10} for n in range(200)]
    array, lines = tmp_path / "a.json", write(tmp_path / "b.json", json_lines(rows))
    array.write_text(json.dumps(rows, indent=indent))
    expected = {(str(n), str(n / 10)) for n in range(200)}
    assert all_pairs(load(array)) == all_pairs(load(lines)) == expected
    digits = write(tmp_path / "c.jsonl", [f'{{"source": 1.50, "target": {"9" * 5000}}}', *json_lines(rows)])
    assert ("1.50", "9" * 5000) in all_pairs(load(digits))
    array.write_text(json.dumps([*rows, 7, {"source": "a"}]))
    with pytest.raises(InputError, match=r"a.json, row 201: expected a JSON object, got "):
        load(array)
    assert load(array, on_bad_row="skip").notes[0].startswith("2 rows left out: row 201 (expected a JSON object")
    array.write_text('[{"source": "a",\n "target"}]')
    with pytest.raises(InputError, match=r"a.json, line 2: expected an array of JSON objects \(Expecting ':'"):
        load(array, on_bad_row="skip")


def test_bad_and_long_rows_among_thousands_are_skipped_counted_and_listed(tmp_path: Path) -> None:
    rows = [f"a {n},b {n}" for n in range(3000)]
    good = load(write(tmp_path / "good.csv", ["source,target", *rows]))
    bad = {100: '"open,b', 200: "a,b,c", 300: "a", 400: "a" * 30 + ",b", 3002: '"open'}
    for place, row in sorted(bad.items()):
        rows.insert(place - 2, row)
    path = write(tmp_path / "bad.csv", ["source,target", *rows])
    with pytest.raises(InputError, match=r"line 100: .*--data.on_bad_row skip"):
        load(path)
    pairs = load(path, on_bad_row="skip")
    pairs.check_lengths(20)
    assert pairs.sha256 == good.sha256
    assert pairs.notes == [
        "5 rows left out: line 100 (',' expected after '\"'), line 200 (expected 2 fields, got more), line 300 (column "
        "target is missing), line 3002 (unexpected end of data), line 400 (the source has 30 characters, at most 18 "
        "fit into model.max_len 20 beside the special tokens)"
    ]
    many = load(write(path, ["source,target", *rows, *["a"] * 50]), on_bad_row="skip")
    assert re.match(r"54 rows left out: line 100 .* and 34 more$", many.notes[0])


def test_parquet_gives_the_same_pairs_as_json_lines(tmp_path: Path) -> None:
    columns = {name: [row[name] for row in NUMBERS] for name in ("source", "target")}
    (tmp_path / "A.PARQUET").write_bytes(parquet(id=list(range(200)), **columns))
    pairs = load(tmp_path / "A.PARQUET")
    assert all_pairs(pairs) == {(row["source"], row["target"]) for row in NUMBERS}
    assert pairs.sha256 == load(write(tmp_path / "a.jsonl", json_lines(NUMBERS))).sha256
    (tmp_path / "b.parquet").write_bytes(parquet(translation=NESTED))
    nested = load(tmp_path / "b.parquet", source_column="translation.en", target_column="translation.de")
    assert all_pairs(nested) == {(row["en"], row["de"]) for row in NESTED}


def test_bad_rows_and_columns_of_parquet_are_named(tmp_path: Path) -> None:
    path, columns = tmp_path / "a.parquet", {name: [row[name] for row in NUMBERS] for name in ("source", "target")}
    path.write_bytes(parquet(source=[*columns["source"], "a", " "], target=[*columns["target"], None, "b"]))
    with pytest.raises(InputError, match=r"a\.parquet, row 201: column target is missing \(--data.on_bad_row skip le"):
        load(path)
    pairs = load(path, on_bad_row="skip")
    assert pairs.notes == ["2 rows left out: row 201 (column target is missing), row 202 (column source is empty)"]
    assert len(all_pairs(pairs)) == 200
    with pytest.raises(InputError, match=r"a\.parquet has no column en: choose one of source, target"):
        load(path, source_column="en")
    path.write_bytes(parquet(source=columns["source"], target=list(range(200))))
    with pytest.raises(InputError, match=r"a\.parquet, row 1: column target must hold text, got int"):
        load(path)
    path.write_bytes(b"no rows")
    with pytest.raises(InputError, match=r"a\.parquet is no Parquet file, or a damaged one \(Parquet file size"):
        load(path)
    with pytest.raises(InputError, match=r"cannot read \S+none\.parquet: "):
        load(tmp_path / "none.parquet")


def test_symbols_that_training_lacks_are_known_and_said(tmp_path: Path) -> None:
    rows = [*NUMBERS, *({"source": f"€{n}", "target": "é"} for n in range(50) if split_of(f"€{n}") == "val")]
    vocabulary, unlearnt = load(write(tmp_path / "a.jsonl", json_lines(rows))).vocabulary()
    count = len(rows) - len(NUMBERS)
    assert unlearnt == f"'€' {count}, 'é' {count}"
    assert vocabulary.encode("€é")


def test_files_that_cannot_be_read_and_too_few_pairs_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read \S+no.jsonl: No such file or directory"):
        load(tmp_path / "no.jsonl")
    (tmp_path / "damaged.csv").write_bytes("source,target\né,ß\nüö,b\nä,".encode() + b"\xe9\n")
    with pytest.raises(InputError, match=r"damaged.csv is damaged UTF-8.* line 4"):
        load(tmp_path / "damaged.csv")
    with pytest.raises(InputError, match=r"empty.jsonl is empty"):
        load(write(tmp_path / "empty.jsonl", []))
    with pytest.raises(InputError, match="has no pairs for training: it takes some dozens"):
        load(write(tmp_path / "lines.csv", ["", ""]))
    with pytest.raises(InputError, match="has no pairs for "):
        load(write(tmp_path / "one.jsonl", json_lines(NUMBERS[:1])))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"task": "pairs"},
            "data.source must be a file that ends in .jsonl, .json, .csv, .tsv or .parquet, or hub:OWNER/NAME, with ",
        ),
        ({"task": "pairs", "source": "a.txt"}, "data.source must be a file that ends in .jsonl, .json, .csv, .tsv or "),
        ({"task": "pairs", "source": "hub:x"}, "data.source must be a file that ends in .jsonl, .json, .csv, .tsv or "),
        ({"on_bad_row": "skip"}, "data.on_bad_row is for data.task pairs only, got data.task copy"),
        ({"source": "a.csv"}, "data.source is for data.task pairs only, got data.task copy"),
        (
            {"task": "pairs", "source": "a.csv", "max_length": 9},
            "data.max_length is for data.task copy and reverse only, got data.task pairs",
        ),
        ({"tokenizer": "words"}, "data.tokenizer words is for data.task pairs: the strings of copy have no spaces"),
        (
            {"tokenizer": "letters"},
            "data.tokenizer must be words, characters, bytes, bpe:N with N from 257 to ",
        ),
        (
            {"tokenizer": "bpe:256"},
            "data.tokenizer must be words, characters, bytes, bpe:N with N from 257 to ",
        ),
        ({"tokenizer_bytes": 999}, "data.tokenizer_bytes must be at least 1000, got 999"),
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
        PairConfig(**options)


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
            "us/nested": {"main": {"train.parquet": parquet(id=list(columns["source"]), translation=NESTED)}},
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
    with pytest.raises(InputError, match=r"no column source: .* \(id, translation.en, translation.de\)"):
        load("hub:us/nested")


@pytest.mark.usefixtures("hub")
def test_columns_inside_another_can_be_chosen_from_the_hub_and_from_json(tmp_path: Path) -> None:
    columns = {"source_column": "translation.en", "target_column": "translation.de"}
    rows = write(tmp_path / "a.jsonl", json_lines([{"id": 1, "translation": row} for row in NESTED]))
    expected = {(row["en"], row["de"]) for row in NESTED}
    assert all_pairs(load("hub:us/nested", **columns)) == all_pairs(load(rows, **columns)) == expected
