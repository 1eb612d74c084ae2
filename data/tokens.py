"""The tokens of a text to train on, and of the one to validate on: made once, kept on the disk, mapped into memory."""

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.characters import CharTokenizer, UnknownCharacters
from data.config import TextConfig, bpe_size
from data.scan import SourceScan, fingerprint, scanned
from data.split import MIN_DOCUMENTS, Piece, pieces, position
from data.text import Source
from data.token_cache import cached
from data.token_files import (
    PARTS,
    TOKENIZER,
    Made,
    Part,
    is_whole,
    read_made,
    read_tokenizer_json,
    tokens_of,
    write_tokens,
)
from data.tokenizer import Tokenizer, make_tokenizer, read_tokenizer
from training.runtime.errors import InputError
from training.storage.files import write_synced
from training.storage.reading import read_json

VERSION = 1
"""Of the way from a text to its tokens: a change makes all caches anew."""
MAX_CHARACTERS = 32_768
"""Of more different characters nobody wants a token each."""
DEFAULT_SHARE = 0.1
NOTES = "notes.json"


class Tokens(NamedTuple):
    """The tokens of a split, and of how many bytes of UTF-8 all but the first are made: those are the targets."""

    tokens_N: NDArray[np.unsignedinteger]
    num_bytes: int


class Tokenized(NamedTuple):
    """The tokens of a text, by split, with what made them; `notes` say what was left out."""

    training: Tokens
    validation: Tokens
    tokenizer: Tokenizer
    sha256: str
    notes: tuple[str, ...] = ()


def tokenized(
    source: Source, data: TextConfig, tokenizer: Tokenizer | None = None, parts: Sequence[Part] = PARTS
) -> Tokenized:
    """The tokens of a source; all processes of a launch call this, and one of each machine makes them.

    Args:
        source: The text.
        data: How to split it, and into which tokens.
        tokenizer: One that exists, in the place of the one that the configuration names.
        parts: The splits that are wanted; of others there are no tokens.

    Raises:
        InputError: A text has characters that are unknown, or far too many, or the disk refuses.
    """
    from training.runtime.processes import once_per_machine

    scan, folder, notes = once_per_machine(lambda: _prepare(source, data, tokenizer, parts))
    made = read_made(folder)
    tokenizer = tokenizer or read_tokenizer(read_tokenizer_json(folder), folder / "tokenizer.json")
    training, validation = (_mapped(folder, made, part, tokenizer) for part in PARTS)
    return Tokenized(training, validation, tokenizer, _digest(scan, data, tokenizer), (*notes, *made.notes))


def sha256(source: Source, data: TextConfig | None = None, tokenizer: Tokenizer | None = None) -> str:
    """What a run's data are known by: the text, and all that changes the tokens of its splits.

    Without a tokenizer, or with one of characters: of the text; with a validation text, of both texts' SHA-256, so that
    the place of the split counts. Other ways to split count as well, and so do other tokenizers, and with both the
    borders of documents (see `Scan`).
    """
    data = data or TextConfig()
    return _digest(scanned(source, data), data, tokenizer)


def _digest(scan: SourceScan, data: TextConfig, tokenizer: Tokenizer | None) -> str:
    by_documents, share = _is_by_documents(scan), data.validation_share
    ends = tokenizer is not None and tokenizer.end_of_text is not None
    scans = [scan.text] if scan.validation is None else [scan.text, scan.validation]
    parts = [found.bordered_sha256 if ends or by_documents else found.sha256 for found in scans]
    if scan.validation is None and (by_documents or share != DEFAULT_SHARE):
        parts.append(f"{'documents' if by_documents else 'position'} {share}")
    if tokenizer is not None and not isinstance(tokenizer, CharTokenizer):
        parts.append(hashlib.sha256(tokenizer.to_json().encode()).hexdigest())
    return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()


def _is_by_documents(scan: SourceScan) -> bool:
    return scan.validation is None and scan.text.documents >= MIN_DOCUMENTS


def _prepare(
    source: Source, data: TextConfig, tokenizer: Tokenizer | None, parts: Sequence[Part]
) -> tuple[SourceScan, Path, tuple[str, ...]]:
    """What a text holds, the folder of its tokens, and what is to be said."""
    scan = scanned(source, data)
    tokenizer, learnt = (tokenizer, tokenizer.notes) if tokenizer else _own_tokenizer(source, data, scan)
    recipe = [VERSION, _digest(scan, data, tokenizer), tokenizer.to_json(), data.unknown, list(parts)]
    key = _key(recipe)

    def make(folder: Path) -> None:
        _make(folder, source, data, scan, tokenizer, parts)

    num_bytes = scan.text.num_bytes + (scan.validation.num_bytes if scan.validation else 0)
    folder, place = cached(key, make, is_whole, num_bytes)
    changed = "the text has changed since it was last read" if scan.changed else ""
    return scan, folder, tuple(note for note in (changed, place, *learnt) if note)


def _own_tokenizer(source: Source, data: TextConfig, scan: SourceScan) -> tuple[Tokenizer, Sequence[str]]:
    """The tokenizer that the configuration names, and what is to be said of it; one that is learnt is kept.

    Of a text that is cut in two all characters are known: what only its end has is learnt by nobody, but can be read.
    """
    if data.tokenizer == "characters":
        distinct = scan.text.distinct
        if len(distinct) > MAX_CHARACTERS:
            raise InputError(
                f"the text has {len(distinct):,} different characters, and the model's head would have a row for each: "
                f"use --data.tokenizer bytes or bpe:16384"
            )
        return make_tokenizer("characters", [distinct]), ()
    if bpe_size(data.tokenizer) is None:
        made = make_tokenizer(data.tokenizer, ())
        return made, made.notes
    recipe = [VERSION, _digest(scan, data, None), scan.text.bordered_sha256, data.tokenizer, data.tokenizer_bytes]

    def learn(folder: Path) -> None:
        texts = (piece.chunk.text for piece in _pieces(source, data, scan) if not piece.held_out)
        learnt = make_tokenizer(data.tokenizer, texts, data.tokenizer_bytes)
        write_synced(folder / TOKENIZER, learnt.to_json().encode())
        write_synced(folder / NOTES, json.dumps(learnt.notes).encode())

    folder, _ = cached(_key(recipe), learn, lambda folder: (folder / NOTES).exists(), scan.text.num_bytes)
    return read_tokenizer(read_tokenizer_json(folder), folder / TOKENIZER), read_json(folder / NOTES)


def _key(recipe: list[Any]) -> str:
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:32]


def _pieces(source: Source, data: TextConfig, scan: SourceScan) -> Iterator[Piece]:
    """The text in order, each piece with its split."""
    held_out = base64.b64decode(scan.text.held_out) if _is_by_documents(scan) else None
    return pieces(source, held_out, position(scan.text.characters, data.validation_share))


def _make(
    folder: Path, source: Source, data: TextConfig, scan: SourceScan, tokenizer: Tokenizer, parts: Sequence[Part]
) -> None:
    """Write the tokens of the wanted splits into a folder.

    Raises:
        InputError: They have unknown characters, or the text is not the one that was scanned any more.
        OSError: The disk refuses.
    """
    wanted = (piece for piece in _pieces(source, data, scan) if PARTS[piece.held_out] in parts)
    tallies = [UnknownCharacters(_unknown(scan, tokenizer)) for _ in PARTS]
    skip = data.unknown == "skip"
    made = write_tokens(folder, wanted, tokenizer, tallies, skip=skip, num_bytes=scan.text.num_bytes)
    if fingerprint(source) != scan.fingerprint:
        raise InputError(f"{source.origin} has changed while it was read: start again")
    notes = []
    if _is_by_documents(scan):
        held = int(np.unpackbits(np.frombuffer(base64.b64decode(scan.text.held_out), np.uint8)).sum())
        notes.append(f"split by documents: {held:,} of {scan.text.documents:,} to validate on")
    for part, tally in zip(PARTS, tallies, strict=True):
        if tally and not skip:
            raise tally.error(f"the {part} text", "--data.unknown skip leaves them out")
        if tally:
            notes.append(f"the {part} text: {len(tally):,} unknown characters skipped")
    made.save(folder, notes)


def _unknown(scan: SourceScan, tokenizer: Tokenizer) -> set[str]:
    """The characters of a text that a tokenizer does not know."""
    if not isinstance(tokenizer, CharTokenizer):
        return set()
    distinct = scan.text.distinct + (scan.validation.distinct if scan.validation else "")
    return set(distinct).difference(tokenizer.characters)


def _mapped(folder: Path, made: Made, part: Part, tokenizer: Tokenizer) -> Tokens:
    tokens_N, num_bytes = tokens_of(folder, made, part)
    first = tokenizer.token_bytes(int(tokens_N[0])) if len(tokens_N) else b""
    return Tokens(tokens_N, num_bytes - len(first))


def held_out_documents(source: Source, data: TextConfig) -> Iterator[str]:
    """The texts to validate on, each whole: of a split by position what is left of a document counts as one."""
    texts = list[str]()
    for chunk, held_out in _pieces(source, data, scanned(source, data)):
        if held_out:
            texts.append(chunk.text)
            if chunk.last:
                yield "".join(texts)
                texts = []
    if texts:
        yield "".join(texts)
