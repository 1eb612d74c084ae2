"""The tokens of a text to train on, and of the one to validate on: made once, kept on the disk, mapped into memory."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.answers.tokens import answers_sha256
from data.cache.scan import SourceScan, fingerprint, scanned, split_pieces
from data.cache.token_cache import cached, find_cached
from data.cache.token_files import PARTS, Part, is_whole, read_made, read_tokenizer_json, tokens_of, write_tokens
from data.config import TextConfig
from data.mix import mixed_sha256
from data.text import Source
from data.tokenizers.characters import CharTokenizer, UnknownCharacters
from data.tokenizers.own_tokenizer import own_tokenizer
from data.tokenizers.tokenizer import Tokenizer, read_tokenizer
from training.runtime.errors import InputError

VERSION = 1
"""Of the way from a text to its tokens: a change makes all caches anew."""
DEFAULT_SHARE = 0.1


class Tokens(NamedTuple):
    """The tokens of a split, and of how many bytes of UTF-8 they are made."""

    tokens_N: NDArray[np.unsignedinteger]
    num_bytes: int

    def target_bytes(self, tokenizer: Tokenizer) -> int:
        """Of how many bytes of UTF-8 the targets are made: all tokens but the first."""
        return self.num_bytes - len(tokenizer.token_bytes(int(self.tokens_N[0])))


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
    training, validation = (Tokens(*tokens_of(folder, made, part)) for part in PARTS)
    return Tokenized(training, validation, tokenizer, _digest(scan, data, tokenizer), (*notes, *made.notes))


def shared_tokenizer(source: Source, data: TextConfig) -> Tokenizer:
    """The tokenizer that the configuration names, of all sources of a mix together."""
    from training.runtime.processes import once_per_machine

    def make() -> tuple[str, tuple[str, ...]]:
        scans = [scanned(source.parts[name], part) for name, part in data.parts.items()]
        made = own_tokenizer(list(source.parts.values()), data, scans)
        return made.to_json(), tuple(made.notes)

    content, notes = once_per_machine(make)
    tokenizer = read_tokenizer(content)
    tokenizer.notes = notes
    return tokenizer


def sha256(source: Source, data: TextConfig | None = None, tokenizer: Tokenizer | None = None) -> str:
    """What a run's data are known by: the text, and all that changes the tokens of its splits.

    Without a tokenizer, or with one of characters: of the text; with a validation text, of both texts' SHA-256, so that
    the place of the split counts. Other ways to split count as well, and so do other tokenizers, and with both the
    borders of documents (see `Scan`). Of a mix it is that of all its texts and of their weights.
    """
    data = data or TextConfig()
    if source.rows is not None:
        return answers_sha256(source.rows, data, tokenizer)
    if source.parts:
        parts = [sha256(source.parts[name], part, tokenizer) for name, part in data.parts.items()]
        return mixed_sha256(parts, data.mix or "")
    return _digest(scanned(source, data), data, tokenizer)


def _digest(scan: SourceScan, data: TextConfig, tokenizer: Tokenizer | None) -> str:
    by_documents, share = scan.is_by_documents, data.validation_share
    ends = tokenizer is not None and tokenizer.end_of_text is not None
    scans = [scan.text] if scan.validation is None else [scan.text, scan.validation]
    parts = [found.bordered_sha256 if ends or by_documents else found.sha256 for found in scans]
    if scan.validation is None and (by_documents or share != DEFAULT_SHARE):
        parts.append(f"{'documents' if by_documents else 'position'} {share}")
    if tokenizer is not None and not isinstance(tokenizer, CharTokenizer):
        parts.append(hashlib.sha256(tokenizer.to_json().encode()).hexdigest())
    return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()


def _prepare(
    source: Source, data: TextConfig, tokenizer: Tokenizer | None, parts: Sequence[Part]
) -> tuple[SourceScan, Path, tuple[str, ...]]:
    """What a text holds, the folder of its tokens, and what is to be said."""
    scan = scanned(source, data)
    tokenizer = tokenizer or own_tokenizer([source], data, [scan])
    texts = [found and found.bordered_sha256 for found in (scan.text, scan.validation)]
    # A tokenizer that follows a chat template ends texts with another token than its content says.
    recipe = [VERSION, texts, data.validation_share, data.unknown, tokenizer.to_json(), tokenizer.end_of_text]

    def key(wanted: Sequence[Part]) -> str:
        return hashlib.sha256(json.dumps([*recipe, list(wanted)]).encode()).hexdigest()[:32]

    def make(folder: Path) -> None:
        _make(folder, source, data, scan, tokenizer, parts)

    folder, moved = find_cached(key(PARTS), is_whole), ""
    if folder is None:
        folder, moved = cached(key(parts), make, is_whole, scan.num_bytes)
    changed = "the text has changed since it was last read" if scan.changed else ""
    return scan, folder, tuple(note for note in (changed, *tokenizer.notes, moved) if note)


def _make(
    folder: Path, source: Source, data: TextConfig, scan: SourceScan, tokenizer: Tokenizer, parts: Sequence[Part]
) -> None:
    """Write the tokens of the wanted splits into a folder.

    Raises:
        InputError: They have unknown characters, or the text is not the one that was scanned any more.
        OSError: The disk refuses.
    """
    pieces = (piece for piece in split_pieces(source, scan, data.validation_share) if PARTS[piece.held_out] in parts)
    unknown, skip = _unknown(scan, tokenizer), data.unknown == "skip"
    tallies = [UnknownCharacters(unknown) for _ in PARTS]
    made = write_tokens(folder, pieces, tokenizer, tallies, skip=skip, num_bytes=scan.num_bytes)
    if fingerprint(source) != scan.fingerprint:
        raise InputError(f"{source.origin} has changed while it was read: start again")
    notes = []
    if scan.is_by_documents:
        notes.append(f"split by documents: {scan.num_held_out:,} of {scan.text.documents:,} to validate on")
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


def held_out_documents(source: Source, data: TextConfig) -> Iterator[str]:
    """The texts to validate on, each whole: of a split by position what is left of a document counts as one.

    Raises:
        InputError: The source is of rows with answers.
    """
    if source.rows is not None:
        raise InputError(f"{source.origin} is read as rows with answers, of which no text is held out: take a text")
    texts = list[str]()
    for chunk, held_out in split_pieces(source, scanned(source, data), data.validation_share):
        if held_out:
            texts.append(chunk.text)
            if chunk.last:
                yield "".join(texts)
                texts = []
    if texts:
        yield "".join(texts)
