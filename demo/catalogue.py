"""The runs that a page offers, and their models, loaded when they are asked for."""

import json
import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from gpt.decoding import Precision, convert
from gpt.trainer import LoadedGPT, load_gpt
from seq2seq.trainer import VOCABULARY_FILE, LoadedSeq2Seq, load_seq2seq
from training.errors import InputError
from training.run_folder import RunFolder, find_checkpoint

Kind = Literal["gpt", "seq2seq"]
KEPT = 2
"""Models in memory at once."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A run that holds a checkpoint.

    Attributes:
        name: Of its folder.
        kind: Of its model.
        task: Of an encoder-decoder: copy, reverse or pairs.
        step: Of the checkpoint.
        val_loss: At that step, in nats; None where it was not measured.
        megabytes: Size of the checkpoint's weights.
    """

    name: str
    kind: Kind
    task: str | None
    step: int
    val_loss: float | None
    megabytes: float

    @property
    def label(self) -> str:
        """What the picker shows."""
        task = f"{self.task}, " if self.task else ""
        loss = "" if self.val_loss is None else f"val. loss {self.val_loss:.3f}, "
        return f"{self.name} ({task}{loss}{self.megabytes:.1f} MB)"


class _Held(NamedTuple):
    stamp: tuple[str, int]
    loaded: LoadedGPT | LoadedSeq2Seq


class Catalogue:
    """What is trained under a folder of runs.

    Args:
        runs: The folder; it need not exist.
        device: Where models go.
    """

    def __init__(self, runs: Path, device: torch.device | str = "cpu") -> None:
        self.runs, self.device = runs, device
        self._held: OrderedDict[tuple[str, str], _Held] = OrderedDict()
        self._whole: dict[str, tuple[tuple[str, int], bool]] = {}
        self._lock = threading.Lock()

    def entries(self, kind: Kind | None = None) -> list[Entry]:
        """The runs with a checkpoint, the newest first; what cannot be read is left out."""
        folders = sorted(self._folders(), key=changed, reverse=True)
        found = [entry for folder in folders if (entry := _entry(folder)) is not None]
        return [entry for entry in found if kind in (None, entry.kind)]

    def folders(self) -> list[RunFolder]:
        """All runs, those without a checkpoint too, by name."""
        return [run for folder in sorted(self._folders()) if (run := RunFolder(folder)).in_use]

    def _folders(self) -> list[Path]:
        try:
            return [path for path in self.runs.iterdir() if path.is_dir() and not path.is_symlink()]
        except OSError:
            return []

    def best(self, kind: Kind) -> str | None:
        """The run with the lowest validation loss of those that can be loaded, which is tried once for each."""
        by_loss = sorted(self.entries(kind), key=lambda entry: inf if entry.val_loss is None else entry.val_loss)
        return next((entry.name for entry in by_loss if self._is_whole(entry)), None)

    def _is_whole(self, entry: Entry) -> bool:
        try:
            stamp = _stamp(find_checkpoint(self.runs / entry.name))
            if self._whole.get(entry.name, (None, False))[0] != stamp:
                self._whole[entry.name] = stamp, False
                self._load(entry.name, entry.kind)
                self._whole[entry.name] = stamp, True
            return self._whole[entry.name][1]
        except InputError:
            return False

    def gpt(self, name: Any, precision: Precision = "fp32") -> LoadedGPT:
        """The model of a run.

        Raises:
            InputError: There is no such run, it is another kind of model's, or its checkpoint is damaged or gone.
        """
        loaded = self._load(name, "gpt", precision)
        assert isinstance(loaded, LoadedGPT)
        return loaded

    def seq2seq(self, name: Any) -> LoadedSeq2Seq:
        """The same for an encoder-decoder."""
        loaded = self._load(name, "seq2seq")
        assert isinstance(loaded, LoadedSeq2Seq)
        return loaded

    def _load(self, name: Any, kind: Kind, precision: Precision = "fp32") -> LoadedGPT | LoadedSeq2Seq:
        # A name is one of the list, never a path.
        known = {entry.name: entry for entry in self.entries()}
        if not isinstance(name, str) or name not in known:
            shown = repr(name) if len(repr(name)) <= 60 else f"{repr(name)[:59]}…"
            raise InputError(f"there is no trained run {shown}: choose one of the list, which may have changed")
        if known[name].kind != kind:
            raise InputError(f"{name} is {_KINDS[known[name].kind]}, expected {_KINDS[kind]}")
        folder = find_checkpoint(self.runs / name)
        with self._lock:
            stamp = _stamp(folder)
            held = self._held.pop((name, precision), None)
            if held is None or held.stamp != stamp:
                held = None  # The memory of the old ones is free before the new one takes its own.
                while len(self._held) >= KEPT:
                    self._held.popitem(last=False)
                load = load_gpt if kind == "gpt" else load_seq2seq
                try:
                    loaded = load(folder, self.device)
                    if isinstance(loaded, LoadedGPT):
                        convert(loaded.model, precision)
                    held = _Held(stamp, loaded)
                except InputError as error:  # A visitor need not know where the runs lie.
                    raise InputError(str(error).replace(f"{self.runs.resolve()}/", "")) from error
                except OSError as error:
                    raise InputError(f"the checkpoint of {name} cannot be read: {error.strerror}") from error
                except Exception as error:
                    log.exception("%s cannot be loaded", name)
                    raise InputError(f"the checkpoint of {name} cannot be loaded; the terminal says why") from error
            self._held[name, precision] = held
            return held.loaded


def _stamp(folder: Path) -> tuple[str, int]:
    return str(folder.resolve()), changed(folder / "manifest.json")


def changed(path: Path) -> int:
    """When a file or folder was changed last, in nanoseconds; 0 if it has vanished in the meantime."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


_KINDS = {"gpt": "a GPT", "seq2seq": "an encoder-decoder"}


def _entry(folder: Path) -> Entry | None:
    try:
        checkpoint = find_checkpoint(folder)
        step = int(json.loads((checkpoint / "state.json").read_text())["step"])
        kind: Kind = "seq2seq" if (checkpoint / VOCABULARY_FILE).exists() else "gpt"
        if kind == "gpt" and not (checkpoint / "tokenizer.json").exists():
            return None
        task = _task(checkpoint / "config.yaml") if kind == "seq2seq" else None
        megabytes = (checkpoint / "model.safetensors").stat().st_size / 1e6
        line = RunFolder(folder).metrics_of(step) or {}
        return Entry(
            name=folder.name,
            kind=kind,
            task=task,
            step=step,
            val_loss=None if line.get("val_loss") is None else float(line["val_loss"]),
            megabytes=megabytes,
        )
    except (InputError, OSError, ValueError, KeyError, TypeError):
        return None


def _task(config: Path) -> str | None:
    words = [line.split() for line in config.read_text().splitlines()]
    return next((word[1] for word in words if len(word) == 2 and word[0] == "task:"), None)
