"""What one pass over a text finds: its SHA-256, its size, its characters, and which of its documents are held out.

What files held is remembered under a fingerprint of their names, sizes and times: they are read again when that has
changed.
"""

import base64
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

import numpy as np

from data.cache.token_cache import cache_folder
from data.config import TOKENIZER_BYTES, TextConfig
from data.sources.documents import Documents
from data.split import MIN_DOCUMENTS, DocumentHash, Piece, pieces, position
from data.text import Source
from training.runtime.progress import Reading
from training.storage.files import replace_text
from training.storage.reading import FileError, built, read_json

VERSION = 1
DOCUMENT_END = b"\xff"
"""What no UTF-8 has, after each document, where the borders of documents count."""


@dataclass(frozen=True)
class Scan:
    """What some documents hold.

    Attributes:
        sha256: Of the documents in UTF-8, joined as they are.
        bordered_sha256: The same with a byte 0xff after each document.
        documents, characters, num_bytes: How many there are.
        distinct: The different characters, in the order of code points.
        held_out: Whether each document's hash holds it out: bits, packed, in base64.
    """

    sha256: str
    bordered_sha256: str
    documents: int
    characters: int
    num_bytes: int
    distinct: str
    held_out: str


@dataclass(frozen=True)
class SourceScan:
    """What a source holds; `fingerprint` is that of its files, `changed` whether they held something else before."""

    text: Scan
    validation: Scan | None = None
    fingerprint: str | None = None
    version: int = VERSION
    changed: bool = False

    @property
    def num_bytes(self) -> int:
        """Of all, in UTF-8."""
        return self.text.num_bytes + (self.validation.num_bytes if self.validation else 0)

    @property
    def is_by_documents(self) -> bool:
        """Whether each document's hash says if it is validated on."""
        return self.validation is None and self.text.documents >= MIN_DOCUMENTS

    @property
    def num_held_out(self) -> int:
        """How many documents are, then."""
        return sum(byte.bit_count() for byte in base64.b64decode(self.text.held_out))


def split_pieces(source: Source, scan: SourceScan, share: float) -> Iterator[Piece]:
    """A text in pieces, each with its split; see `data.split.pieces`."""
    held_out = base64.b64decode(scan.text.held_out) if scan.is_by_documents else None
    return pieces(source, held_out, position(scan.text.characters, share))


def scanned(source: Source, data: TextConfig) -> SourceScan:
    """What a source holds, by one pass over it, or from what is remembered of one.

    Args:
        source: The text.
        data: The options that led to it, and the share of documents to hold out.
    """
    found = fingerprint(source)
    if found is None:
        return _read(source, data, None)
    # With another tokenizer it is the same text, but that rows end a line where tokens are characters.
    tokenizer = "characters" if data.tokenizer == "characters" else "bytes"
    same = replace(data, tokenizer=tokenizer, tokenizer_bytes=TOKENIZER_BYTES, unknown="error")
    options = json.dumps([os.getcwd(), asdict(same)])
    memory = cache_folder() / "sources" / f"{hashlib.sha256(options.encode()).hexdigest()[:32]}.json"
    before: SourceScan | None = None
    with suppress(FileError):
        before = built(SourceScan, read_json(memory), memory)
        if (before.fingerprint, before.version) == (found, VERSION):
            return before
    scan = _read(source, data, found)
    with suppress(OSError):  # It only saves the next one a pass.
        memory.parent.mkdir(parents=True, exist_ok=True)
        replace_text(memory, json.dumps(asdict(scan), ensure_ascii=False))
    changed = before is not None and (before.text, before.validation) != (scan.text, scan.validation)
    return SourceScan(scan.text, scan.validation, found, changed=changed)


def fingerprint(source: Source) -> str | None:
    """What changes when the files of a source do, None where it has none."""
    parts = [documents.fingerprint() for documents in (source.documents, source.validation) if documents is not None]
    return None if None in parts else hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _read(source: Source, data: TextConfig, found: str | None) -> SourceScan:
    validation = None if source.validation is None else _scan(source.validation, data.validation_share)
    return SourceScan(_scan(source.documents, data.validation_share), validation, found)


def _scan(documents: Documents, share: float) -> Scan:
    plain, bordered, documents_hash = hashlib.sha256(), hashlib.sha256(), DocumentHash(share)
    count = characters = num_bytes = 0
    seen = np.zeros(0x110000, bool)
    with Reading("reading the text") as progress:
        for text, last in documents:
            content = text.encode()
            plain.update(content)
            bordered.update(content)
            if last:
                bordered.update(DOCUMENT_END)
            documents_hash.add(content, last=last)
            seen[np.frombuffer(text.encode("utf-32-le"), np.uint32)] = True
            count, characters, num_bytes = count + last, characters + len(text), num_bytes + len(content)
            progress.advance(len(content))
    distinct = "".join(map(chr, np.flatnonzero(seen).tolist()))
    bits = base64.b64encode(documents_hash.packed()).decode()
    return Scan(plain.hexdigest(), bordered.hexdigest(), count, characters, num_bytes, distinct, bits)
