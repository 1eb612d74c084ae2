"""The runs that a page offers, and their models, loaded when they are asked for."""

import logging
import math
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import torch

import gpt
import seq2seq
from decoding.choices import Precision
from decoding.decoder import convert
from decoding.model_type import A_MODEL, ModelType, checkpoint_model_type
from demo.curves import METRICS, version
from demo.limits import shown
from gpt.task import LoadedGPT
from seq2seq.task import LoadedSeq2Seq
from training.runtime.errors import InputError
from training.storage.checkpoint import STATE, CheckpointError, saved_step
from training.storage.finding import find_checkpoint
from training.storage.manifest import MANIFEST
from training.storage.own_class import OwnClassError, own_class
from training.storage.reading import MissingFileError, read_json, read_text
from training.storage.run_folder import RunFolder

KEPT = 2
"""Models in memory at once."""
REMEMBERED = 4096
"""Checkpoints of which is known what they hold."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A run that holds a checkpoint.

    Attributes:
        name: Of its folder.
        kind: Of its model.
        task: Of an encoder-decoder: copy, reverse or pairs.
        val_loss: At its step, in nats; None where it was not measured.
        val_loss_subset: The same over a part of the validation split, which does not compare with other runs'.
        bits_per_byte: The same in bits for each byte of the text.
        megabytes: Size of the checkpoint's weights.
        own_class: The class of somebody's own that made the model; None for those of this project.
    """

    name: str
    kind: ModelType
    task: str | None
    val_loss: float | None
    val_loss_subset: float | None
    bits_per_byte: float | None
    megabytes: float
    own_class: str | None

    @property
    def bits(self) -> float | None:
        """What runs are compared by, whatever their tokens are; of an older one bits per token, which are characters
        then."""
        if self.bits_per_byte is not None:
            return self.bits_per_byte
        return None if self.val_loss is None else self.val_loss / math.log(2)

    @property
    def label(self) -> str:
        """What the picker shows."""
        task = f"{self.task}, " if self.task else ""
        subset = "" if self.val_loss_subset is None else f"val_loss_subset {self.val_loss_subset:.3f}, "
        loss = subset if self.val_loss is None else f"val. loss {self.val_loss:.3f}, "
        loss = loss if self.bits_per_byte is None else f"{self.bits_per_byte:.3f} bits per byte, "
        return f"{self.name} ({task}{loss}{self.megabytes:.1f} MB)"


Loaded: TypeAlias = LoadedGPT | LoadedSeq2Seq
Version: TypeAlias = tuple[Any, ...]
"""Of a checkpoint: another one whenever that has changed."""


class Catalogue:
    """What is trained under a folder of runs.

    Args:
        runs: The folder; it need not exist.
        device: Where models go.
        trust_code: Import the classes of somebody's own that made models.
    """

    def __init__(self, runs: Path, device: torch.device | str = "cpu", *, trust_code: bool = False) -> None:
        self.runs, self.device, self._trust_code = runs, device, trust_code
        self._held: OrderedDict[tuple[str, str], tuple[Version, Loaded]] = OrderedDict()
        self._lock = threading.Lock()
        self._read_entry = lru_cache(REMEMBERED)(_read_entry)
        self._tried: dict[str, tuple[Version | None, str | None]] = {}  # By name: the reason that it cannot be loaded.

    def entries(self, kind: ModelType | None = None) -> list[Entry]:
        """The runs with a checkpoint, the newest first; what cannot be read is in `left_out`."""
        found = [self._entry(folder) for folder in sorted(self._folders(), key=version, reverse=True)]
        return [entry for entry in found if isinstance(entry, Entry) and kind in (None, entry.kind)]

    def folders(self) -> list[RunFolder]:
        """All runs, those without a checkpoint too, by name."""
        return [RunFolder(folder) for folder in sorted(self._folders()) if _in_use(folder)]

    def left_out(self) -> dict[str, str]:
        """The runs that are not offered, or not drawn, and why."""
        found = {folder.name: self._entry(folder) for folder in self._folders()}
        unnamed = {_sendable(name): "its name is not UTF-8" for name in self._names() if _sendable(name) != name}
        faults = METRICS.faults | {name: fault for name, fault in found.items() if isinstance(fault, str) and fault}
        return unnamed | {name: self._without_path(fault) for name, fault in faults.items()}

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.runs)
        except OSError:
            return []

    def _folders(self) -> list[Path]:
        names = [name for name in self._names() if _sendable(name) == name]
        return [self.runs / name for name in names if os.path.isdir(self.runs / name)]

    def _entry(self, folder: Path) -> "Entry | str":
        """What is known of a run, read again where it has changed; or why it is not offered: in no words, if it has no
        checkpoint yet."""
        try:
            checkpoint = find_checkpoint(folder)
            now = (*_version(checkpoint), version(checkpoint), version(folder / "metrics.jsonl"))
            return self._read_entry(folder, checkpoint, now)
        except CheckpointError:
            return ""
        except OSError as error:
            return f"{folder.name} cannot be read: {error.strerror}"

    def _without_path(self, text: str) -> str:
        """A visitor need not know where the runs lie."""
        return text.replace(f"{self.runs.resolve()}/", "").replace(f"{self.runs}/", "")

    def best(self, kind: ModelType) -> str | None:
        """The run with the fewest bits per byte of those that can be loaded, which is tried once for each."""
        by_loss = sorted(self.entries(kind), key=lambda entry: math.inf if entry.bits is None else entry.bits)
        return next((entry.name for entry in by_loss if self._try(entry) is None), None)

    def fault(self, entry: Entry) -> str | None:
        """Why a run cannot be loaded, as far as that is known; one that nobody has tried may turn out so."""
        if entry.own_class is not None and not self._trust_code:
            return f"made by {shown(entry.own_class, 60)}, which python demo/app.py --trust_code imports"
        before, fault = self._tried.get(entry.name, (None, None))
        return fault if fault and before == self._now(entry) else None

    def _try(self, entry: Entry) -> str | None:
        now = self._now(entry)
        before, fault = self._tried.get(entry.name, (None, None))
        if now is None or before != now:
            fault = None
            try:
                self._load(entry.name, entry.kind)
            except InputError as error:
                fault = str(error)
            self._tried[entry.name] = now, fault
        return fault

    def _now(self, entry: Entry) -> Version | None:
        try:
            return _version(find_checkpoint(self.runs / entry.name))
        except InputError:
            return None

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

    def _load(self, name: Any, kind: ModelType, precision: Precision = "fp32") -> Loaded:
        # A name is one of the list, never a path.
        folders = {folder.name: folder for folder in self._folders()}
        entry = self._entry(folders[name]) if isinstance(name, str) and name in folders else ""
        if isinstance(entry, str):
            why = f" ({self._without_path(entry)})" if entry else ""
            raise InputError(
                f"there is no trained run {shown(name, 60)}{why}: choose one of the list, which may have changed"
            )
        if entry.kind != kind:
            raise InputError(f"{name} is {A_MODEL[entry.kind]}, expected {A_MODEL[kind]}")
        folder = find_checkpoint(self.runs / name)
        with self._lock:
            now = _version(folder)
            before, loaded = self._held.pop((name, precision), (None, None))
            if loaded is None or before != now:
                loaded = None  # The memory of the old ones is free before the new one takes its own.
                while len(self._held) >= KEPT:
                    self._held.popitem(last=False)
                loaded = self._read(name, folder, kind, precision)
            self._held[name, precision] = now, loaded
            return loaded

    def _read(self, name: str, folder: Path, kind: ModelType, precision: Precision) -> Loaded:
        try:
            load = gpt.load if kind == "gpt" else seq2seq.load
            loaded = load(folder, self.device, trust_code=self._trust_code)
            convert(loaded.model, precision)
            return loaded
        except OwnClassError as error:  # It names files outside of the runs.
            log.warning("%s cannot be loaded: %s", name, error)
            raise InputError(f"the class that made {name} cannot be imported; the terminal says why") from error
        except InputError as error:
            raise InputError(self._without_path(str(error))) from error
        except OSError as error:
            raise InputError(f"the checkpoint of {name} cannot be read: {error.strerror}") from error
        except Exception as error:
            log.exception("%s cannot be loaded", name)
            raise InputError(f"the checkpoint of {name} cannot be loaded; the terminal says why") from error


def _version(checkpoint: Path) -> Version:
    return os.path.realpath(checkpoint), version(checkpoint / MANIFEST)


def _in_use(folder: Path) -> bool:
    try:
        return RunFolder(folder).holds_run
    except OSError:
        return False


def _sendable(name: str) -> str:
    """A name of the disk as it can be sent."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _read_entry(folder: Path, checkpoint: Path, _: Version) -> Entry | str:
    """What is known of a run, or why it cannot be read; no words if it is none."""
    try:
        state = read_json(checkpoint / STATE)
        step = saved_step(state, checkpoint / STATE)
        identity = state["identity"] if isinstance(state.get("identity"), dict) else {}
        kind = checkpoint_model_type(checkpoint)
        if kind is None and "model_type" in identity:
            return f"{checkpoint} is of a model that the page does not know, {shown(identity['model_type'], 60)}"
        if kind is None:
            return f"{checkpoint} holds neither a tokenizer nor a vocabulary"
        metrics = RunFolder(folder).metrics_of(step) or {}
        return Entry(
            name=folder.name,
            kind=kind,
            task=setting(checkpoint / "config.yaml", "task") if kind == "seq2seq" else None,
            val_loss=metrics.get("val_loss"),
            val_loss_subset=metrics.get("val_loss_subset"),
            bits_per_byte=metrics.get("bits_per_byte"),
            megabytes=(checkpoint / "model.safetensors").stat().st_size / 1e6,
            own_class=own_class(identity),
        )
    except MissingFileError as error:
        return str(error) if _in_use(folder) else ""
    except InputError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"


def setting(config: Path, name: str) -> str | None:
    """What a configuration says of a field, or None; nothing else of it need be as it should."""
    words = [line.split() for line in read_text(config).splitlines()]
    return next((word[1] for word in words if len(word) == 2 and word[0] == f"{name}:"), None)
