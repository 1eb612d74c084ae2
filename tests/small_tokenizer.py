"""A tokenizer of bytes and a few words, for tests of what is made of subwords, and the seam at which it comes in."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from training.storage.reading import MalformedFileError, parse_json

WORDS = (b"number ", b"Zahl ", b"ab")


class SmallTokenizer:
    """The longest word that fits, else a byte."""

    end_of_text = None

    def __len__(self) -> int:
        return 256 + len(WORDS)

    def encode(self, text: str, name: str = "", way_on: str = "", *, skip: bool = False) -> list[int]:
        content, tokens = text.encode(), list[int]()
        while content:
            token = next((256 + n for n, word in enumerate(WORDS) if content.startswith(word)), content[0])
            tokens.append(token)
            content = content[len(self.token_bytes(token)) :]
        return tokens

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        return WORDS[token - 256] if token >= 256 else bytes([token])

    def to_json(self) -> str:
        return json.dumps({"kind": "small"})


@pytest.fixture
def small_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `--data.tokenizer` but characters and words is this one."""

    def read(content: str, file: Path) -> SmallTokenizer:
        if parse_json(content, file) != {"kind": "small"}:
            raise MalformedFileError(file, "no tokenizer")
        return SmallTokenizer()

    monkeypatch.setattr("data.vocabulary.make_tokenizer", lambda name, texts: SmallTokenizer())
    monkeypatch.setattr("data.vocabulary.read_tokenizer", read)
