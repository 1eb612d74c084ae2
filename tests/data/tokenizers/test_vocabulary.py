"""Tokens of pairs: special ones, then characters, words or subwords."""

from pathlib import Path

import pytest

from data.tokenizers.symbols import Symbols
from data.tokenizers.vocabulary import END, PAD, SPECIAL, START, Vocabulary
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
    assert [vocabulary.token_bytes(token) for token in range(3, 8)] == [b"cat", b"mat", b"on", b"sat", b"the"]
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
    assert again.encode('漢 "') == vocabulary.encode('漢 "')
    assert (again.unit, again.to_json()) == (unit, vocabulary.to_json())


def test_the_vocabulary_of_an_older_checkpoint_is_read() -> None:
    for unit, text in (("characters", "cab"), ("words", "c  a b")):
        vocabulary = Vocabulary.from_json(f'{{"unit": "{unit}", "symbols": ["a", "b", "c"]}}')
        assert vocabulary.encode(text) == [5, 3, 4]
        assert isinstance(vocabulary.tokenizer, Symbols)


@pytest.mark.parametrize("name", ["bytes", "bpe:300"])
def test_subwords_follow_three_special_tokens_and_nothing_is_unknown(name: str) -> None:
    vocabulary = Vocabulary.learnt(name, ["number 7, Zahl 7"] * 9)
    assert (vocabulary.unit, vocabulary.separator) == ("tokens", "")
    text = "<end> Zahl €\0 <|endoftext|>"
    tokens = vocabulary.encode(text)
    assert all(SPECIAL <= token < len(vocabulary) for token in tokens), "a special token's name in a text is text"
    assert b"".join(map(vocabulary.token_bytes, tokens)) == text.encode()
    assert vocabulary.decode(tokens) == text
    assert vocabulary.decode([START, *tokens, END]) == f"<start>{text}<end>"
    assert vocabulary.decode(vocabulary.encode("7€")[:-1]) == "7\ufffd"
    assert vocabulary.counts([text, ""]) == [len(tokens), 0]
    assert len(tokens) != vocabulary.length(text) == len(text)
    assert not vocabulary.unknown([text])
    assert vocabulary.without_unknown(text) == text


@pytest.mark.parametrize("name", ["bytes", "bpe:300"])
def test_json_brings_subwords_back_and_what_is_none_is_refused_by_name(name: str) -> None:
    vocabulary = Vocabulary.learnt(name, ["number 7, Zahl 7"] * 9)
    again = Vocabulary.from_json(vocabulary.to_json())
    assert again.to_json() == vocabulary.to_json()
    assert again.encode("Zahl 7") == vocabulary.encode("Zahl 7")
    for content in ("[7]", "{}", '{"unit": "words"}', '{"unit": "bytes", "symbols": []}'):
        with pytest.raises(InputError, match=r"^some\.json: "):
            Vocabulary.from_json(content, Path("some.json"))
