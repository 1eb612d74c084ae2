"""What a save costs the training, in seconds and memory, and what opening one takes that is to be evaluated.

Our checkpoints, standing still and in the background; as they were written and read before that, by one call of
safetensors for a file, a flush, and a second reading that hashes; and Accelerate's `save_state`.
"""

import hashlib
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from safetensors.torch import load, save_file
from torch import Tensor

from gpt.config import GPTConfig, ModelConfig
from gpt.model import GPT
from training.average import WeightAverage
from training.config.command_line import parse_config_text
from training.config.sections import OptimizerConfig
from training.optimizer import build_optimizer, optimizer_tensors
from training.storage import manifest
from training.storage.background import Background, Snapshot
from training.storage.checkpoint import Checkpoint, CheckpointStore
from training.storage.files import sync
from training.storage.loading import load_weights
from training.storage.state import Counters, SavedState
from training.storage.tensor_file import tensor_bytes
from training.storage.whole import wholes

SEED_CONFIG = Path(__file__).parents[2] / "configs/gpt/seed.yaml"
VOCABULARY = 65
TOKENS = 256
"""Of a training step beside a save in the background."""
STEPS_ALONE = 3


def seed_model() -> ModelConfig:
    """The 12-layer, 768-wide model of configs/gpt/seed.yaml."""
    return parse_config_text(GPTConfig, SEED_CONFIG.read_text()).model


class Training:
    """A model with AdamW and an average of its weights, on random tokens."""

    def __init__(self, model_config: ModelConfig) -> None:
        self.model = GPT(model_config, VOCABULARY)
        self._optimizer = build_optimizer(self.model, OptimizerConfig(name="adamw"), bf16=False)
        average = self._average = WeightAverage(self.model, 0.999)
        moments = optimizer_tensors(self.model, self._optimizer)
        self.tensors = {"model": self.model.state_dict(), "optimizer": moments, "ema": average.tensors}
        _fill(self.tensors.values())
        for name, moment in moments.items():
            moment.abs_() if name.endswith("exp_avg_sq") else None
        self._tokens = torch.randint(VOCABULARY, (1, min(TOKENS, model_config.max_len)))

    def step(self) -> None:
        """One optimizer step."""
        self.model(self._tokens).float().logsumexp(-1).mean().backward()
        self._optimizer.found_inf = unchanged = torch.zeros(())
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._average.update(1, unchanged)

    def save(
        self, store: CheckpointStore, number: int, tensors: Mapping[str, Mapping[str, Tensor]], *, in_turn: bool = False
    ) -> None:
        """Write a checkpoint of tensors, pruning included; its files one after another, or all at once."""
        state, values = SavedState(number, Counters(step=number), {}), wholes(tensors) if in_turn else None
        store.save(number, tensors=tensors, values=values, state=asdict(state), files={})


def our_saves(folder: Path, model_config: ModelConfig, saves: int) -> dict[str, Any]:
    """Save while the training stands still, and open for an evaluation."""
    measured = _saves(folder, model_config, saves)
    measured |= {f"median_seconds_of_{name}_alone": seconds for name, seconds in _alone(folder, model_config).items()}
    return measured | _opening(
        model_config, lambda model: load_weights(model, Checkpoint(folder / "last", in_part=True))
    )


def former_saves(folder: Path, model_config: ModelConfig, saves: int) -> dict[str, Any]:
    """The same, as it was done before."""
    with patch.object(manifest, "write_tensors", _former_write):
        measured = _saves(folder, model_config, saves, in_turn=True)

    def open_all(model: GPT) -> None:
        contents = {file.name: file.read_bytes() for file in (folder / "last").iterdir()}
        for content in contents.values():
            hashlib.sha256(content).hexdigest()
        model.load_state_dict(load(contents["ema.safetensors"]))

    return measured | _opening(model_config, open_all)


def background_saves(folder: Path, model_config: ModelConfig, saves: int) -> dict[str, Any]:
    """Save while steps are taken: what these take longer than alone, and the standing still for the copy."""
    training, store = Training(model_config), CheckpointStore(folder)
    snapshot, background = Snapshot(), Background()
    alone, spans, still, grown = list[float](), list[tuple[float, int]](), list[float](), list[int]()
    for number in range(1, saves + 1):
        os.sync()
        alone += [_seconds(training.step) for _ in range(STEPS_ALONE)]
        written = list[float]()
        with peak_memory(grown):
            begin, steps = time.perf_counter(), 0

            def write(tensors: Any, number: int = number, written: list[float] = written) -> None:
                training.save(store, number, tensors)
                written.append(time.perf_counter())

            background.start(partial(write, snapshot.take(training.tensors, wholes(training.tensors))))
            still.append(time.perf_counter() - begin)
            while not written:
                training.step()
                steps += 1
        spans.append((time.perf_counter() - begin, steps))
        background.wait()
    step_alone = statistics.median(alone)
    costs = [seconds - steps * step_alone for seconds, steps in spans]
    return _figures(costs, (folder / "last").resolve(), grown) | {
        "median_seconds_standing_still": statistics.median(still),
        "median_seconds_until_flushed": statistics.median(seconds for seconds, _ in spans),
        "median_steps_meanwhile": statistics.median(steps for _, steps in spans),
        "median_seconds_of_a_step_alone": step_alone,
    }


def _saves(folder: Path, model_config: ModelConfig, saves: int, *, in_turn: bool = False) -> dict[str, Any]:
    training, store = Training(model_config), CheckpointStore(folder)
    seconds, grown = list[float](), list[int]()
    for number in range(1, saves + 1):
        os.sync()
        with peak_memory(grown):
            save = partial(training.save, store, number, training.tensors, in_turn=in_turn)
            seconds.append(_seconds(save))
    return _figures(seconds, (folder / "last").resolve(), grown)


def _former_write(path: Path, tensors: Mapping[str, Tensor], values: Iterable[Tensor]) -> tuple[int, str]:
    save_file(dict(tensors), path)
    sync(path)
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _alone(folder: Path, model_config: ModelConfig) -> dict[str, float]:
    """How long the same bytes take to hash, and to write and flush: a save can be no faster than the slower one."""
    values = list(wholes(Training(model_config).tensors))

    def hash_all() -> None:
        sha256 = hashlib.sha256()
        for value in values:
            sha256.update(tensor_bytes(value))

    def write_all() -> None:
        with (folder / "alone").open("wb", buffering=0) as file:
            for value in values:
                file.write(tensor_bytes(value))
            os.fsync(file.fileno())

    seconds = {"hash": _seconds(hash_all), "write": _seconds(write_all)}
    (folder / "alone").unlink()
    return seconds


def _opening(model_config: ModelConfig, open_checkpoint: Callable[[GPT], object]) -> dict[str, Any]:
    """What it takes to give a model the averaged weights of a checkpoint, beside the model."""
    model, grown = GPT(model_config, VOCABULARY), list[int]()
    _fill([model.state_dict()])
    with peak_memory(grown):
        seconds = _seconds(lambda: open_checkpoint(model))
    return {"seconds_of_opening": seconds, "bytes_more_in_opening": grown[0]}


def _seconds(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


@contextmanager
def peak_memory(grown: list[int]) -> Iterator[None]:
    """While entered, watch how far this process's memory grows; appends the bytes."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Begins the highest mark anew.
    before = _status("VmRSS")
    yield
    grown.append(_status("VmHWM") - before)


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


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
    seconds, flushed, grown = [], [], list[int]()
    for _ in range(saves):
        shutil.rmtree(folder, ignore_errors=True)
        os.sync()
        begin = time.perf_counter()
        with peak_memory(grown):
            accelerator.save_state(str(folder))
        seconds.append(time.perf_counter() - begin)
        os.sync()
        flushed.append(time.perf_counter() - begin)
    return _figures(seconds, folder, grown) | {"median_seconds_until_flushed": statistics.median(flushed)}


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


def _figures(seconds: list[float], place: Path, grown: list[int]) -> dict[str, Any]:
    return {
        "saves": len(seconds),
        "bytes": sum(file.stat().st_size for file in place.rglob("*") if file.is_file()),
        "median_seconds": statistics.median(seconds),
        "min_seconds": min(seconds),
        "max_seconds": max(seconds),
        "share_of_a_minute": statistics.median(seconds) / 60,
        "max_bytes_more_in_memory": max(grown),
    }
