"""Our tokenizers in the format of the library `tokenizers`: the same token ids, and the same text back."""

import json
import random
from typing import Any

import pytest
from tokenizers import Tokenizer as LibraryTokenizer

from data.tokenizers.byte_tokenizer import ByteTokenizer
from data.tokenizers.characters import CharTokenizer
from data.tokenizers.library_tokenizer import end_of_text_name, library_tokenizer
from data.tokenizers.subwords import END_OF_TEXT, PROBE, SubwordTokenizer, learn_subwords
from data.tokenizers.tokenizer import Tokenizer

TOKENIZERS = {
    "characters": CharTokenizer.from_texts([PROBE.replace("\r", ""), "[UNK]\0\x85\u2028"]),
    "characters with CR": CharTokenizer.from_texts([PROBE]),
    "bytes": ByteTokenizer(),
    "bpe": learn_subwords([3 * PROBE], 400, 10**6),
}


def in_the_library(tokenizer: Tokenizer) -> Any:
    library = LibraryTokenizer.from_str(json.dumps(library_tokenizer(tokenizer), ensure_ascii=False))
    library.encode_special_tokens = True  # As tokenizer_config.json says to transformers.
    return library


@pytest.mark.parametrize("name", TOKENIZERS)
def test_texts_have_the_same_tokens_and_tokens_the_same_text(name: str) -> None:
    ours = TOKENIZERS[name]
    theirs = in_the_library(ours)
    assert theirs.get_vocab_size() == len(ours)
    for text in (PROBE, "\n\n", " A", "it's 2026\r\n"):
        ids = theirs.encode(text).ids
        assert ids == ours.encode_prompt(text)
        assert theirs.decode(ids, skip_special_tokens=False) == ours.decode(ids)
    draw = random.Random(1)
    for _ in range(50):  # Also such as are no characters.
        ids = [token for token in draw.choices(range(len(ours)), k=20) if token != ours.end_of_text]
        assert theirs.decode(ids, skip_special_tokens=False) == ours.decode(ids)


@pytest.mark.parametrize(("name", "end"), [("characters", None), ("bytes", END_OF_TEXT), ("bpe", END_OF_TEXT)])
def test_the_end_of_a_text_has_a_name_there(name: str, end: str | None) -> None:
    ours = TOKENIZERS[name]
    assert end_of_text_name(ours) == end
    if end is not None:
        assert in_the_library(ours).token_to_id(end) == ours.end_of_text


def test_an_unknown_character_is_refused_there_too() -> None:
    with pytest.raises(Exception, match="UNK"):
        in_the_library(TOKENIZERS["characters"]).encode("A\u4e16")


def test_what_would_add_or_cut_or_draw_goes() -> None:
    saved = json.loads(TOKENIZERS["bpe"].to_json())
    end = {"SpecialToken": {"id": END_OF_TEXT, "type_id": 0}}
    saved["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [end, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {END_OF_TEXT: {"id": END_OF_TEXT, "ids": [0], "tokens": [END_OF_TEXT]}},
    }
    saved["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    saved["model"]["dropout"] = 0.9
    ours = SubwordTokenizer(json.dumps(saved))
    assert in_the_library(ours).encode(PROBE).ids == ours.encode_prompt(PROBE)
