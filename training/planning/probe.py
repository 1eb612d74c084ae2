"""How fast the device that is here is at a run: a few steps of its own loop, a part of an evaluation, a checkpoint."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch

from training.benchmark.measure import as_in_a_run, fit, request_stop, temporary_trainer
from training.benchmark.memory import MemoryPeak
from training.benchmark.speed import products_per_second
from training.compiling import choose_mode
from training.config.sections import RunConfig
from training.evaluation import mean_loss, stride, validation_loss
from training.loop import Trainer
from training.planning.speed import FORWARD
from training.planning.work import RunWork, work_of
from training.task import Task, evaluating

SECONDS, INTERVALS = 6.0, 3
"""How long steps are timed, and how often at least; the median counts."""
REPORT_SECONDS = 0.5
LONGEST_STEP = 8.0
"""Seconds that a step may take; of a longer one a part of the batch is computed."""
EVALUATION_SECONDS = 4.0
REPORTS, LAST = 100, 80
"""The run that is begun has steps for so many reports; so many are waited for at most."""


@dataclass(kw_only=True)
class Intervals:
    """A tracker that times steps, and asks the run to stop when it knows enough."""

    memory: MemoryPeak
    description: str = "probe"
    marks: list[tuple[float, float]] = field(default_factory=list)  # Seconds and steps.
    compile_seconds: float = 0.0
    peak_bytes: int | None = None

    def log(self, metrics: Mapping[str, float], sample: str | None) -> None:
        """A step was reported."""
        self.compile_seconds = metrics.get("compile_seconds", self.compile_seconds)
        if self.is_done:
            return
        if not self.marks:
            self.memory.forget()
        self.marks.append((time.perf_counter(), metrics["step"]))
        self.peak_bytes = self.memory.bytes()
        if self.is_done:
            request_stop()

    @property
    def is_done(self) -> bool:
        """Whether enough was timed."""
        enough = len(self.marks) > INTERVALS and self.marks[-1][0] - self.marks[0][0] >= SECONDS
        return enough or len(self.marks) == LAST

    def finish(self) -> None:
        """Nothing is left to do."""

    @property
    def step_seconds(self) -> float:
        """The median of the intervals."""
        pairs = zip(self.marks, self.marks[1:], strict=False)
        return statistics.median((now - start) / (step - before) for (start, before), (now, step) in pairs)


class Measured(NamedTuple):
    """What a probe has found.

    Attributes:
        step: Seconds of a step of the whole batch.
        evaluations: Seconds of all evaluations of the run, with their samples.
        save: Seconds of a checkpoint.
        compiling: Seconds before the first step.
        products: FLOP/s in products of large matrices.
        peak_bytes: Memory at most, as `MemoryPeak` has it.
        samples: Sequences of the steps that were timed.
    """

    step: float
    evaluations: float
    save: float
    compiling: float
    products: float
    peak_bytes: int | None
    samples: int


def probe(task: Task, config: RunConfig, device: torch.device, precision: str, at_once: int) -> Measured:
    """Train for a few steps, evaluate and save, and leave nothing behind.

    Where a step of the whole batch would take long, a part of it is computed, and the seconds grow as the operations.

    Args:
        task, config: What is trained; the task's model serves for nothing else afterwards.
        device, precision: What it is trained on, and in.
        at_once: Sequences that go through the model at a time.

    Raises:
        InputError: Configuration or data do not serve.
        NonFiniteError: The training diverged.
        KeyboardInterrupt: A signal came before enough was timed.
    """
    run, products = work_of(task, config), products_per_second(device, precision)
    part = _part(config, run.flops / (products / 2), at_once)
    share = work_of(task, part).flops / run.flops
    interval = min(max(1, int(REPORT_SECONDS / (share * run.flops / (products / 2)))), 50)
    training = replace(part.training, eval_interval=0, patience=0, checkpoint_interval=0, log_interval=interval)
    training = replace(training, compile=choose_mode(config.training, device, run.steps * run.flops, 1).mode)
    beside = Path("runs") if Path("runs").is_dir() else Path()
    print("probe       some steps of training, a part of an evaluation, and a checkpoint", flush=True)
    with temporary_trainer(lambda: task, replace(part, training=training), REPORTS * interval, beside) as trainer:
        intervals = Intervals(memory=MemoryPeak(device, trainer.saver.checkpoint_bytes))
        fit(trainer, intervals)
        if not intervals.is_done:
            raise KeyboardInterrupt
        as_in_a_run(trainer)
        return Measured(
            step=intervals.step_seconds / share,
            evaluations=_evaluation_seconds(trainer, config, run, run.flops * share / intervals.step_seconds),
            save=_seconds(lambda: trainer.saver.write(trainer.counters)),
            compiling=intervals.compile_seconds,
            products=products,
            peak_bytes=intervals.peak_bytes,
            samples=part.training.batch_size,
        )


def _part(config: RunConfig, seconds: float, at_once: int) -> RunConfig:
    """The configuration with a smaller batch where a step of it takes too many seconds; two passes at least."""
    training = config.training
    wanted = max(2 * at_once, int(training.batch_size * LONGEST_STEP / seconds))
    if wanted >= training.batch_size:
        return config
    accumulation = training.accumulation_steps and max(1, training.accumulation_steps * wanted // training.batch_size)
    return replace(config, training=replace(training, batch_size=wanted, accumulation_steps=accumulation))


def _evaluation_seconds(trainer: Trainer, config: RunConfig, run: RunWork, flops_per_second: float) -> float:
    """Seconds of all evaluations, from one over every so many-th window, after a first batch that does not count."""
    task, accelerator, size = trainer.task, trainer.accelerator, config.training.eval_batch_size
    whole = task.data.validation_targets
    expected = FORWARD * whole * task.flops_per_token / flops_per_second
    every = max(stride(task.data, config.training.eval_tokens), round(expected / EVALUATION_SECONDS))
    with evaluating(task.model):
        mean_loss(accelerator, task.model, islice(task.data.validation_batches(size, 0, 1, every), 1))
    loss = 0.0

    def measure() -> None:
        nonlocal loss
        loss = validation_loss(accelerator, task, size, every=every)

    def show() -> None:
        task.metrics(loss)
        task.sample(config.seed)

    seconds = _seconds(measure) * every * run.evaluated / whole
    first = _seconds(show)  # Which may build a kernel, once.
    return seconds + run.evaluations * min(first, _seconds(show) if first < EVALUATION_SECONDS else first)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
