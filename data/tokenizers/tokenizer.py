"""What every tokenizer of text can do, and the one that a configuration or a checkpoint names."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data.config import TOKENIZER_BYTES, TextConfig, bpe_size
from data.tokenizers.byte_tokenizer import ByteTokenizer
from data.tokenizers.characters import CharTokenizer
from data.tokenizers.chat import Chat
from data.tokenizers.subwords import SubwordTokenizer, learn_subwords
from training.storage.reading import parse_json, read_text


class Tokenizer(Protocol):
    """From text to tokens and back; `len` is the size of the vocabulary.

    Attributes:
        end_of_text: The token that ends a document; None for a vocabulary without.
        notes: What is to be said of it as a run begins.
    """

    end_of_text: int | None
    notes: tuple[str, ...]

    def __len__(self) -> int: ...

    def encode(self, text: str, name: str = ..., way_on: str = ..., *, skip: bool = False) -> NDArray[np.int32]:
        """The tokens of a text; see `CharTokenizer.encode`."""

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """The tokens of each of several texts, on all cores; all characters are known."""

    def encode_prompt(self, prompt: str) -> list[int]:
        """The tokens of a text to continue."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens; bytes that are no UTF-8 show as U+FFFD."""

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for, which need not be whole characters; none for the end of a text."""

    def to_json(self) -> str:
        """The content of tokenizer.json."""


def make_tokenizer(name: str, texts: Iterable[str], learn_bytes: int = TOKENIZER_BYTES) -> Tokenizer:
    """The tokenizer that `--data.tokenizer` names.

    Args:
        name: characters, bytes, bpe:N, or a tokenizer.json.
        texts: Those to train on, for a tokenizer that is learnt: `characters` reads all, `bpe:N` takes what it needs.
        learn_bytes: From how many bytes of them `bpe:N` is learnt at most.

    Raises:
        FileError: The tokenizer.json cannot be read, or is not byte-level.
    """
    if name == "characters":
        return CharTokenizer.from_texts(texts)
    if name == "bytes":
        return ByteTokenizer()
    size = bpe_size(name)
    if size is not None:
        return learn_subwords(texts, size, learn_bytes)
    path = Path(name).expanduser()
    return read_tokenizer(read_text(path), path)


def read_tokenizer(content: str, file: Path | None = None) -> Tokenizer:
    """The tokenizer of a tokenizer.json, ours or one in the format of the library `tokenizers`.

    Raises:
        MalformedFileError: It is none; the message names the file.
    """
    name = file or Path("tokenizer.json")
    saved = parse_json(content, name)
    if not isinstance(saved, dict) or "kind" in saved or "characters" in saved:
        if isinstance(saved, dict) and saved.get("kind") == "bytes":
            return ByteTokenizer()
        return CharTokenizer.from_json(content, name)
    return SubwordTokenizer(content, file)


def chat_of(tokenizer: Tokenizer) -> Chat | None:
    """How conversations are written for a tokenizer, where that is known."""
    return tokenizer.chat if isinstance(tokenizer, SubwordTokenizer) else None


def follow_chat(tokenizer: Tokenizer, data: TextConfig) -> None:
    """Let prompts be messages, and turns end texts, if what was trained on are conversations."""
    if data.messages_column is not None and isinstance(tokenizer, SubwordTokenizer) and tokenizer.chat is not None:
        tokenizer.follow(tokenizer.chat)


def unit_of(tokenizer: Tokenizer) -> str:
    """What a token is called where losses and lengths are told."""
    return "character" if isinstance(tokenizer, CharTokenizer) else "token"
