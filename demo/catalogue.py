"""The runs that a page offers, and their models, loaded when they are asked for."""

import logging
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from itertools import takewhile
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import torch

import gpt
import seq2seq
from decoding.choices import Precision
from decoding.decoder import convert
from decoding.model_type import ModelType, checkpoint_model_type
from demo.metrics import METRICS, version
from gpt.task import LoadedGPT
from seq2seq.task import LoadedSeq2Seq
from training.runtime.errors import InputError
from training.storage.checkpoint import STATE, CheckpointError, saved_step
from training.storage.reading import MissingFileError, read_json, read_text
from training.storage.run_folder import RunFolder, find_checkpoint

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
    kind: ModelType
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
        self._seen: dict[str, tuple[Any, Entry | str]] = {}
        self._whole: dict[str, tuple[tuple[str, int], bool]] = {}
        self._lock = threading.Lock()

    def entries(self, kind: ModelType | None = None) -> list[Entry]:
        """The runs with a checkpoint, the newest first; what cannot be read is in `left_out`."""
        found = [self._entry(folder) for folder in sorted(self._folders(), key=changed, reverse=True)]
        return [entry for entry in found if isinstance(entry, Entry) and kind in (None, entry.kind)]

    def folders(self) -> list[RunFolder]:
        """All runs, those without a checkpoint too, by name."""
        return [RunFolder(folder) for folder in sorted(self._folders()) if _in_use(folder)]

    def left_out(self) -> dict[str, str]:
        """The runs that are not offered, or not drawn, and why."""
        found = {folder.name: self._entry(folder) for folder in self._folders()}
        unnamed = {_shown(name): "its name is not UTF-8" for name in self._names() if not _is_text(name)}
        faults = METRICS.faults | {name: fault for name, fault in found.items() if isinstance(fault, str) and fault}
        return unnamed | {name: self._without_path(fault) for name, fault in faults.items()}

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.runs)
        except OSError:
            return []

    def _folders(self) -> list[Path]:
        return [self.runs / name for name in self._names() if _is_text(name) and os.path.isdir(self.runs / name)]

    def _entry(self, folder: Path) -> "Entry | str":
        """What is known of a run, read again where it has changed; or why it is not offered: in no words, if it has no
        checkpoint yet."""
        try:
            checkpoint = find_checkpoint(folder)
            stamps = (changed(checkpoint / "manifest.json"), changed(checkpoint), version(folder / "metrics.jsonl"))
            now = (os.path.realpath(checkpoint), *stamps)
            seen = self._seen.get(folder.name)
            if seen is None or seen[0] != now:
                seen = self._seen[folder.name] = now, _read_entry(folder, checkpoint)
            return seen[1]
        except CheckpointError:
            return ""
        except OSError as error:
            return f"{folder.name} cannot be read: {error.strerror}"

    def _without_path(self, text: str) -> str:
        """A visitor need not know where the runs lie."""
        return text.replace(f"{self.runs.resolve()}/", "").replace(f"{self.runs}/", "")

    def best(self, kind: ModelType) -> str | None:
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

    def _load(self, name: Any, kind: ModelType, precision: Precision = "fp32") -> LoadedGPT | LoadedSeq2Seq:
        # A name is one of the list, never a path.
        folders = {folder.name: folder for folder in self._folders()}
        entry = self._entry(folders[name]) if isinstance(name, str) and name in folders else ""
        if isinstance(entry, str):
            shown = repr(name) if len(repr(name)) <= 60 else f"{repr(name)[:59]}…"
            why = f" ({self._without_path(entry)})" if entry else ""
            raise InputError(f"there is no trained run {shown}{why}: choose one of the list, which may have changed")
        if entry.kind != kind:
            raise InputError(f"{name} is {_KINDS[entry.kind]}, expected {_KINDS[kind]}")
        folder = find_checkpoint(self.runs / name)
        with self._lock:
            stamp = _stamp(folder)
            held = self._held.pop((name, precision), None)
            if held is None or held.stamp != stamp:
                held = None  # The memory of the old ones is free before the new one takes its own.
                while len(self._held) >= KEPT:
                    self._held.popitem(last=False)
                load = gpt.load if kind == "gpt" else seq2seq.load
                try:
                    loaded = load(folder, self.device)
                    if isinstance(loaded, LoadedGPT):
                        convert(loaded.model, precision)
                    held = _Held(stamp, loaded)
                except InputError as error:
                    raise InputError(self._without_path(str(error))) from error
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


def _in_use(folder: Path) -> bool:
    try:
        return RunFolder(folder).in_use
    except OSError:
        return False


def _is_text(name: str) -> bool:
    return _shown(name) == name


def _shown(name: str) -> str:
    """A name of the disk as it can be sent."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _read_entry(folder: Path, checkpoint: Path) -> Entry | str:
    """What is known of a run, or why it cannot be read; no words if it is none."""
    try:
        step = saved_step(read_json(checkpoint / STATE), checkpoint / STATE)
        kind = checkpoint_model_type(checkpoint)
        if kind is None:
            return f"{checkpoint} holds neither a tokenizer nor a vocabulary"
        return Entry(
            name=folder.name,
            kind=kind,
            task=_task(checkpoint / "config.yaml") if kind == "seq2seq" else None,
            step=step,
            val_loss=_val_loss(RunFolder(folder), step),
            megabytes=(checkpoint / "model.safetensors").stat().st_size / 1e6,
        )
    except MissingFileError as error:
        return str(error) if _in_use(folder) else ""
    except InputError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"


def _val_loss(run: RunFolder, step: int) -> float | None:
    """The validation loss at a step; no more of the file is read than lies behind it."""
    lines = takewhile(lambda line: line["step"] >= step, run.iterate_metrics(newest_first=True))
    return next((line.get("val_loss") for line in lines if line["step"] == step), None)


def _task(config: Path) -> str | None:
    words = [line.split() for line in read_text(config).splitlines()]
    return next((word[1] for word in words if len(word) == 2 and word[0] == "task:"), None)
