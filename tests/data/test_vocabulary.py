"""Symbols and their numbers."""

import pytest

from data.vocabulary import END, PAD, START, Vocabulary
from training.runtime.errors import InputError


def test_symbols_follow_three_special_tokens() -> None:
    vocabulary = Vocabulary.from_texts(["cab", "bad"], "characters")
    assert len(vocabulary) == 7
    assert sorted((PAD, START, END)) == [0, 1, 2]
    assert vocabulary.encode("abcd") == [3, 4, 5, 6]
    assert vocabulary.decode([6, 3, 4]) == "dab"
    assert vocabulary.decode([START, 3, END]) == "<start>a<end>"


def test_words_are_what_stands_between_spaces() -> None:
    vocabulary = Vocabulary.from_texts(["the cat sat", "on  the mat"], "words")
    assert vocabulary.symbols == ("cat", "mat", "on", "sat", "the")
    assert vocabulary.decode(vocabulary.encode(" the mat\n")) == "the mat"


@pytest.mark.parametrize(
    ("unit", "text", "message"),
    [
        ("characters", "aé", "unknown character 'é' at position 2 of the source: it is not in the vocabulary"),
        ("characters", "a\u200b", r"unknown character '\\u200b' at position 2 of the source"),
        ("words", "a dog", "unknown word 'dog' at position 2 of the source"),
        (
            "characters",
            "bab€bé",
            r"unknown character 'b' at position 1 of the source: they are not in the vocabulary \(all of them, with "
            r"their number: 'b' 3, '€' 1, 'é' 1\)$",
        ),
        ("words", "dog a dog", r"'dog' at position 1 of the source: it is not in .* with their number: 'dog' 2\)$"),
    ],
)
def test_unknown_symbols_are_named_all_at_once_with_their_numbers(unit: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Vocabulary.from_texts(["a"], unit).encode(text, "the source")  # type: ignore[arg-type]


@pytest.mark.parametrize("unit", ["characters", "words"])
def test_json_brings_it_back(unit: str) -> None:
    vocabulary = Vocabulary.from_texts(['é 漢 \\ "'], unit)  # type: ignore[arg-type]
    again = Vocabulary.from_json(vocabulary.to_json())
    assert (again.symbols, again.unit) == (vocabulary.symbols, unit)
