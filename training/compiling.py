"""What torch.compile makes of a training step, where that pays."""

import shutil
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from training.config.sections import TrainingConfig
from training.loss import LossModel, chunk_gradients, chunked_loss_sum
from training.recompute import blocks_of, recomputed, use_in_training
from training.reporting import Reporter
from training.runtime.errors import InputError
from training.sharding import is_sharded
from training.task import Batch

Mode = Literal["off", "blocks", "model"]
MODES: tuple[Mode, ...] = ("off", "blocks", "model")
BACKEND = "inductor"
Part = tuple[Batch, Tensor]
"""Of a step's batch, with the seeds of its samples."""

# Floating point operations of a process in a whole run from which on compiling pays, by device. On a CPU it does not:
# the kernels of layers/native, which compiled code cannot call, take two thirds of its time (docs/results/README.md).
WORTH = {"cuda": 2e15}
STEPS_TO_COMPILE_FOR = 4
"""The first ones of a run, whose batches show which sizes there are."""


class Choice(NamedTuple):
    """How a run's steps are compiled, and why, in a few words."""

    mode: Mode
    reason: str


class Compiling:
    """Chooses how a run's steps are compiled, and does it by a pass that is thrown away.

    Args:
        loss_model: What a step calls.
        training: The configuration.
        accelerator: The processes and their devices, of one type.
        work: Floating point operations of all processes in the whole run.
    """

    def __init__(self, loss_model: LossModel, training: TrainingConfig, accelerator: Accelerator, work: float) -> None:
        self._loss_model, self._training, self._accelerator = loss_model, training, accelerator
        self._seconds: float | None = None
        self._in_shards = is_sharded(loss_model)
        if self._in_shards and training.compile == "model":
            raise InputError(
                "training.compile model is one graph, and with FSDP2 weights are gathered between blocks: use blocks"
            )
        self._choice = self._possible(choose_mode(training, accelerator.device, work, accelerator.num_processes))

    @property
    def mode(self) -> Mode:
        """How steps are compiled, alike in all processes."""
        return self._choice.mode

    @property
    def description(self) -> str:
        """Mode and reason, for the start of a run."""
        return f"{self.mode} ({self._choice.reason})"

    def go_on(self, before: str) -> None:
        """Let `auto` take what the run has done until now: any other way rounds in another way."""
        mode: Mode = next((mode for mode in MODES if mode == before), "off")
        if self._training.compile == "auto":
            self._choice = self._possible(Choice(mode, "as the run began"))

    def compile(self, parts: Sequence[Part], one_pass: Callable[[Batch, Tensor], None], reporter: Reporter) -> None:
        """Compile, and say so; where that fails, the run goes on without.

        Args:
            parts: The first batches of the run with their seeds, whatever the step that it goes on from: code that is
                written for some sizes may depend on those that came first.
            one_pass: Computes gradients that no step takes, without a word to other processes.
            reporter: To say it with.
        """
        by_size = {_sizes(part[0]): part for part in reversed(parts)}
        # In shards all ranks take part in each pass, and have equally many parts, but not sizes.
        passes = parts if self._in_shards else list(reversed(by_size.values()))
        undo = compile_step(self._loss_model, self.mode, self._training.recompute, any_size=len(by_size) > 1)
        reporter.progress.doing("compiling …")
        start = time.perf_counter()
        self._choice = self._agreed(_fault_in(one_pass, passes), self._choice)
        if self.mode == "off":
            if self._in_shards:  # The passes that were cut short have left them in no order.
                raise InputError(f"{self.description}: with FSDP2 set --training.compile off")
            undo()
            reporter.say(f"compile     {self.description}")
        else:
            self._seconds = time.perf_counter() - start
            reporter.say(f"compiled    {self.mode} in {self._seconds:.0f} s")

    def take_measures(self) -> dict[str, float]:
        """`compile_seconds`, once: for the first line of metrics after it."""
        seconds, self._seconds = self._seconds, None
        return {} if seconds is None else {"compile_seconds": seconds}

    def _possible(self, choice: Choice) -> Choice:
        if self._in_shards and choice.mode == "model":
            choice = Choice("blocks", "weights in shards are gathered block by block")
        return choice if choice.mode == "off" else self._agreed(obstacle(self._accelerator.device), choice)

    def _agreed(self, fault: str | None, choice: Choice) -> Choice:
        """The choice where no process has found a fault."""
        faults = gather_object([fault]) if self._accelerator.num_processes > 1 else [fault]
        found = next((text for text in faults if text is not None), None)
        return choice if found is None else Choice("off", found)


def choose_mode(training: TrainingConfig, device: torch.device, work: float, num_processes: int) -> Choice:
    """Resolve `training.compile` by device and length of the run, never by a measurement.

    Args:
        training: The configuration.
        device: What this process computes on.
        work: Floating point operations of all processes in the whole run.
        num_processes: How many there are. Of several, each sends gradients while it computes others: those of a model
            that is a single graph would all come at its end.
    """
    if training.compile != "auto":
        return Choice(training.compile, "as configured")
    if device.type not in WORTH:
        why = "a CPU has faster kernels of its own" if device.type == "cpu" else f"not tried on {device.type}"
        return Choice("off", why)
    if work / num_processes < WORTH[device.type]:
        return Choice("off", "the run is too short to pay for it")
    return Choice("model" if num_processes == 1 else "blocks", "pays in a run of this length")


def obstacle(device: torch.device) -> str | None:
    """What torch.compile lacks here, in words; None where nothing is known to be missing."""
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) < (7, 0):
            return f"{torch.cuda.get_device_name(device)} is too old for Triton"
        if not has_triton():
            return "there is no Triton that works here: pip install triton"
        if not any(map(shutil.which, ("cc", "gcc", "clang"))):
            return "there is no C compiler, which Triton needs: install gcc"
    elif not has_cpp_compiler():
        return "there is no C++ compiler: install g++, or name one in CXX"
    if sys.platform == "linux" and not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "there is no Python.h: install python3-dev"
    return None


def has_triton() -> bool:
    """Whether torch finds a Triton for its GPU; True where torch does not say."""
    try:
        from torch.utils._triton import has_triton as found
    except ImportError:
        return True
    return bool(found())


def has_cpp_compiler() -> bool:
    """Whether torch finds a C++ compiler; True where torch does not say."""
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler
    except ImportError:
        return True
    try:
        get_cpp_compiler()
    except RuntimeError:
        return False
    return True


def keep_equal_sizes_apart() -> None:
    """Let sizes that are left open differ later, also where they are equal in the first batch: no second code then."""
    try:
        from torch.fx.experimental import _config
    except ImportError:
        return
    _config.use_duck_shape = False


def compile_step(loss_model: LossModel, mode: Mode, recompute: str, *, any_size: bool) -> Callable[[], None]:
    """Let a model in training call compiled code, which is written when it is first called; evaluation stays as it is.

    Parameters keep their names: methods are replaced, not modules. What an earlier training of this Python has compiled
    is forgotten, so that the code does not depend on it.

    Args:
        loss_model: What a step calls.
        mode: "blocks" or "model".
        recompute: As configured; it is a part of the compiled code.
        any_size: Whether batches differ in size: then one code is for all sizes.

    Returns:
        What undoes it.
    """
    torch.compiler.reset()
    keep_equal_sizes_apart()
    compiled = partial(torch.compile, backend=BACKEND, dynamic=any_size)
    # torch's way to send gradients early cannot cut a graph where a part of it is to be computed twice.
    torch._dynamo.config.optimize_ddp = recompute == "none"
    loss_model.chunk_gradients = torch.compile(chunk_gradients, backend=BACKEND)
    loss_model.chunked_loss_sum = torch.compiler.disable(chunked_loss_sum)  # type: ignore[no-untyped-call]
    if mode == "model":
        undo = [use_in_training(loss_model, "compute", compiled(loss_model.compute))]
    else:
        # One function for all blocks, so that those of a kind share its code.
        run = compiled(recomputed if recompute == "blocks" else _run)
        undo = [use_in_training(block, "forward", partial(run, block)) for block in blocks_of(loss_model.model)]

    def undo_all() -> None:
        loss_model.chunk_gradients, loss_model.chunked_loss_sum = chunk_gradients, chunked_loss_sum
        for each in undo:
            each()

    return undo_all


def _run(module: nn.Module, *arguments: Any, **options: Any) -> Any:
    return type(module).forward(module, *arguments, **options)


def _sizes(batch: Batch) -> tuple[torch.Size, ...]:
    return tuple(tensor.shape for tensor in (*batch.inputs, batch.targets_BT))


def _fault_in(one_pass: Callable[[Batch, Tensor], None], parts: Iterable[Part]) -> str | None:
    """Compute passes; if one cannot be compiled, say why in a line."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        for part in parts:
            one_pass(*part)
    except TorchDynamoException as error:
        cause = getattr(error, "inner_exception", error)
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        return f"torch.compile failed: {lines[0] if lines else type(cause).__name__}"
    return None
