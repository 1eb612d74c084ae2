"""Pairs of texts from a file or from the Hugging Face hub."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from data.batches.order import epoch_samples
from data.config import FRAME, PairConfig
from data.listing import describe, listed
from data.pairs.strings import Pair, Split, split_of
from data.sources.hub import Request, load_hub_rows
from data.sources.row_streams import stream_rows
from data.sources.rows import Row, check_whole, read_rows
from data.tokenizers.symbols import UNITS, Symbols
from data.tokenizers.vocabulary import Vocabulary
from training.runtime.errors import InputError
from training.runtime.packages import needed_package

HUB_SPLITS: dict[str, Split] = {"train": "train", "validation": "val", "test": "test"}
SPLIT_NAMES: dict[Split, str] = {"train": "training", "val": "validation", "test": "test"}
DEFAULT_COLUMNS = (PairConfig.source_column, PairConfig.target_column)
MAX_LISTED = 20


class FilePairs:
    """Pairs that were read, by split; training pairs come in an order that (seed, epoch) shuffles.

    Args:
        data: Which ones; see `PairConfig`.
        seed: Of the run.
        tokens: What their tokens are; None for what the configuration says, learnt from the training pairs.

    Raises:
        InputError: There are none, or a row is not a pair; the message names file and line.
    """

    def __init__(self, data: PairConfig, seed: int, tokens: Vocabulary | None = None) -> None:
        self.data, self.seed = data, seed
        self.guesses, self.left_out = list[str](), list[str]()
        own = self._read_hub(data.hub_name) if data.hub_name else self._read_file(Path(data.source or "").expanduser())
        self.splits = _fill_up(own)
        self._check_splits()
        self.tokens = tokens or self._learnt()

    def _read_file(self, path: Path) -> dict[Split, list[Pair]]:
        self._file = self.origin = str(path)
        columns = self.data.source_column, self.data.target_column
        rows: Iterable[tuple[str, Row]]
        if path.suffix.lower() == ".parquet":
            rows = stream_rows(path, columns)
        else:
            rows, self.guesses = read_rows(path, columns, chosen=columns != DEFAULT_COLUMNS)
        return {"train": _through_datasets(self._pairs(rows))}

    def _read_hub(self, name: str) -> dict[Split, list[Pair]]:
        data, own = self.data, dict[Split, list[Pair]]()
        columns = {"data.source_column": data.source_column, "data.target_column": data.target_column}
        found = load_hub_rows(Request(name, columns, data.revision, data.subset))
        self._file, self.origin = f"hub:{name}", f"{name}, from the hub (commit {found.commit[:7]})"
        for split, rows in found.splits.items():
            locations = (f"hub:{name}, split {split}, row {number}" for number in range(len(rows)))
            dicts = (dict(zip(columns.values(), row, strict=True)) for row in rows)
            own[HUB_SPLITS[split]] = self._pairs(zip(locations, dicts, strict=True))
        return own

    def _pairs(self, rows: Iterable[tuple[str, Row]]) -> list[Pair]:
        pairs = []
        for location, row in rows:
            try:
                pairs.append(Pair(_text(row, self.data.source_column), _text(row, self.data.target_column), location))
            except ValueError as error:
                self._leave_out(location, str(error))
        return pairs

    def _leave_out(self, location: str, reason: str) -> None:
        if self.data.on_bad_row == "stop":
            raise InputError(f"{location}: {reason} (--data.on_bad_row skip leaves such rows out)")
        self.left_out.append(f"{location.removeprefix(f'{self._file}, ')} ({reason})")

    def _check_splits(self) -> None:
        for split, pairs in self.splits.items():
            if not pairs:
                raise InputError(
                    f"{self.origin} has no pairs for {SPLIT_NAMES[split]}: it takes some dozens, of which 80 % are for "
                    f"training, and 10 % each for validation and test{''.join(f'; {note}' for note in self.notes)}"
                )

    @property
    def notes(self) -> list[str]:
        """What was guessed, and the rows that were left out."""
        notes = ["; ".join(self.guesses)] if self.guesses else []
        if count := len(self.left_out):
            notes.append(f"{count:,} row{'s' * (count > 1)} left out: {listed(self.left_out, MAX_LISTED)}")
        return notes

    @property
    def sha256(self) -> str:
        """Of all pairs, their splits, and what a token of them is."""
        texts = {split: [(pair.source, pair.target) for pair in pairs] for split, pairs in self.splits.items()}
        kind = self.tokens.to_json() if self.tokens.unit == "tokens" else self.tokens.unit
        return hashlib.sha256(json.dumps({**texts, "tokens": kind}).encode()).hexdigest()

    def _learnt(self) -> Vocabulary:
        """What tokens are; of symbols it is enough to know which, until the pairs that do not fit are left out."""
        name = self.data.tokenizer
        if name in UNITS:
            return Vocabulary(Symbols((), UNITS[name]))
        texts = chain.from_iterable(pair[:2] for pair in self.splits["train"])
        return Vocabulary.learnt(name, texts, self.data.tokenizer_bytes)

    def vocabulary(self) -> tuple[Vocabulary, str]:
        """That of all pairs, and the symbols that only validation or test has, known, if never learnt, in words."""
        if self.tokens.unit == "tokens":
            return self.tokens, ""
        texts = {split: [text for pair in pairs for text in pair[:2]] for split, pairs in self.splits.items()}
        learnt = Vocabulary.learnt(self.tokens.unit, texts["train"])
        others = learnt.unknown(chain.from_iterable(texts.values()))
        return Vocabulary.learnt(self.tokens.unit, chain.from_iterable(texts.values())), describe(others, MAX_LISTED)

    def check_lengths(self, max_len: int) -> None:
        """Treat a pair that does not fit into the context of a model as any row that is no pair."""
        for split, pairs in self.splits.items():
            lengths = zip(*(self.tokens.counts([pair[side] for pair in pairs]) for side in (0, 1)), strict=True)
            self.splits[split] = [
                pair for pair, counts in zip(pairs, lengths, strict=True) if self._fits(pair.location, counts, max_len)
            ]
        self._check_splits()

    def _fits(self, location: str, lengths: tuple[int, ...], max_len: int) -> bool:
        for name, length, frame in zip(("source", "target"), lengths, (FRAME, 1), strict=True):
            if length + frame > max_len:
                self._leave_out(
                    location,
                    f"the {name} has {length:,} {self.tokens.unit}, at most {max_len - frame:,} fit into model.max_len "
                    f"{max_len:,} beside the special tokens",
                )
                return False
        return True

    def stream(self, split: Split, first: int, count: int) -> list[Pair]:
        """Pairs `first` to `first + count` of the endless stream of a split."""
        pairs = self.splits[split]
        epochs = epoch_samples(first, count, num_samples=len(pairs), seed=self.seed)
        return [pairs[index] for _, samples in epochs for index in samples.tolist()]

    def distinct(self, split: Split, count: int) -> list[Pair]:
        """So many pairs of a split, spread evenly over it, or all."""
        pairs = self.splits[split]
        return [pairs[number * len(pairs) // count] for number in range(count)] if count < len(pairs) else pairs


def _text(row: Row, column: str) -> str:
    """The text of a column; a `ValueError` says in words why there is none."""
    if isinstance(row, str):
        raise ValueError(row)
    if column not in row:
        names = ", ".join(map(str, row)) or "none"
        raise ValueError(f"no column {column}: choose data.source_column and data.target_column ({names})")
    value = row[column]
    if value is None:
        raise ValueError(f"column {column} is missing")
    if not isinstance(value, str):
        raise ValueError(f"column {column} must hold text, got {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"column {column} is empty")
    check_whole(value, column)
    return value


def _through_datasets(pairs: Sequence[Pair]) -> list[Pair]:
    """The rows of a `datasets.Dataset`."""
    columns = {name: [getattr(pair, name) for pair in pairs] for name in Pair._fields}
    table = needed_package("datasets", "reading pairs").Dataset.from_dict(columns)
    return [Pair(*row) for row in zip(*(table[name] for name in Pair._fields), strict=True)]


def _fill_up(own: dict[Split, list[Pair]]) -> dict[Split, list[Pair]]:
    """Splits that the data lacks are taken from its training pairs, by the hash of the source."""
    missing = [split for split in SPLIT_NAMES if split not in own]
    parts: dict[Split, list[Pair]] = {split: [] for split in ("train", *missing)}
    for pair in own["train"]:
        split = split_of(pair.source)
        parts[split if split in missing else "train"].append(pair)
    return own | parts
