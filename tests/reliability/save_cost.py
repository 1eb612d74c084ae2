"""What a save costs: seconds and bytes, with our checkpoints and with Accelerate's `save_state`."""

import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from unittest.mock import patch

import torch
from accelerate import Accelerator
from torch import Tensor

from gpt.config import GPTConfig, ModelConfig
from gpt.model import GPT
from training.average import WeightAverage
from training.config.command_line import parse_config_text
from training.config.sections import OptimizerConfig
from training.optimizer import build_optimizer, optimizer_tensors
from training.storage import manifest
from training.storage.checkpoint import CheckpointStore

P = ParamSpec("P")
T = TypeVar("T")

SEED_CONFIG = Path(__file__).parents[2] / "configs/gpt/seed.yaml"
VOCABULARY = 65
PARTS = {"write_and_flush": "write_tensors", "texts": "write_synced"}


def seed_model() -> ModelConfig:
    """The 12-layer, 768-wide model of configs/gpt/seed.yaml."""
    return parse_config_text(GPTConfig, SEED_CONFIG.read_text()).model


class PartsClock:
    """Adds up the seconds that `training.storage.manifest` spends in each part of a save."""

    def __init__(self) -> None:
        self.saves: list[dict[str, float]] = []

    def begin_save(self) -> None:
        """Start over from zero, for one more save."""
        self.saves.append(dict.fromkeys(PARTS, 0.0))

    def medians(self) -> dict[str, float]:
        """The median of each part over all saves."""
        return {part: statistics.median(save[part] for save in self.saves) for part in PARTS}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """While entered, the parts are timed."""
        with ExitStack() as stack:
            for part, name in PARTS.items():
                timed = self._timed(part, getattr(manifest, name))
                stack.enter_context(patch.object(manifest, name, timed))
            yield

    def _timed(self, part: str, function: Callable[P, T]) -> Callable[P, T]:
        def call(*arguments: P.args, **options: P.kwargs) -> T:
            begin = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.saves[-1][part] += time.perf_counter() - begin

        return call


def our_saves(folder: Path, model_config: ModelConfig, saves: int) -> dict[str, Any]:
    """Save a model, AdamW's tensors and an average through `CheckpointStore.save`, pruning included."""
    model = GPT(model_config, VOCABULARY)
    optimizer = build_optimizer(model, OptimizerConfig(name="adamw"), bf16=False)
    average = WeightAverage(model, 0.999)
    tensors = {"model": model.state_dict(), "optimizer": optimizer_tensors(model, optimizer), "ema": average.tensors}
    _fill(tensors.values())
    store, clock, seconds = CheckpointStore(folder), PartsClock(), []
    with clock.attached():
        for step in range(1, saves + 1):
            clock.begin_save()
            os.sync()
            begin = time.perf_counter()
            store.save(step, tensors=tensors, state={"step": step}, files={})
            seconds.append(time.perf_counter() - begin)
    return _figures(seconds, (folder / "last").resolve()) | {"median_seconds_of_parts": clock.medians()}


def accelerate_saves(folder: Path, model_config: ModelConfig, saves: int) -> dict[str, Any]:
    """Save the same through `Accelerator.save_state`: no manifest, no flush to the disk, nothing pruned."""
    accelerator = Accelerator(cpu=True)
    model = GPT(model_config, VOCABULARY)
    average = WeightAverage(model, 0.999)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    _fill([model.state_dict(), average.tensors, *optimizer.state.values()])
    accelerator.register_for_checkpointing(Registered(average.tensors))
    seconds, flushed = [], []
    for _ in range(saves):
        shutil.rmtree(folder, ignore_errors=True)
        os.sync()
        begin = time.perf_counter()
        accelerator.save_state(str(folder))
        seconds.append(time.perf_counter() - begin)
        os.sync()
        flushed.append(time.perf_counter() - begin)
    return _figures(seconds, folder) | {"median_seconds_until_flushed": statistics.median(flushed)}


class Registered:
    """Tensors for `register_for_checkpointing`."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors

    def state_dict(self) -> dict[str, Tensor]:
        return self._tensors

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        raise NotImplementedError


@torch.no_grad()
def _fill(groups: Iterable[Mapping[str, Tensor]]) -> None:
    """Put numbers in place of zeros, some of which have no memory of their own yet."""
    for group in groups:
        for tensor in group.values():
            if tensor.is_floating_point() and tensor.ndim:
                tensor.normal_()


def _figures(seconds: list[float], place: Path) -> dict[str, Any]:
    return {
        "saves": len(seconds),
        "bytes": sum(file.stat().st_size for file in place.rglob("*") if file.is_file()),
        "median_seconds": statistics.median(seconds),
        "min_seconds": min(seconds),
        "max_seconds": max(seconds),
        "share_of_a_minute": statistics.median(seconds) / 60,
    }
