"""The tokenizer that a configuration names, learnt once from a text where it is one that is learnt."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from data.cache.scan import SourceScan, split_pieces
from data.cache.token_cache import cached
from data.config import TextConfig, bpe_size
from data.text import Source
from data.tokenizers.tokenizer import Tokenizer, make_tokenizer, read_tokenizer
from training.runtime.errors import InputError
from training.runtime.progress import Reading
from training.storage.files import write_synced
from training.storage.reading import read_json, read_text

VERSION = 1
"""Of the way in which a tokenizer is learnt."""
MAX_CHARACTERS = 32_768
"""Of more different characters nobody wants a token each."""
NOTES, CONTENT = "notes.json", "tokenizer.json"


def own_tokenizer(sources: Sequence[Source], data: TextConfig, scans: Sequence[SourceScan]) -> Tokenizer:
    """The tokenizer of a text, or of several together. One that was learnt from the same before is read.

    Of a text that is cut in two all characters are known: what only its end has is learnt by nobody, but can be read.

    Raises:
        InputError: There would be far too many characters, or the disk refuses.
    """
    distinct = "".join(sorted({character for scan in scans for character in scan.text.distinct}))
    if bpe_size(data.tokenizer) is None:
        if data.tokenizer == "characters":
            check_characters(distinct)
        return make_tokenizer(data.tokenizer, [distinct])
    # With a validation text of its own all of the text is for training.
    texts = [[scan.text.bordered_sha256, scan.validation is None] for scan in scans]
    recipe = [VERSION, data.tokenizer, data.tokenizer_bytes, data.validation_share, texts]
    key = f"tokenizer-{hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:32]}"

    def learn(folder: Path) -> None:
        learnt = make_tokenizer(data.tokenizer, _training_texts(sources, data, scans), data.tokenizer_bytes)
        write_synced(folder / CONTENT, learnt.to_json().encode())
        write_synced(folder / NOTES, json.dumps(learnt.notes).encode())

    folder, _ = cached(key, learn, lambda folder: (folder / NOTES).exists(), sum(scan.num_bytes for scan in scans))
    tokenizer = read_tokenizer(read_text(folder / CONTENT), folder / CONTENT)
    tokenizer.notes = tuple(read_json(folder / NOTES))
    return tokenizer


def check_characters(distinct: str) -> None:
    """Raise an `InputError` where a text has far too many different characters."""
    if len(distinct) > MAX_CHARACTERS:
        raise InputError(
            f"the text has {len(distinct):,} different characters, and the model's head would have a row for each: "
            f"use --data.tokenizer bytes or bpe:16384"
        )


def _training_texts(sources: Sequence[Source], data: TextConfig, scans: Sequence[SourceScan]) -> Iterator[str]:
    with Reading(f"reading for {data.tokenizer}", sum(scan.num_bytes for scan in scans)) as progress:
        for source, scan in zip(sources, scans, strict=True):
            for piece in split_pieces(source, scan, data.validation_share):
                progress.advance(len(piece.chunk.text))
                if not piece.held_out:
                    yield piece.chunk.text
