"""Text for the GPT: sources, the split, and batches.

`python -m gpt.data --output FILE` writes the text of a source.

Shapes: B batch, T tokens, N tokens of a split.
"""

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gpt.config import TINY_SHAKESPEARE, DataConfig, Unknown
from gpt.plays import SHA256, PlaysError, build_text
from gpt.text_sources import read_sources
from gpt.tokenizer import CharTokenizer
from training.batches import epoch_samples
from training.command_line import StrictParser
from training.errors import InputError, exit_code
from training.hub import PARQUET_REVISION, SPLITS, Request, load_hub_rows
from training.seeds import generator
from training.task import IGNORED, Batch

TRAIN_PERCENT = 90
MOST_LISTED = 16


class Source(NamedTuple):
    """A text, where it came from, for people to read, and the text to validate on where that is one of its own.

    `notes` say what was done to read it.
    """

    text: str
    origin: str
    validation: str | None = None
    notes: tuple[str, ...] = ()

    def split(self) -> tuple[str, str]:
        """The text to train on and the one to validate on: without one of its own, the last 10 %."""
        if self.validation is not None:
            return self.text, self.validation
        cut = len(self.text) * TRAIN_PERCENT // 100
        return self.text[:cut], self.text[cut:]

    def sha256(self) -> str:
        """Of the text; with a validation text, of both texts' SHA-256, so that the place of the split counts."""
        if self.validation is None:
            return _sha256(self.text)
        return _sha256(_sha256(self.text) + _sha256(self.validation))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def load_source(data: DataConfig) -> Source:
    """Load the text that the configuration names; see `DataConfig`, and for the hub `training.hub.load_hub_rows`.

    Raises:
        InputError: There is no such text, or it is empty or cannot be read; the message says what to do.
    """
    if data.source == "auto":
        source = _plays_or_hub(data)
    elif data.hub_name:
        source = _hub(data.hub_name, data)
    else:
        source = _local(data.source)
    if not source.text:
        raise InputError(f"{source.origin} holds no text: choose another --data.source")
    return source


def _plays_or_hub(data: DataConfig) -> Source:
    try:
        return Source(_through_datasets([build_text()]), "Tiny Shakespeare, from the packaged plays")
    except PlaysError as missing:
        try:
            return _hub(TINY_SHAKESPEARE, data)
        except InputError as error:
            raise InputError(f"no Tiny Shakespeare: {missing} (nor from the hub: {error})") from error


def _hub(name: str, data: DataConfig) -> Source:
    """A data set of the Hugging Face hub: its training text, and the one to validate on where it has one.

    Rows without text (null) are skipped, and a row that does not end in a line break gets one. Tiny Shakespeare's three
    splits, joined as they are, are the text as published.
    """
    tiny = name == TINY_SHAKESPEARE
    revision = data.revision or (PARQUET_REVISION if tiny else None)
    found = load_hub_rows(Request(name, {"data.column": data.column}, revision, data.subset, any_revision=tiny))
    rows = {split: [text for (text,) in texts if text is not None] for split, texts in found.splits.items()}
    if not tiny:
        held_out = next((split for split in ("validation", "test") if split in rows), None)
        validation = _lines(rows[held_out]) if held_out else None
        return Source(_lines(rows["train"]), f"{name}, from the hub (commit {found.commit[:7]})", validation)
    text = "".join("".join(rows.get(split, [])) for split in SPLITS)
    if _sha256(text) != SHA256:
        raise InputError(f"{name} at {revision} has SHA-256 {_sha256(text)}, expected {SHA256}; use --data.source auto")
    return Source(text, f"Tiny Shakespeare, from the hub ({name})")


def _lines(rows: list[str]) -> str:
    return "".join(row if row.endswith("\n") else row + "\n" for row in rows)


def _local(source: str) -> Source:
    texts, origin, notes = read_sources(source)
    return Source(_through_datasets(texts), origin, notes=notes)


def _through_datasets(texts: list[str]) -> str:
    """The rows of a `datasets.Dataset`, joined."""
    from datasets import Dataset

    return "".join(Dataset.from_dict({"text": texts})["text"])


class TextData:
    """A text to train on and one to validate on, as numbers.

    Args:
        source: The text.
        context: Length T of a window, in tokens.
        seed: Of the run.
        unknown: What to do with characters that a validation text of its own has and the training text lacks.

    Raises:
        InputError: A split is shorter than one context, or has characters that are unknown.
    """

    def __init__(self, source: Source, context: int, seed: int, unknown: Unknown = "error") -> None:
        self.context, self.seed = context, seed
        self.origin, self.sha256 = source.origin, source.sha256()
        # Of a text that is cut in two the whole is known: what only its end has is learnt by nobody, but can be read.
        self.tokenizer = CharTokenizer.from_text(source.text)
        training, validation = source.split()
        self._train_N = torch.from_numpy(self.tokenizer.encode(training))
        self._val_N, skipped = encode_split(self.tokenizer, validation, "the validation text", unknown)
        self.notes = (*source.notes, *([f"the validation text: {skipped}"] if skipped else []))
        for name, tokens_N in (("training", self._train_N), ("validation", self._val_N)):
            if len(tokens_N) <= context:
                raise InputError(
                    f"the {name} split of {source.origin} has {len(tokens_N):,} characters, too few for one context of "
                    f"{context:,}: use a longer text or a smaller --model.max_len"
                )

    @property
    def windows_per_epoch(self) -> int:
        """Training windows in one epoch; fewer than T tokens are left out, others each epoch."""
        return len(self._train_N) // self.context

    def training_batch(self, first: int, count: int) -> Batch:
        """Windows `first` to `first + count` of the endless stream of epochs.

        An epoch takes the training text as a ring, cuts it into windows from a random offset on, and shuffles them.
        """
        starts_B = torch.cat([starts for _, starts in self._starts(first, count)])
        places_BT = (starts_B[:, None] + torch.arange(self.context + 1)) % len(self._train_N)
        tokens_BT = self._train_N[places_BT].long()
        return Batch((tokens_BT[:, :-1].contiguous(),), tokens_BT[:, 1:].contiguous())

    def describe_samples(self, first: int, count: int) -> str:
        """Where windows `first` to `first + count` of the stream begin in the training text."""
        parts = self._starts(first, count)
        return ", ".join(f"epoch {epoch}, windows at characters {_list_numbers(starts)}" for epoch, starts in parts)

    def _starts(self, first: int, count: int) -> list[tuple[int, Tensor]]:
        """For each epoch that windows of the stream are in, its number and where they begin in the training text."""
        samples = epoch_samples(first, count, num_samples=self.windows_per_epoch, seed=self.seed)
        length = len(self._train_N)
        return [(epoch, (self._offset(epoch) + windows * self.context) % length) for epoch, windows in samples]

    def _offset(self, epoch: int) -> int:
        return int(torch.randint(len(self._train_N), (), generator=generator(self.seed, epoch, "offset")))

    def validation_batches(self, batch_size: int, rank: int = 0, num_ranks: int = 1) -> Iterator[Batch]:
        """Windows side by side over the validation text; see `side_by_side`."""
        return side_by_side(self._val_N, self.context, batch_size, rank, num_ranks)


def encode_split(tokenizer: CharTokenizer, text: str, name: str, unknown: Unknown) -> tuple[Tensor, str]:
    """The tokens of a text that the vocabulary is not made of, and what was skipped, in words.

    Raises:
        InputError: It has unknown characters, and they are not to be skipped.
    """
    tokens = tokenizer.encode(text, name, "--data.unknown skip leaves them out", skip=unknown == "skip")
    skipped = len(text) - len(tokens)
    return torch.from_numpy(tokens), f"{skipped:,} unknown characters skipped" if skipped else ""


def _list_numbers(numbers_N: Tensor) -> str:
    shown = [f"{number:,}" for number in numbers_N[:MOST_LISTED].tolist()]
    more = len(numbers_N) - len(shown)
    return "; ".join(shown) + (f" and {more} more" if more else "")


def side_by_side(tokens_N: Tensor, context: int, batch_size: int, rank: int = 0, num_ranks: int = 1) -> Iterator[Batch]:
    """A rank's share of the windows of T = `context` tokens: each of the N - 1 targets comes once, over all ranks."""
    windows = -(-(len(tokens_N) - 1) // context)
    inputs_BT = _padded(tokens_N[:-1], windows, context, 0)
    targets_BT = _padded(tokens_N[1:], windows, context, IGNORED)
    for start in range(rank * batch_size, windows, num_ranks * batch_size):
        rows = slice(start, start + batch_size)
        yield Batch((inputs_BT[rows],), targets_BT[rows])


def _padded(tokens_N: Tensor, rows: int, columns: int, filler: int) -> Tensor:
    padding = rows * columns - len(tokens_N)
    return torch.nn.functional.pad(tokens_N.long(), (0, padding), value=filler).view(rows, columns)


def main() -> None:
    """Write the text of a source to a file, and say what it is; a validation text of its own comes last."""
    parser = StrictParser(prog="python -m gpt.data", description="Write the text of a source to a file.")
    parser.add_class_arguments(DataConfig, skip={"unknown"})
    parser.add_argument("--output", type=str, required=True, help="where to write the text")
    arguments = parser.parse_args()
    names = [field.name for field in fields(DataConfig) if field.name in arguments]
    source = load_source(DataConfig(**{name: arguments[name] for name in names}))
    text = source.text + (source.validation or "")
    content = text.encode()
    try:
        Path(arguments.output).write_bytes(content)
    except OSError as error:
        raise InputError(f"cannot write {arguments.output}: {error.strerror}") from error
    print(f"source      {source.origin}")
    for note in source.notes:
        print(f"note        {note}")
    print(f"bytes       {len(content):,}")
    print(f"characters  {len(text):,}, {len(set(text)):,} different ones")
    if source.validation is not None:
        print(f"validation  {len(source.validation):,} characters, the last ones")
    print(f"sha256      {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
