"""Tokenizers of bytes and subwords: what they read is what they give back, and what a tokenizer.json may be."""

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data.cache.tokens import tokenized
from data.config import TextConfig
from data.text import Source
from data.tokenizers.subwords import BYTE_SYMBOLS, END_OF_TEXT, evenly_taken
from data.tokenizers.tokenizer import Tokenizer, make_tokenizer, read_tokenizer, unit_of
from training.runtime.errors import InputError

TEXT = "def total(values):\n    return sum(values)  # naïve 漢字 🙂\n\n\nprint('twice', total([1, 22, 333]))\n" * 30
LETTERS_OF_LLAMA = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
OTHERS_OF_LLAMA = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
WORDS_OF_LLAMA = {
    "type": "Sequence",
    "pretokenizers": [
        {
            "type": "Split",
            "pattern": {"Regex": f"{LETTERS_OF_LLAMA}|{OTHERS_OF_LLAMA}"},
            "behavior": "Isolated",
            "invert": False,
        },
        BYTE_LEVEL,
    ],
}


def added(token: int, content: str, **options: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token, "content": content} | flags | options


@cache
def bpe() -> Tokenizer:
    return make_tokenizer("bpe:300", [TEXT])


def changed(**parts: Any) -> str:
    """The tokenizer.json of `bpe`, with other parts; `model` has those of its model."""
    saved = json.loads(bpe().to_json())
    return json.dumps(saved | parts | {"model": saved["model"] | parts.get("model", {})})


def like_llama() -> str:
    """Words as Llama 3 cuts them, its special tokens behind the vocabulary, and its beginning of a text."""
    vocabulary = {name: n for n, name in enumerate(sorted(BYTE_SYMBOLS))} | {"Ġt": 256, "in": 257, "ing": 258}
    begin, end = 259, 260
    names = {"<|begin_of_text|>": {"id": "<|begin_of_text|>", "ids": [begin], "tokens": ["<|begin_of_text|>"]}}
    single = [{"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return changed(
        added_tokens=[added(begin, "<|begin_of_text|>"), added(end, "<|end_of_text|>"), added(261, "<|eot_id|>")],
        pre_tokenizer=WORDS_OF_LLAMA,
        post_processor={"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": names},
        model={"vocab": vocabulary, "merges": ["Ġ t", "i n", "in g"], "ignore_merges": True},
    )


MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "bytes": lambda: make_tokenizer("bytes", []),
    "bpe": bpe,
    "llama": lambda: read_tokenizer(like_llama()),
}


@pytest.mark.parametrize("name", MAKERS)
@given(text=st.text(max_size=40))
@example(f"{END_OF_TEXT}<|end_of_text|><|begin_of_text|><|eot_id|>")
@example("\r\n \x00\x1f\x7f\xad\u00a0e\u0301 \ufeff  it's\t\t\U0010ffff\ud7ff\ufffd\u200d")
def test_every_text_comes_back(name: str, text: str) -> None:
    tokenizer = MAKERS[name]()
    again = read_tokenizer(tokenizer.to_json())
    tokens = tokenizer.encode(text).tolist()
    assert tokenizer.decode(tokens) == again.decode(tokens) == text
    assert b"".join(map(tokenizer.token_bytes, tokens)) == text.encode()
    assert tokenizer.encode_prompt(text) == again.encode(text).tolist() == tokens
    assert [row.tolist() for row in tokenizer.encode_batch([text, "", text])] == [tokens, [], tokens]
    # What a text says is data, not the end of one; nor is anything put before it.
    assert tokenizer.end_of_text is not None
    assert tokenizer.end_of_text not in tokens
    assert tokenizer.token_bytes(tokenizer.end_of_text) == b""
    assert all(0 <= token < len(tokenizer) for token in tokens)


@pytest.mark.parametrize("name", MAKERS)
def test_tokens_of_any_order_are_decoded_as_their_bytes(name: str) -> None:
    tokenizer = MAKERS[name]()
    tokens = np.random.default_rng(0).integers(0, len(tokenizer), 2000).tolist()
    assert tokenizer.decode(tokens) == b"".join(map(tokenizer.token_bytes, tokens)).decode(errors="replace")


def test_sizes_ends_and_units() -> None:
    llama = MAKERS["llama"]()
    assert [len(make()) for make in MAKERS.values()] == [257, 300, 262]
    assert [make().end_of_text for make in MAKERS.values()] == [256, 0, 260]
    assert (llama.token_bytes(259), llama.token_bytes(261)) == (b"<|begin_of_text|>", b"<|eot_id|>")
    assert [unit_of(tokenizer) for tokenizer in (make_tokenizer("characters", ["ab"]), llama)] == ["character", "token"]
    assert all(make().notes == () for make in MAKERS.values())
    assert llama.encode("testing 1234").tolist() != bpe().encode("testing 1234").tolist()


def test_subwords_are_learnt_alike_each_time_from_the_training_text() -> None:
    assert make_tokenizer("bpe:300", [TEXT[:1000], TEXT[1000:]]).to_json() == bpe().to_json()
    assert len(bpe().encode(TEXT)) < len(TEXT) / 1.5
    found = tokenized(Source.of_text("ab" * 450 + "yz" * 50, "text"), TextConfig(tokenizer="bpe:260"))
    assert [found.tokenizer.token_bytes(token) for token in range(257, 260)] == [b"ab", b"abab", b"abababab"]
    assert len(found.validation.tokens_N) == 101  # with the end of the text


def test_what_subwords_are_learnt_from_is_even_and_said() -> None:
    texts = [str(n % 10) * 2500 for n in range(40)]
    pieces, every, total = evenly_taken(texts, 20_000)
    assert (every, total) == (8, 100_000)
    assert 10_000 <= sum(map(len, pieces)) <= 20_000
    assert {piece[:1].decode() for piece in pieces} == set("0123456789")
    assert b"".join(evenly_taken(texts, 100_000)[0]).decode() == "".join(texts)
    assert make_tokenizer("bpe:257", texts, 20_000).notes == (
        "bpe:257 was learnt from 12,500 of 100,000 bytes, taken evenly (--data.tokenizer_bytes)",
    )
    assert make_tokenizer("bpe:400", ["abab"]).notes == (
        "bpe:400 has 258 entries: no other pair of tokens comes twice",
    )


@pytest.mark.parametrize(
    ("parts", "note"),
    [
        ({"normalizer": {"type": "NFC"}}, r"it normalises text \(NFC\)"),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "Lowercase"}]}},
            r"it normalises text \(NFD, Lowercase\)",
        ),
        ({"pre_tokenizer": BYTE_LEVEL | {"add_prefix_space": True}}, "it puts a space before each text"),
        ({"added_tokens": []}, r"it has no token that ends a text \(.*\): documents are joined without"),
        (
            {"model": {"vocab": {END_OF_TEXT: 0, "a": 1, "b": 2, "ab": 3}, "merges": [["a", "b"]]}},
            "254 of the 256 bytes have no token",
        ),
        (
            {"added_tokens": [added(0, END_OF_TEXT), added(300, "b", special=False, lstrip=True)]},
            "it does not give back all that it reads",
        ),
    ],
)
def test_what_a_tokenizer_does_to_texts_is_said(parts: dict[str, Any], note: str) -> None:
    [found] = read_tokenizer(changed(**parts), Path("own.json")).notes
    assert re.match(rf"own\.json: {note}", found)


def test_cuts_and_chance_of_a_tokenizer_are_turned_off() -> None:
    cut = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    pad = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0}
    parts = {"truncation": cut, "padding": pad | {"pad_token": END_OF_TEXT}, "model": {"dropout": 0.9}}
    tokenizer = read_tokenizer(changed(**parts))
    assert tokenizer.encode(TEXT).tolist() == bpe().encode(TEXT).tolist()
    assert read_tokenizer(tokenizer.to_json()).encode("a").tolist() == bpe().encode("a").tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "expected "),
        ('{"a": 1}', "no tokenizer: expected a byte-level BPE in the format of the library tokenizers, as GPT-2"),
        ('{"kind": "words"}', "characters is missing"),
        (lambda: changed(pre_tokenizer={"type": "Metaspace"}), "a tokenizer of the kind BPE that is not byte-level: "),
        (lambda: changed(model={"type": "WordPiece"}), "a tokenizer of the kind WordPiece that is not byte-level: "),
        (lambda: changed(model={"end_of_word_suffix": "</w>"}), "of the kind BPE with marks at the ends of words: "),
        (lambda: changed(model={"merges": [["no", "such"]]}), r"the library tokenizers [\d.]+ cannot read it: Token"),
        ("{", r"not JSON"),
    ],
)
def test_a_file_that_is_no_byte_level_tokenizer_is_refused_by_name(content: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text(content if isinstance(content, str) else content())
    with pytest.raises(InputError, match=rf"^{re.escape(str(tmp_path / 'own.json'))}: .*{message}"):
        make_tokenizer(str(tmp_path / "own.json"), [])


def test_a_file_is_read_and_one_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text(bpe().to_json())
    assert make_tokenizer(str(tmp_path / "own.json"), []).to_json() == bpe().to_json()
    with pytest.raises(InputError, match=r"none\.json: there is no such file"):
        make_tokenizer(str(tmp_path / "none.json"), [])


@pytest.mark.parametrize("name", ["", "words", "bpe", "bpe:", "bpe:256", "bpe:1000001", "bpe:.json", "gpt2", "\n.json"])
def test_other_names_say_what_is_expected(name: str) -> None:
    expected = "data.tokenizer must be characters, bytes, bpe:N with N from 257 to 1,000,000, or a file tokenizer.json"
    with pytest.raises(InputError, match=rf"{expected}, got "):
        TextConfig(tokenizer=name)


@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_half_a_character_is_named(name: str) -> None:
    tokenizer = MAKERS[name]()
    with pytest.raises(InputError, match=r"the prompt has half a character, '\\ud800' at position 2: leave it out"):
        tokenizer.encode_prompt("a\ud800")
    with pytest.raises(InputError, match=r"the text has half a character"):
        tokenizer.encode_batch(["a", "b\udfff"])


def test_texts_of_a_batch_are_encoded_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.tokenizers.subwords.BATCH_CHARACTERS", 100)
    texts = [TEXT[start : start + 70] for start in range(0, 700, 70)] + ["x" * 300]
    assert [row.tolist() for row in bpe().encode_batch(texts)] == [bpe().encode(text).tolist() for text in texts]
