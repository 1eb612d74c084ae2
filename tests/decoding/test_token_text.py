"""Characters are shown when they are whole, and not before."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data.tokenizers.byte_tokenizer import ByteTokenizer
from data.tokenizers.tokenizer import make_tokenizer
from decoding.token_text import TokenText, shown_token

BYTES = ByteTokenizer()
SUBWORDS = make_tokenizer("bpe:290", ["naïve 漢字 🙂 " * 20])


@given(st.text(max_size=12), st.integers(0, 60))
def test_all_whole_characters_are_shown_and_no_part_of_one(text: str, count: int) -> None:
    for tokenizer in (BYTES, SUBWORDS):
        tokens = tokenizer.encode(text).tolist()[:count]
        written = TokenText(tokenizer)
        shown = "".join(written.add(token) for token in tokens)
        content = b"".join(map(tokenizer.token_bytes, tokens))
        whole = max(end for end in range(len(text) + 1) if content.startswith(text[:end].encode()))
        assert shown == text[:whole]


def test_bytes_that_can_become_no_character_are_shown_as_such() -> None:
    tokens = np.random.default_rng(0).integers(0, 257, 5000).tolist()
    written = TokenText(BYTES)
    shown = "".join(map(written.add, tokens))
    assert BYTES.decode(tokens).startswith(shown)
    assert len(BYTES.decode(tokens)) - len(shown) <= 3
    assert shown.count("\ufffd") > 1000


def test_tokens_are_shown_to_people() -> None:
    assert [shown_token(BYTES, token) for token in (65, 10, 0xE6, 256)] == ["A", "\n", r"\xe6", "<|endoftext|>"]
