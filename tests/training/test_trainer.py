"""The trainer without its loop: what each of several processes does in a step, and what a run goes on from."""

import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from helpers import with_training
from torch import Tensor, nn
from torch.amp import GradScaler

from data.batches.windows import TextData
from gpt.config import GPTConfig
from gpt.task import GPTTask
from training import loop
from training.config.command_line import config_to_yaml
from training.evaluation import Interrupted, validation_loss
from training.optimizer import MuonAdamW
from training.reporting import Reporter
from training.runtime.device import Runtime
from training.runtime.errors import InputError, SaveError, StoppedBySignal
from training.runtime.signals import StopSignals
from training.step import DeviceStep, Launched
from training.storage.checkpoint import Checkpoint, CheckpointError, CheckpointStore
from training.storage.run_folder import RunFolder
from training.task import Batch, loss_sum


class Rank:
    """What the loop asks of Accelerate, as one of several processes that all have as much to add up."""

    device, is_main_process = torch.device("cpu"), True

    def __init__(self, process_index: int = 0, num_processes: int = 1, *, loss_scale: float | None = None) -> None:
        self.process_index, self.num_processes = process_index, num_processes
        self.scaler = None if loss_scale is None else GradScaler("cpu", init_scale=loss_scale, growth_interval=4)
        self._alone, self.alone, self.overflows = False, list[bool](), False

    def prepare(self, model: nn.Module) -> nn.Module:
        return model

    @contextmanager
    def no_sync(self, model: nn.Module) -> Iterator[None]:
        self._alone = True
        yield
        self._alone = False

    def autocast(self) -> "nullcontext[None]":
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.alone.append(self._alone)
        loss = loss if self.scaler is None else self.scaler.scale(loss)
        (loss * math.inf if self.overflows else loss).backward()

    def reduce(self, tensor: Tensor, how: str) -> Tensor:
        assert how == "sum"
        return tensor * self.num_processes


def trainer_of(config: GPTConfig, rank: Rank, folder: Path) -> loop.Trainer:
    run = RunFolder(folder)
    run.create(config_to_yaml(config))
    setup = Runtime(cast(Accelerator, rank), config.training.precision, "", [], None)
    trainer = loop.Trainer(setup, GPTTask(config), config, run)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trainer.task.model.parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
    return trainer


QUIET = cast(Any, SimpleNamespace(say=lambda text: None, progress=SimpleNamespace(advance=lambda: None)))


def launch(trainer: loop.Trainer, number: int, *, stop: bool = False) -> Launched:
    return trainer.device_step.launch(number, trainer.batches().make(number), stop=stop)


def step(trainer: loop.Trainer, number: int) -> dict[str, float]:
    """The metrics of one step."""
    trainer.counters.step, trainer._clock = number - 1, time.perf_counter()
    said: list[dict[str, float]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_report_step", lambda metrics, reporter: said.append(metrics))
        trainer._settle(launch(trainer, number), QUIET)
    return said[0]


@pytest.mark.parametrize(("batch_size", "accumulation_steps", "num_processes"), [(8, 1, 2), (8, 3, 2), (7, 2, 3)])
def test_the_shares_of_all_ranks_are_the_batch(
    config: GPTConfig, tmp_path: Path, batch_size: int, accumulation_steps: int, num_processes: int
) -> None:
    config = with_training(config, batch_size=batch_size, accumulation_steps=accumulation_steps)
    shares = []
    for index in range(num_processes):
        own = trainer_of(config, Rank(index, num_processes), tmp_path).batches().shares(3)
        assert len(own) == accumulation_steps
        shares += own
    samples = sorted(sample for first, count in shares for sample in range(first, first + count))
    assert samples == list(range(2 * batch_size, 3 * batch_size))
    counts = {count for _, count in shares}
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("accumulation_steps", "num_processes", "micro_batch"),
    [(1, 2, 0), (2, 2, 0), (3, 1, 0), (1, 2, 3), (3, 1, 2)],
)
def test_the_mean_of_the_ranks_gradients_is_the_gradient_of_the_whole_batch(
    config: GPTConfig, tmp_path: Path, accumulation_steps: int, num_processes: int, micro_batch: int
) -> None:
    config = with_training(config, precision="fp64")

    def gradients(rank: Rank, parts: int, micro_batch: int = 0) -> list[Tensor]:
        trainer = trainer_of(with_training(config, accumulation_steps=parts), rank, tmp_path)
        trainer.saver.setup["micro_batch"] = micro_batch
        batches = trainer.batches().make(2)
        assert int(trainer.device_step.backward(batches)[1]) == 8 * 16
        assert rank.alone == [True] * (len(batches.shares) - 1) + [False], "the last part's alone add up those of all"
        return [parameter.grad for parameter in trainer.task.model.parameters() if parameter.grad is not None]

    whole = gradients(Rank(), 1)
    each = [gradients(Rank(index, num_processes), accumulation_steps, micro_batch) for index in range(num_processes)]
    assert len(whole) > 10
    for expected, *own in zip(whole, *each, strict=True):
        torch.testing.assert_close(torch.stack(own).mean(0), expected, rtol=0, atol=1e-12)


def test_an_evaluation_is_without_dropout_and_training_goes_on_with_it(config: GPTConfig, tmp_path: Path) -> None:
    rank = cast(Accelerator, Rank())
    task = trainer_of(config, Rank(), tmp_path).task
    assert validation_loss(rank, task, 8) == validation_loss(rank, task, 8)
    assert task.model.training
    with pytest.raises(Interrupted):
        validation_loss(rank, task, 8, lambda: True)
    assert task.model.training


def test_the_validation_loss_of_two_ranks_is_that_of_one(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = trainer_of(config, Rank(), tmp_path).task
    sums: list[Tensor] = []

    def loss(index: int, num_processes: int) -> float:
        return validation_loss(cast(Accelerator, Rank(index, num_processes)), task, 3)

    monkeypatch.setattr(Rank, "reduce", lambda rank, tensor, how: sums.append(tensor) or tensor)
    parts = [loss(index, 2) for index in range(2)]
    total = torch.stack(sums).sum(0)
    monkeypatch.setattr(Rank, "reduce", lambda rank, tensor, how: total)
    assert loss(0, 2) == loss(1, 2) == pytest.approx(loss(0, 1), rel=1e-6)
    assert loss(0, 1) not in parts


def test_all_ranks_stop_where_one_was_asked_to(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(config, Rank(0, 2), tmp_path)
    assert launch(trainer, 1).outcome().stop is False
    asked = torch.tensor([0.0, 1.0, 0.0])  # Beside the loss, by the other rank.
    monkeypatch.setattr(Rank, "reduce", lambda rank, tensor, how: 2 * tensor + (asked if tensor.ndim else 0))
    assert launch(trainer, 2).outcome().stop is True


def test_several_ranks_stop_two_steps_after_a_signal_at_most(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes in the middle of step 4, too late for the numbers that this one sums up."""
    trainer = trainer_of(with_training(config, eval_interval=0, checkpoint_interval=0), Rank(0, 2), tmp_path)
    signals, original = SimpleNamespace(received=None), DeviceStep.launch

    def signalling(device_step: DeviceStep, number: int, *arguments: Any, **options: Any) -> Launched:
        signals.received = number >= 4 or None
        return original(device_step, number, *arguments, **options)

    def finish(signals: Any, reporter: Any, *, stopping: bool) -> None:
        if stopping:
            raise StoppedBySignal

    monkeypatch.setattr(DeviceStep, "launch", signalling)
    monkeypatch.setattr(trainer, "_finish_step", finish)
    monkeypatch.setattr(trainer, "_report_step", lambda metrics, reporter: None)
    with trainer.batches() as batches, pytest.raises(StoppedBySignal):
        trainer._train(batches, cast(StopSignals, signals), QUIET)
    assert trainer.counters.step == 6


def test_counters_count_what_all_ranks_did_over_all_resumes(config: GPTConfig, tmp_path: Path) -> None:
    trainer = trainer_of(config, Rank(1, 2), tmp_path)
    trainer.counters = loop.Counters(step=4, samples=32, tokens=7, seconds=50.0)
    metrics = step(trainer, 5)
    assert (trainer.counters.step, trainer.counters.samples, trainer.counters.tokens) == (5, 40, 7 + 8 * 16)
    assert 50.0 < trainer.counters.seconds == metrics["seconds"]
    assert metrics["epoch"] == 40 / trainer.task.data.samples_per_epoch


def test_weights_optimizer_and_average_go_on_from_a_checkpoint(config: GPTConfig, tmp_path: Path) -> None:
    config = with_training(config, ema_decay=0.9)
    first, second = (trainer_of(config, Rank(), tmp_path) for _ in range(2))
    for number in (1, 2):
        step(first, number)
    first.saver.write(first.counters)
    second.restore(Checkpoint(tmp_path / "checkpoints/last"))
    for trainer in (first, second):
        step(trainer, 3)
    assert first.saver.tensors().keys() == {"model", "optimizer", "ema"}
    for name, tensors in first.saver.tensors().items():
        own = second.saver.tensors()[name]
        assert all(torch.equal(tensors[key], own[key]) for key in tensors | own)


@pytest.mark.parametrize("follows_samples", [True, False])
def test_dropout_belongs_to_seed_step_and_place_or_rank(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, follows_samples: bool
) -> None:
    """Of the same samples, so that masks alone differ: those of seeds by sample, and those of torch's generator."""
    (inputs_BT,), targets_BT = GPTTask(config).data.training_batch(0, 8)
    monkeypatch.setattr(
        TextData, "training_batch", lambda data, first, count: Batch((inputs_BT[:count],), targets_BT[:count])
    )

    def loss(seed: int = 1, number: int = 1, index: int = 0) -> float:
        torch.rand(7)
        trainer = trainer_of(replace(config, seed=seed), Rank(index, 2), tmp_path)
        if not follows_samples:
            trainer.device_step._set_sample_seeds = None
        return step(trainer, number)["train_loss"]

    assert loss() == loss()
    others = [loss(), loss(seed=2), loss(number=2), loss(index=1)]
    assert len(set(others)) == len(others)


@pytest.mark.parametrize("overflows", [False, True])
def test_the_average_takes_in_each_step_by_its_number_unless_it_was_left_out(
    config: GPTConfig, tmp_path: Path, overflows: bool
) -> None:
    rank = Rank(loss_scale=8.0)
    rank.overflows = overflows
    trainer = trainer_of(with_training(config, ema_decay=0.9), rank, tmp_path)
    average = trainer._evaluator._average
    assert average is not None
    name, weight = next(iter(trainer.task.model.named_parameters()))
    before = average.tensors[name].clone()
    step(trainer, 3)
    kept = 1.0 if overflows else (1 + 3) / (10 + 3)
    expected = kept * before + (1 - kept) * weight.detach()
    torch.testing.assert_close(average.tensors[name], expected)
    assert trainer.counters.skipped_steps == overflows


def test_the_speed_after_a_resume_is_that_of_the_steps_since(config: GPTConfig, tmp_path: Path) -> None:
    trainer = trainer_of(config, Rank(), tmp_path)
    trainer.counters = loop.Counters(step=12, tokens=10**9, seconds=1.0)
    trainer.fit([])
    trainer.counters.tokens += 600
    trainer.counters.seconds += 2.0
    assert trainer._speed.measures(trainer.counters)["tokens_per_second"] == pytest.approx(300.0)


def test_a_save_that_fails_after_a_resume_leaves_the_best_where_it_was(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(store: CheckpointStore, at: int, **arguments: Any) -> Path:
        raise CheckpointError("No space left on device")

    config = with_training(config, on_save_error="continue")
    trainer = trainer_of(config, Rank(), tmp_path)
    trainer.counters = loop.Counters(step=5, best_val_loss=2.0, best_step=5, val_loss=2.0, val_step=5)
    trainer.saver.write(trainer.counters, best=True)
    resumed = trainer_of(config, Rank(), tmp_path)
    resumed.restore(Checkpoint(tmp_path / "checkpoints/last"))
    resumed.counters.step = 8
    resumed.counters.judge(1.0)
    assert resumed.counters.verdict(patience=0) == "the best so far"
    monkeypatch.setattr(CheckpointStore, "save", full)
    said: list[str] = []
    resumed.saver.save(resumed.counters, cast(Reporter, SimpleNamespace(say=said.append)), best=True)
    assert "the run goes on, the newest checkpoint is of step 5" in said[0]
    assert (resumed.counters.best_val_loss, resumed.counters.best_step) == (2.0, 5)


def test_the_last_save_of_a_run_must_succeed(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(store: CheckpointStore, at: int, **arguments: Any) -> Path:
        raise CheckpointError("No space left on device")

    monkeypatch.setattr(CheckpointStore, "save", full)
    trainer = trainer_of(with_training(config, on_save_error="continue"), Rank(), tmp_path)
    trainer.counters.step = 12
    with pytest.raises(SaveError, match="No space left on device; there is no checkpoint yet"):
        trainer._finish_step(cast(StopSignals, None), cast(Reporter, None), stopping=False)


@pytest.mark.parametrize(("max_grad_norm", "most"), [(0.0, math.inf), (0.1, 0.1)])
def test_gradients_are_clipped_where_that_is_asked_for(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_grad_norm: float, most: float
) -> None:
    norms: list[float] = []
    monkeypatch.setattr("training.loss.loss_sum", lambda *arguments: 100 * loss_sum(*arguments))
    monkeypatch.setattr(
        MuonAdamW,
        "step",
        lambda optimizer: norms.append(
            float(nn.utils.get_total_norm([p.grad for group in optimizer.param_groups for p in group["params"]]))
        ),
    )
    told = step(trainer_of(with_training(config, max_grad_norm=max_grad_norm), Rank(loss_scale=64.0), tmp_path), 1)
    assert told["grad_norm"] > 10
    assert norms == [pytest.approx(min(most, told["grad_norm"]), rel=1e-5)]


def test_all_ranks_clip_by_one_norm(config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cards of different kinds may add it up to other last bits."""

    class BesideAnother(Rank):
        def reduce(self, tensor: Tensor, how: str) -> Tensor:
            others = tensor * torch.tensor([1.0, 1.0, 3.0]) if tensor.shape == (3,) else tensor
            return tensor + others

    norms: list[float] = []

    def note(gradients: Any, most: float, norm: Tensor) -> None:
        norms.append(float(norm))

    monkeypatch.setattr(nn.utils, "clip_grads_with_norm_", note)
    told = [step(trainer_of(config, rank(0, 2), tmp_path), 1)["grad_norm"] for rank in (Rank, BesideAnother)]
    assert norms == pytest.approx(told)
    assert told[1] == pytest.approx(2 * told[0])


@pytest.mark.parametrize("changed", ["training.batch_size", "optimizer.name", "data_sha256", "seed", "model.d_ff"])
def test_a_run_goes_on_as_the_same_run_only(config: GPTConfig, tmp_path: Path, changed: str) -> None:
    saving = trainer_of(config, Rank(), tmp_path)
    saving.saver.write(saving.counters)
    other = {
        "training.batch_size": lambda: with_training(config, batch_size=9),
        "optimizer.name": lambda: replace(config, optimizer=replace(config.optimizer, name="adamw")),
        "data_sha256": lambda: Path(config.data.source).write_text("another text\n" * 100) and config,
        "seed": lambda: replace(config, seed=2),
        "model.d_ff": lambda: replace(config, model=replace(config.model, d_ff=48)),
    }[changed]()
    trainer = trainer_of(other, Rank(), tmp_path)
    with pytest.raises(InputError, match=rf"cannot go on with .*: {re.escape(changed)} was "):
        trainer.restore(Checkpoint(tmp_path / "checkpoints/last"))


def test_a_run_of_older_code_says_why_it_cannot_go_on(config: GPTConfig, tmp_path: Path) -> None:
    saving = trainer_of(config, Rank(), tmp_path)
    identity = saving.saver._identity
    assert identity.pop("data_order") == saving.task.data.order == 2
    saving.saver.write(saving.counters)
    with pytest.raises(InputError) as caught:
        trainer_of(config, Rank(), tmp_path).restore(Checkpoint(tmp_path / "checkpoints/last"))
    assert str(caught.value) == (
        f"cannot go on with {tmp_path}/checkpoints/step-00000000: its samples come in an order (version 1) that this "
        f"version of the code does not make any more (it makes 2). The run can be sampled from and evaluated as ever: "
        f"start another one in another --output_dir"
    )


def test_a_run_does_not_go_on_with_another_vocabulary(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(config, Rank(), tmp_path)
    vocabulary = trainer.task.checkpoint_files()["tokenizer.json"]
    with monkeypatch.context() as patch:
        patch.setattr(GPTTask, "checkpoint_files", lambda task: {"tokenizer.json": vocabulary.replace("0", "ä")})
        trainer.saver.write(trainer.counters)
    with pytest.raises(InputError, match=r"tokenizer\.json is not the one of the run's data: its symbols differ"):
        trainer.restore(Checkpoint(tmp_path / "checkpoints/last"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_losses_are_computed_in_fp32_at_least(dtype: torch.dtype) -> None:
    logits_BTV = 8 * torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    targets_BT = torch.randint(7, (2, 5), generator=torch.Generator().manual_seed(2))
    loss = loss_sum(cast(nn.Module, lambda inputs: inputs), Batch((logits_BTV,), targets_BT))
    expected = -logits_BTV.double().log_softmax(-1).gather(-1, targets_BT[..., None]).sum()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
