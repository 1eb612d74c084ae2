"""Disks that fill up in the middle of a save, at each tenth of it, for our checkpoints and for Accelerate's."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from helpers import read_metrics
from reliability.isolated import isolated
from reliability.killing import CONFIG, TEXT
from torch import nn, optim

from data.config import TextConfig
from gpt.task import train_gpt
from training.runtime.errors import SaveError
from training.storage.checkpoint import CheckpointStore

TENTHS = range(10)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse to write more than so many bytes into any one file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def refused_saves(steps: set[int], size: int) -> Iterator[None]:
    """Let the saves of some steps meet a limit on the size of files."""
    original = CheckpointStore.save

    def limited(store: CheckpointStore, step: int, **arguments: Any) -> Path:
        with largest_file(size if step in steps else resource.RLIM_INFINITY):
            return original(store, step, **arguments)

    with patch.object(CheckpointStore, "save", limited):
        yield


def results(run: Path) -> tuple[dict[str, bytes], list[Any]]:
    """Final weights, and losses by step."""
    weights = {file.name: file.read_bytes() for file in (run / "checkpoints/last").glob("*.safetensors")}
    return weights, [(line["step"], line["train_loss"], line.get("val_loss")) for line in read_metrics(run)]


def fill_ours(folder: Path, background: bool = False) -> dict[str, int]:
    """Refuse the third save of a run at each tenth of its largest file, and resume with space again.

    Where it goes on in the meantime, it hears of it at its end.
    """
    folder.mkdir(parents=True)
    (folder / "text.txt").write_text(TEXT)
    training = replace(CONFIG.training, background_saves=background)
    config = replace(CONFIG, data=TextConfig(source=str(folder / "text.txt")), training=training)
    train_gpt(config, output_dir=folder / "whole")
    largest = max(file.stat().st_size for file in (folder / "whole/checkpoints/last").iterdir())
    counts = {"saves": 0, "an_older_checkpoint_loads": 0, "same_result_after_a_resume": 0}
    for tenth in TENTHS:
        run = folder / f"run-{tenth}"
        with refused_saves({10}, largest * tenth // 10):
            try:
                train_gpt(config, output_dir=run)
            except SaveError:
                counts["saves"] += 1
        checkpoint, damage = CheckpointStore(run / "checkpoints").newest_sound()
        counts["an_older_checkpoint_loads"] += checkpoint is not None and not damage
        train_gpt(config, output_dir=run, resume=True)
        counts["same_result_after_a_resume"] += results(run) == results(folder / "whole")
    return counts


def _accelerator(folder: Path) -> Accelerator:
    """One that keeps the newest state only, under a number."""
    configuration = ProjectConfiguration(str(folder), automatic_checkpoint_naming=True, total_limit=1)
    accelerator = Accelerator(cpu=True, project_config=configuration)
    model = nn.Linear(64, 64)
    accelerator.prepare(model, optim.AdamW(model.parameters()))
    return accelerator


def _save_twice(folder: Path, size: int) -> bool:
    """Save a state, and once more under a limit; return whether the second was refused."""
    accelerator = _accelerator(folder)
    accelerator.save_state()
    try:
        with largest_file(size):
            accelerator.save_state()
    except Exception:
        return True
    return False


def _newest_loads(folder: Path) -> bool:
    """Whether Accelerate finds a state by itself, and can load it."""
    try:
        _accelerator(folder).load_state()
    except Exception:
        return False
    return True


def fill_accelerate(folder: Path) -> dict[str, int]:
    """The same for `save_state` with `total_limit=1`, and for what `load_state` finds by itself after it."""
    counts = {"saves": 0, "an_older_checkpoint_loads": 0}
    isolated(_save_twice, folder / "whole", resource.RLIM_INFINITY)
    largest = max(file.stat().st_size for file in (folder / "whole/checkpoints").rglob("*.*") if file.is_file())
    for tenth in TENTHS:
        run = folder / f"run-{tenth}"
        counts["saves"] += isolated(_save_twice, run, largest * tenth // 10)
        counts["an_older_checkpoint_loads"] += isolated(_newest_loads, run)
    return counts
