"""The tokens of a text to train on, and of the one to validate on."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.config import TextConfig, Unknown
from data.documents import Documents, joined
from data.text import Source
from data.tokenizer import Tokenizer, make_tokenizer, unit_of

TRAIN_PERCENT = 90


class Tokens(NamedTuple):
    """The tokens of a split, and of how many bytes of UTF-8 they are made."""

    tokens_N: NDArray[np.integer]
    num_bytes: int


class Tokenized(NamedTuple):
    """The tokens of a text, by split, with what made them; `notes` say what was left out."""

    training: Tokens
    validation: Tokens
    tokenizer: Tokenizer
    sha256: str
    notes: tuple[str, ...] = ()


def tokenized(source: Source, data: TextConfig, tokenizer: Tokenizer | None = None) -> Tokenized:
    """The tokens of a source.

    Args:
        source: The text.
        data: How to split it, and into which tokens.
        tokenizer: One that exists, in the place of the one that the configuration names.

    Raises:
        InputError: The validation text has characters that are unknown.
    """
    training, validation = split(source)
    tokenizer = tokenizer or learnt_tokenizer([source], data)
    train, _ = _encode(tokenizer, training, "the training text", "error")
    val, note = _encode(tokenizer, validation, "the validation text", data.unknown)
    return Tokenized(train, val, tokenizer, sha256(source), (*tokenizer.notes, *([note] if note else [])))


def learnt_tokenizer(sources: Sequence[Source], data: TextConfig) -> Tokenizer:
    """The tokenizer that the configuration names, of one text or of several.

    Of a text that is cut in two all characters are known: what only its end has is learnt by nobody, but can be read.
    """
    if data.tokenizer == "characters":
        texts = (chunk.text for source in sources for chunk in source.documents)
    else:
        texts = (split(source)[0] for source in sources)
    return make_tokenizer(data.tokenizer, texts, data.tokenizer_bytes)


def split(source: Source) -> tuple[str, str]:
    """The text to train on and the one to validate on: without one of its own, the last 10 %."""
    text = joined(source.documents)
    if source.validation is not None:
        return text, joined(source.validation)
    cut = len(text) * TRAIN_PERCENT // 100
    return text[:cut], text[cut:]


def sha256(source: Source) -> str:
    """Of the text; with a validation text, of both texts' SHA-256, so that the place of the split counts."""
    own = _sha256(source.documents)
    if source.validation is None:
        return own
    return hashlib.sha256((own + _sha256(source.validation)).encode()).hexdigest()


def _sha256(documents: Documents) -> str:
    digest = hashlib.sha256()
    for chunk in documents:
        digest.update(chunk.text.encode())
    return digest.hexdigest()


def _encode(tokenizer: Tokenizer, text: str, name: str, unknown: Unknown) -> tuple[Tokens, str]:
    """The tokens of a text, and what was skipped, in words."""
    tokens = tokenizer.encode(text, name, "--data.unknown skip leaves them out", skip=unknown == "skip")
    skipped = len(text) - len(tokens) if unit_of(tokenizer) == "character" else 0
    note = f"{name}: {skipped:,} unknown characters skipped" if skipped else ""
    return Tokens(tokens, len(text.encode())), note
