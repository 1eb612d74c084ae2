"""What a process of `measure_links.py` does: `link_worker.py FOLDER` reads its plan there, and leaves its figures."""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import distributed

from gpt.config import GPTConfig
from gpt.task import GPTTask
from training.benchmark.measure import temporary_trainer
from training.benchmark.profile import StepProfiler
from training.config.command_line import parse_config_text
from training.evaluation import validation_loss
from training.loop import Trainer
from training.planning.work import sent_bytes
from training.runtime.machine import describe_machine
from training.saving import Saver

PROFILED = 3


class Mode(NamedTuple):
    """A way to train: how many times the sequences of a step, and options of training."""

    batch: int
    options: dict[str, Any]


MODES = {
    "DDP": Mode(1, {}),
    "fp16 on the way": Mode(1, {"gradient_compression": "fp16"}),
    "2 parts of a step": Mode(2, {"accumulation_steps": 2}),
}


class Plan(NamedTuple):
    """How much is measured.

    Attributes:
        config: The file of the configuration.
        options: What is changed of it, by section.
        sizes: Bytes of the all-reduces.
        readings: Of each; the median counts.
        steps: Of each way to train, after two that do not count.
        windows: Of the validation split that are evaluated.
    """

    config: str = str(Path(__file__).parents[2] / "configs/gpt/shakespeare.yaml")
    options: dict[str, dict[str, Any]] = {  # noqa: RUF012
        "training": {"batch_size": 4, "precision": "fp32", "compile": "off", "max_steps": 100, "epochs": None},
    }
    sizes: tuple[int, ...] = (4, 1 << 20, 1 << 25)
    readings: int = 5
    steps: int = 6
    windows: int = 32


TINY = Plan(
    options={
        "model": {"num_layers": 1, "d_model": 32, "num_heads": 2, "max_len": 32},
        "training": Plan().options["training"],
    },
    sizes=(4, 1 << 16),
    readings=1,
    steps=1,
    windows=8,
)


def work(folder: Path) -> None:
    """Measure as a process of a launch."""
    plan = Plan(**json.loads((folder / "plan.json").read_text()))
    cores = sorted(os.sched_getaffinity(0))  # Each machine has one, for what it computes and what it sends.
    os.sched_setaffinity(0, {cores[int(os.environ["RANK"]) % len(cores)]})
    config = parse_config_text(GPTConfig, Path(plan.config).read_text())
    config = replace(config, tracking="none", data=replace(config.data, source=str(folder / "text.txt")))
    for section, changes in plan.options.items():
        config = replace(config, **{section: replace(getattr(config, section), **changes)})
    figures: dict[str, Any] = {"modes": {}}
    for name, mode in MODES.items():
        with _trainer(config, mode) as trainer:
            alone = trainer.accelerator.num_processes == 1
            if name == "DDP":
                figures |= describe_machine(trainer.accelerator.device)
                figures["all_reduce"] = {} if alone else _all_reduces(plan)
                figures["evaluation_seconds"] = _evaluation_seconds(plan, trainer)
                figures["save_seconds"] = _save_seconds(plan, trainer)
            if not alone or not mode.options.get("gradient_compression"):
                figures["modes"][name] = _steps(plan, trainer)
            is_main = trainer.accelerator.is_main_process
    if is_main:
        (folder / "figures.json").write_text(json.dumps(figures))


@contextmanager
def _trainer(config: GPTConfig, mode: Mode) -> Iterator[Trainer]:
    """What trains so, with the same share of a step for each process whether there are two or one."""
    batch = config.training.batch_size * mode.batch * int(os.environ["WORLD_SIZE"]) // 2
    config = replace(config, training=replace(config.training, batch_size=batch, **mode.options))
    with temporary_trainer(lambda: GPTTask(config), config, 0) as trainer:
        yield trainer


def _median(readings: int, action: Callable[[], object]) -> float:
    """Seconds, from a moment at which all processes are there."""
    seconds = []
    for _ in range(readings + 1):
        distributed.barrier()
        begun = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[1:])


def _all_reduces(plan: Plan) -> dict[str, float]:
    found = {}
    for size in plan.sizes:
        numbers = torch.ones(size // 4)
        found[str(size)] = _median(plan.readings, lambda numbers=numbers: distributed.all_reduce(numbers))
    return found


def _evaluation_seconds(plan: Plan, trainer: Trainer) -> float:
    every = max(1, trainer.task.data.validation_targets // (plan.windows * round(trainer.task.data.tokens_per_sample)))
    return _median(1, lambda: validation_loss(trainer.accelerator, trainer.task, 8, every=every))


def _save_seconds(plan: Plan, trainer: Trainer) -> float:
    """Of whole saves, each of another step: the main process writes, and the others wait."""

    def save() -> None:
        trainer.counters.step += 1
        Saver.save(trainer.saver, trainer.counters, None)  # type: ignore[arg-type]

    seconds = _median(min(plan.readings, 3), save)
    trainer.counters.step = 0
    return seconds


def _steps(plan: Plan, trainer: Trainer) -> dict[str, Any]:
    """Seconds of a step, and how much of what it sends is hidden behind what it computes."""
    profiler, seconds = StepProfiler(None), []
    with trainer.batches() as batches:
        trainer.device_step.warm_up_ddp_buckets(batches.make(1))
        for step in range(1, plan.steps + PROFILED + 4):
            if step in (plan.steps + 3, plan.steps + PROFILED + 3):
                profiler.advance()
            taken = batches.take(step)
            begun = time.perf_counter()
            trainer.device_step.launch(step, taken, stop=False).outcome()
            seconds.append(time.perf_counter() - begun)
    sent = profiler.parts["milliseconds"].get("communication", 0.0)
    hidden = profiler.parts.get("hidden_communication", 0.0)
    gradients, gathered = sent_bytes(trainer.task.model, trainer.config, "fp32")
    return {
        "gradient_bytes": gradients,
        "gathered_bytes": gathered,
        "seconds": statistics.median(seconds[2 : plan.steps + 2]),
        "slowest": max(seconds[2 : plan.steps + 2]),
        "traced": {"sent_seconds": sent / 1000, "hidden_seconds": hidden / 1000},
    }


if __name__ == "__main__":
    work(Path(sys.argv[1]))
