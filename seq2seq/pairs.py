"""Pairs of texts from a file or from the Hugging Face hub."""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from seq2seq.config import FRAME, DataConfig
from seq2seq.tasks import Pair, Split, split_of
from seq2seq.vocabulary import Vocabulary
from seq2seq.vocabulary import split as symbols_of
from training.batches import epoch_samples
from training.errors import InputError
from training.hub import Request, load_hub_rows

HUB_SPLITS: dict[str, Split] = {"train": "train", "validation": "val", "test": "test"}
SPLIT_NAMES: dict[Split, str] = {"train": "training", "val": "validation", "test": "test"}


class FilePairs:
    """Pairs that were read, by split; training pairs come in an order that (seed, epoch) shuffles.

    Args:
        data: Which ones; see `DataConfig`.
        seed: Of the run.

    Raises:
        InputError: There are none, or a row is not a pair; the message names file and line.
    """

    def __init__(self, data: DataConfig, seed: int) -> None:
        self.seed, self.unit = seed, data.tokens
        if data.hub_name:
            self.origin, self.splits = _from_hub(data.hub_name, data)
        else:
            assert data.source is not None
            self.origin = data.source
            self.splits = _by_hash(_through_datasets(list(_read(Path(data.source), data))))
        for split, pairs in self.splits.items():
            if not pairs:
                raise InputError(
                    f"{self.origin} has no pairs for {SPLIT_NAMES[split]}: it takes some dozens, of which 80 % are for "
                    f"training, and 10 % each for validation and test"
                )

    @property
    def sha256(self) -> str:
        """Of all pairs, their splits, and what a token of them is."""
        content: dict[str, Any] = {
            split: [(pair.source, pair.target) for pair in pairs] for split, pairs in self.splits.items()
        }
        return hashlib.sha256(json.dumps(content | {"tokens": self.unit}).encode()).hexdigest()

    def vocabulary(self) -> Vocabulary:
        """The symbols of all pairs: one that only validation or test has is known, if never learnt."""
        texts = (text for pairs in self.splits.values() for pair in pairs for text in (pair.source, pair.target))
        return Vocabulary.from_texts(texts, self.unit)

    def check_lengths(self, max_len: int) -> None:
        """Raise an `InputError` that names the first pair that does not fit into the context of a model."""
        for pair in (pair for pairs in self.splits.values() for pair in pairs):
            for name, text, frame in (("source", pair.source, FRAME), ("target", pair.target, 1)):
                length = len(symbols_of(text, self.unit))
                if length + frame > max_len:
                    raise InputError(
                        f"{pair.place}: the {name} has {length:,} {self.unit}, at most {max_len - frame:,} fit into "
                        f"model.max_len {max_len:,} beside the special tokens"
                    )

    def pair(self, split: Split, index: int) -> Pair:
        """Pair `index` of the endless stream of a split."""
        pairs = self.splits[split]
        ((_, places),) = epoch_samples(index, 1, num_samples=len(pairs), seed=self.seed)
        return pairs[int(places)]

    def distinct(self, split: Split, count: int) -> list[Pair]:
        """So many pairs of a split, spread evenly over it, or all."""
        pairs = self.splits[split]
        return [pairs[number * len(pairs) // count] for number in range(count)] if count < len(pairs) else pairs


def _read(path: Path, data: DataConfig) -> Iterator[Pair]:
    """The pairs of a file, each with its line."""
    read_rows = _json_rows if path.suffix == ".jsonl" else _csv_rows
    try:
        # Spreadsheets begin a file with a mark that "-sig" takes away; the csv module reads line ends itself.
        content = path.read_bytes()
        with io.StringIO(content.decode("utf-8-sig"), newline="") as file:
            for line, row in read_rows(file, path):
                yield _pair(row, data, f"{path}, line {line}")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: not UTF-8 (byte 0x{error.object[error.start]:02x})") from error
    except OSError as error:
        raise InputError(f"cannot read data.source {path}: {error.strerror}") from error


def _json_rows(file: Any, path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", "nested too deep")
            raise InputError(f"{path}, line {number}: expected a JSON object, got none ({reason})") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__}")
        yield number, row


def _csv_rows(file: Any, path: Path) -> Iterator[tuple[int, Any]]:
    """The rows below the first, which names the columns, each with the line that it begins at."""
    reader = csv.reader(file, strict=True)
    columns: list[str] | None = None
    begins = 1
    try:
        for fields in reader:
            line, begins = begins, reader.line_num + 1
            if not fields:
                continue
            if columns is None:
                columns = fields
                continue
            if len(fields) > len(columns):
                raise InputError(f"{path}, line {line}: expected {len(columns)} fields, got more")
            yield line, dict(zip_longest(columns, fields))
    except csv.Error as error:
        raise InputError(f"{path}, line {begins}: {error}") from error


def _pair(row: dict[str, Any], data: DataConfig, place: str) -> Pair:
    return Pair(_text(row, data.source_column, place), _text(row, data.target_column, place), place)


def _text(row: dict[str, Any], column: str, place: str) -> str:
    if column not in row:
        names = ", ".join(map(str, row)) or "none"
        raise InputError(f"{place}: no column {column}: choose data.source_column and data.target_column ({names})")
    value = row[column]
    if value is None:
        raise InputError(f"{place}: column {column} is missing")
    if not isinstance(value, str):
        raise InputError(f"{place}: column {column} must hold text, got {type(value).__name__}")
    if not value.strip():
        raise InputError(f"{place}: column {column} is empty")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InputError(f"{place}: column {column} holds half of a surrogate pair, which is no character")
    return value


def _through_datasets(pairs: Sequence[Pair]) -> list[Pair]:
    """The rows of a `datasets.Dataset`."""
    from datasets import Dataset

    columns = {name: [getattr(pair, name) for pair in pairs] for name in Pair._fields}
    table = Dataset.from_dict(columns)
    return [Pair(*row) for row in zip(*(table[name] for name in Pair._fields), strict=True)]


def _by_hash(pairs: Sequence[Pair]) -> dict[Split, list[Pair]]:
    return {split: [pair for pair in pairs if split_of(pair.source) == split] for split in SPLIT_NAMES}


def _from_hub(name: str, data: DataConfig) -> tuple[str, dict[Split, list[Pair]]]:
    """Origin and pairs; a split that the data set lacks is taken from its training rows by the hash of the source."""
    columns = {"data.source_column": data.source_column, "data.target_column": data.target_column}
    found = load_hub_rows(Request(name, columns, data.revision, data.subset))
    own: dict[Split, list[Pair]] = {}
    for hub_split, rows in found.splits.items():
        places = [f"hub:{name}, split {hub_split}, row {number}" for number in range(len(rows))]
        dicts = (dict(zip(columns.values(), row, strict=True)) for row in rows)
        own[HUB_SPLITS[hub_split]] = [_pair(row, data, place) for row, place in zip(dicts, places, strict=True)]
    missing = [split for split in SPLIT_NAMES if split not in own]
    by_hash = _by_hash(own["train"])
    train = [pair for pair in own["train"] if split_of(pair.source) not in missing]
    splits = own | {split: by_hash[split] for split in missing} | {"train": train}
    return f"{name}, from the hub (commit {found.commit[:7]})", splits
