"""Measures a training by training: the loop runs as in any run, and its reports say when steps were done.

A benchmark keeps nothing: its run folder is a temporary one, and it ends by a stop request without the checkpoint.
"""

import gc
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from training.benchmark.memory import MemoryPeak
from training.benchmark.profile import StepProfiler
from training.benchmark.speed import products_per_second
from training.config.sections import RunConfig
from training.loop import Trainer
from training.micro_batch import sequences_at_once
from training.planning.memory import expected_bytes
from training.runtime.device import make_runtime
from training.runtime.errors import NonFiniteError, StoppedBySignal
from training.runtime.hardware import peak_flops
from training.runtime.machine import describe_machine
from training.schedule import count_steps
from training.storage.run_folder import RunFolder
from training.task import Task, batches_vary, padded_length
from training.tracking import Tracker

INTERVAL = 4
"""Steps between two reports: rounds are whole numbers of them, and so many are profiled."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to measure, in steps, each rounded up to a multiple of `INTERVAL`.

    Attributes:
        warm_up: Steps that do not count.
        steps: Those of a round.
        rounds: How many rounds; the median of their speeds is shown.
    """

    warm_up: int = 20
    steps: int = 20
    rounds: int = 5

    @property
    def reports(self) -> list[int]:
        """The numbers of the reports at which the warm-up and each round have ended."""
        warm_up, steps = (max(1, -(-number // INTERVAL)) for number in (self.warm_up, self.steps))
        return [warm_up + steps * number for number in range(self.rounds + 1)]

    @property
    def num_steps(self) -> int:
        """All steps, with those that are profiled and those until the stop request is heard."""
        return INTERVAL * (self.reports[-1] + 4)


@dataclass(kw_only=True)
class Rounds:
    """A tracker that takes the time of rounds, has the steps after them profiled, and then asks the run to stop."""

    plan: Plan
    profiler: StepProfiler | None
    memory: MemoryPeak = field(init=False)
    description: str = "benchmark"
    marks: list[tuple[float, float]] = field(default_factory=list)  # Seconds and tokens as a round began or ended.
    peak_bytes: int | None = None
    reserved_bytes: int | None = None
    last: dict[str, float] = field(default_factory=dict)
    compile_seconds: float | None = None
    _reports: int = 0

    @property
    def is_done(self) -> bool:
        """Whether all was measured."""
        return len(self.marks) > self.plan.rounds and (self.profiler is None or self.profiler.is_done)

    def log(self, metrics: Mapping[str, float], sample: str | None) -> None:
        """A step was reported."""
        now = time.perf_counter()
        self._reports += 1
        self.compile_seconds = metrics.get("compile_seconds", self.compile_seconds)
        if self.is_done:  # A stop request takes a step or two.
            return
        if self._reports in self.plan.reports:
            self.marks.append((now, metrics["tokens"]))
        if self._reports == self.plan.reports[0]:
            self.memory.forget()
        if len(self.marks) <= self.plan.rounds:
            return
        self.last = dict(metrics)
        if self._reports == self.plan.reports[-1]:
            self.peak_bytes, self.reserved_bytes = self.memory.bytes(), self.memory.reserved()
        if self.profiler is not None:
            self.profiler.advance()
        if self.is_done:
            request_stop()

    def finish(self) -> None:
        """Nothing is left to do."""

    def rates(self) -> list[float]:
        """Tokens per second of each round."""
        pairs = zip(self.marks, self.marks[1:], strict=False)
        return [(tokens - before) / (now - start) for (start, before), (now, tokens) in pairs]


@dataclass(kw_only=True)
class UntilLoss:
    """A tracker that asks the run to stop at a validation loss."""

    loss: float
    description: str = "benchmark"
    curve: list[dict[str, float]] = field(default_factory=list)
    ended_at: float = 0.0

    @property
    def is_reached(self) -> bool:
        """Whether the last evaluation was the one."""
        return bool(self.curve) and self.curve[-1]["val_loss"] <= self.loss

    def log(self, metrics: Mapping[str, float], sample: str | None) -> None:
        """A step was reported."""
        if "val_loss" not in metrics or self.is_reached:
            return
        self.ended_at = time.perf_counter()
        self.curve.append({name: metrics[name] for name in ("step", "epoch", "seconds", "train_loss", "val_loss")})
        if self.is_reached:
            request_stop()

    def finish(self) -> None:
        """Nothing is left to do."""


def request_stop() -> None:
    """Ask the run in this process to end, as a closed terminal does: of the signals the one that it says nothing to."""
    signal.raise_signal(signal.SIGHUP)


def measure(
    make_task: Callable[[], Task], config: RunConfig, plan: Plan, *, profiler: StepProfiler | None
) -> dict[str, Any]:
    """Train for as long as the plan says.

    Args:
        make_task: Builds model and data.
        config: The configuration; its length counts only where `auto` asks for it.
        plan: How long to measure.
        profiler: What looks at the steps after the rounds, if they are to be looked at.

    Returns:
        What was measured, under names; nothing but in the main process.

    Raises:
        InputError: Configuration or data do not serve.
        NonFiniteError: The training diverged.
        KeyboardInterrupt: A signal came before all was measured.
    """
    rounds = Rounds(plan=plan, profiler=profiler)
    training = replace(config.training, eval_interval=0, patience=0, checkpoint_interval=0, log_interval=INTERVAL)
    with temporary_trainer(make_task, replace(config, training=training), plan.num_steps) as trainer:
        rounds.memory = MemoryPeak(trainer.accelerator.device, trainer.saver.checkpoint_bytes)
        before = products_per_second(trainer.accelerator.device, trainer.saver.setup["precision"])
        fit(trainer, rounds)
        if not trainer.accelerator.is_main_process:
            return {}
        if not rounds.is_done:
            raise KeyboardInterrupt
        return _figures(trainer, rounds, before)


def measure_until(make_task: Callable[[], Task], config: RunConfig, loss: float) -> dict[str, Any]:
    """Train as configured, but to a validation loss and no further.

    Returns:
        `reached`, the `curve` of the evaluations, whose last one is where the training ended, and `wall_seconds` until
        then, evaluations and compiling included; nothing but in the main process.

    Raises:
        As `measure`.
    """
    until = UntilLoss(loss=loss)
    with temporary_trainer(make_task, config, 0) as trainer:
        start = time.perf_counter()
        stopped = fit(trainer, until)
        if not trainer.accelerator.is_main_process:
            return {}
        if stopped and not until.is_reached:
            raise KeyboardInterrupt
    seconds = until.ended_at - start
    return {"loss": loss, "reached": until.is_reached, "curve": until.curve, "wall_seconds": seconds}


@contextmanager
def temporary_trainer(
    make_task: Callable[[], Task], config: RunConfig, num_steps: int, beside: Path | None = None
) -> Iterator[Trainer]:
    """What trains a configuration, for so many steps at least, and leaves nothing behind.

    It takes no samples and writes no checkpoints, unless `as_in_a_run` is called; `beside` is a folder whose disk it
    would write them to.
    """
    asked = config.training
    runtime = make_runtime(asked)
    task = make_task()
    task.sample, task.metrics = _no_sample, _no_metrics  # type: ignore[method-assign]
    length = max(num_steps, count_steps(config, task))
    training = replace(asked, max_steps=length, epochs=None, max_tokens=None)
    with tempfile.TemporaryDirectory(prefix=".benchmark-", dir=beside) as folder:
        run = RunFolder(Path(folder))
        run.create("")
        trainer = Trainer(runtime, task, replace(config, training=training), run)
        trainer.saver.save = _save_nothing  # type: ignore[method-assign]
        try:
            trainer.choose_micro_batch()
            yield trainer
        finally:
            trainer.shutdown()
    del trainer, task
    gc.collect()
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def as_in_a_run(trainer: Trainer) -> None:
    """Let a trainer of `temporary_trainer` take samples and write checkpoints."""
    for changed, name in ((trainer.task, "sample"), (trainer.task, "metrics"), (trainer.saver, "save")):
        del vars(changed)[name]


def _no_sample(seed: int) -> str:
    """In the place of `Task.sample`, whose time is nobody's to measure."""
    return ""


def _no_metrics(val_loss: float | None) -> dict[str, float]:
    """In the place of `Task.metrics`."""
    return {}


def _save_nothing(*state: object, **options: object) -> None:
    """In the place of `Saver.save`."""


def fit(trainer: Trainer, tracker: Tracker) -> bool:
    """Train, and tell whether that ended by a stop request."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # Under nohup; a run would not hear our own then.
    if ignored:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        trainer.fit([tracker])
    except StoppedBySignal:
        return True
    except NonFiniteError as error:
        raise NonFiniteError(f"{str(error).partition(';')[0]}: there is nothing to measure") from error
    finally:
        if ignored:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return False


def _figures(trainer: Trainer, rounds: Rounds, products_before: float) -> dict[str, Any]:
    """All that is to be told of a training whose rounds are over."""
    accelerator, task, training = trainer.accelerator, trainer.task, trainer.config.training
    device, processes, setup = accelerator.device, accelerator.num_processes, trainer.saver.setup
    precision: str = setup["precision"]
    tokens = training.batch_size * task.data.tokens_per_sample
    products = (products_before + products_per_second(device, precision)) / 2
    printed = peak_flops(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None
    length = padded_length(task.data, training.batch_size)
    at_once = length * sequences_at_once(training, processes, setup["micro_batch"])
    asked = task.model, trainer.config, precision, at_once
    figures = describe_machine(device) | {
        "processes": processes,
        "precision": precision,
        "parameters": sum(parameter.numel() for parameter in task.model.parameters()),
        "batch_size": training.batch_size,
        "micro_batch": setup["micro_batch"],
        "compile": setup["compile"],
        "tokens_per_step": tokens,
        "flops_per_token": task.flops_per_token,
        "rounds": rounds.rates(),
        "loss": rounds.last["train_loss"],
        "products_per_second": processes * products,
        "printed_peak_flops": processes * printed if printed else None,
        "compile_seconds": rounds.compile_seconds,
        "peak_bytes": rounds.peak_bytes,
        "reserved_bytes": rounds.reserved_bytes,
        "expected_bytes": expected_bytes(*asked, length=length, varying=batches_vary(task.data)),
    }
    if rounds.profiler is not None:
        figures |= {"parts": rounds.profiler.parts, "expensive": rounds.profiler.expensive}
    return figures
