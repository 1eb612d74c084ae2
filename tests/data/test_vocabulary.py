"""Tokens of pairs: special ones, then characters, words or subwords."""

from pathlib import Path

import pytest
from small_tokenizer import SmallTokenizer

from data.symbols import Symbols
from data.vocabulary import END, PAD, START, Vocabulary
from training.runtime.errors import InputError


def test_symbols_follow_three_special_tokens() -> None:
    vocabulary = Vocabulary.learnt("characters", ["cab", "bad"])
    assert len(vocabulary) == 7
    assert sorted((PAD, START, END)) == [0, 1, 2]
    assert vocabulary.encode("abcd") == [3, 4, 5, 6]
    assert vocabulary.decode([6, 3, 4]) == "dab"
    assert vocabulary.decode([START, 3, END]) == "<start>a<end>"


def test_words_are_what_stands_between_spaces() -> None:
    vocabulary = Vocabulary.learnt("words", ["the cat sat", "on  the mat"])
    assert vocabulary.names(range(3, 8)) == ["cat", "mat", "on", "sat", "the"]
    assert vocabulary.decode(vocabulary.encode(" the mat\n")) == "the mat"
    assert vocabulary.counts([" the mat\n", "a dog"]) == [2, 2]
    assert vocabulary.length("a dog") == 2


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
    vocabulary = Vocabulary.learnt(unit, ["a"])
    with pytest.raises(InputError, match=message):
        vocabulary.encode(text, "the source")
    assert vocabulary.encode(vocabulary.without_unknown(text)) == [3] * text.count("a")


@pytest.mark.parametrize("unit", ["characters", "words"])
def test_json_brings_symbols_back(unit: str) -> None:
    vocabulary = Vocabulary.learnt(unit, ['é 漢 \\ "'])
    again = Vocabulary.from_json(vocabulary.to_json())
    assert again.names(range(3, len(vocabulary))) == vocabulary.names(range(3, len(again)))
    assert (again.unit, again.to_json()) == (unit, vocabulary.to_json())


def test_the_vocabulary_of_an_older_checkpoint_is_read() -> None:
    for unit, text in (("characters", "cab"), ("words", "c  a b")):
        vocabulary = Vocabulary.from_json(f'{{"unit": "{unit}", "symbols": ["a", "b", "c"]}}')
        assert vocabulary.encode(text) == [5, 3, 4]
        assert isinstance(vocabulary.tokenizer, Symbols)


@pytest.mark.usefixtures("small_tokenizer")
def test_subwords_follow_three_special_tokens_and_nothing_is_unknown() -> None:
    vocabulary = Vocabulary.learnt("bytes", ["never looked at"])
    assert (len(vocabulary), vocabulary.unit, vocabulary.separator) == (3 + len(SmallTokenizer()), "tokens", "")
    text = "<end> Zahl €\0"
    tokens = vocabulary.encode(text)
    assert min(tokens) >= 3, "a special token's name in a text is text"
    assert vocabulary.decode(tokens) == text
    assert vocabulary.decode([START, *tokens, END]) == f"<start>{text}<end>"
    assert vocabulary.counts([text, ""]) == [len(tokens), 0]
    assert len(tokens) != vocabulary.length(text) == len(text)
    assert not vocabulary.unknown([text])
    assert vocabulary.without_unknown(text) == text


@pytest.mark.usefixtures("small_tokenizer")
def test_a_character_of_several_tokens_is_shown_when_it_is_whole() -> None:
    vocabulary = Vocabulary.learnt("bytes", [])
    tokens = vocabulary.encode("Zahl é€")
    assert vocabulary.names([START, *tokens]) == ["<start>", "Zahl ", r"\xc3", r"\xa9", r"\xe2", r"\x82", r"\xac"]
    assert vocabulary.pieces(tokens) == ["Zahl ", "", "é", "", "", "€"]
    assert vocabulary.pieces(tokens[:-1]) == ["Zahl ", "", "é", "", ""]
    assert vocabulary.decode(tokens[:-1]) == "Zahl é\ufffd"


@pytest.mark.usefixtures("small_tokenizer")
def test_json_brings_subwords_back_and_what_is_none_is_refused_by_name() -> None:
    vocabulary = Vocabulary.learnt("bytes", [])
    again = Vocabulary.from_json(vocabulary.to_json())
    assert again.to_json() == vocabulary.to_json()
    assert again.encode("Zahl 7") == vocabulary.encode("Zahl 7")
    for content in ("[7]", "{}", '{"unit": "words"}', '{"unit": "bytes", "symbols": []}'):
        with pytest.raises(InputError, match=r"^some\.json: "):
            Vocabulary.from_json(content, Path("some.json"))
