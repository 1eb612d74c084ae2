"""Generated strings: pure functions of (seed, split, index), and never in two splits."""

import pytest

from data.pairs.strings import GeneratedPairs, split_of
from training.runtime.errors import InputError

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def copies(**changes: int | str) -> GeneratedPairs:
    options = {"task": "copy", "symbols": LETTERS, "min_length": 1, "max_length": 20, "seed": 1} | changes
    return GeneratedPairs(**options)  # type: ignore[arg-type]


def test_a_pair_depends_on_seed_split_and_index_alone() -> None:
    there = [copies().pair("train", index).source for index in range(50)]
    pairs = copies()
    assert [pairs.pair("train", index).source for index in reversed(range(50))] == there[::-1]
    assert [copies(seed=2).pair("train", index).source for index in range(50)] != there
    assert [pairs.pair("val", index).source for index in range(50)] != there


def test_targets_are_the_source_or_its_reverse() -> None:
    for task, turn in (("copy", 1), ("reverse", -1)):
        pairs = [copies(task=task).pair("test", index) for index in range(100)]
        assert all(pair.target == pair.source[::turn] for pair in pairs)


def test_no_string_is_in_two_splits_whatever_the_seed() -> None:
    found = {
        split: {copies(seed=seed, max_length=3).pair(split, index).source for seed in (1, 2) for index in range(2000)}
        for split in ("train", "val", "test")
    }
    assert not found["train"] & found["val"]
    assert not found["train"] & found["test"]
    assert not found["val"] & found["test"]
    assert all(split_of(text) == split for split, texts in found.items() for text in texts)


def test_a_tenth_of_all_strings_is_for_validation_and_a_tenth_for_the_test() -> None:
    splits = [split_of(a + b + c) for a in LETTERS for b in LETTERS for c in LETTERS]
    assert splits.count("test") / len(splits) == pytest.approx(0.1, abs=0.01)
    assert splits.count("val") / len(splits) == pytest.approx(0.1, abs=0.01)


def test_all_lengths_come_equally_often_and_all_symbols() -> None:
    texts = [copies(min_length=3, max_length=6).pair("train", index).source for index in range(4000)]
    counts = [sum(len(text) == length for text in texts) for length in (3, 4, 5, 6)]
    assert sum(counts) == 4000
    assert all(abs(count - 1000) < 5 * (4000 * 0.25 * 0.75) ** 0.5 for count in counts)
    assert {symbol for text in texts for symbol in text} == set(LETTERS)


def test_distinct_pairs_are_distinct_and_end_where_there_are_no_more() -> None:
    pairs = copies(symbols="abcdefgh", max_length=2).distinct("test", 1000)
    sources = [pair.source for pair in pairs]
    every = [*"abcdefgh", *(a + b for a in "abcdefgh" for b in "abcdefgh")]
    assert sorted(sources) == sorted(text for text in every if split_of(text) == "test")
    assert len(copies().distinct("test", 300)) == 300


def test_origin_tells_how_few_short_strings_there_are() -> None:
    assert copies(max_length=4).origin == (
        "copy strings of 1 to 4 of 26 symbols, only 26 of length 1, 676 of length 2, 17,576 of length 3"
    )
    assert copies(min_length=5).origin == "copy strings of 5 to 20 of 26 symbols"


def test_too_few_strings_for_a_split_are_an_error() -> None:
    with pytest.raises(
        InputError, match="copy strings of 1 to 2 of 1 symbols, only 1 of length 1, 1 of length 2 are too"
    ):
        copies(symbols="a", max_length=2)


def test_the_digest_tells_tasks_apart() -> None:
    digests = {
        copies().sha256,
        copies(task="reverse").sha256,
        copies(symbols="abc").sha256,
        copies(max_length=9).sha256,
    }
    assert len(digests) == 4
    assert copies(seed=7).sha256 == copies().sha256
