"""A step on the device: it asks nothing, holds back what is not finite, and is the same however it is split."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from helpers import read_metrics, with_training
from torch.amp import GradScaler
from torch.utils._python_dispatch import TorchDispatchMode

from gpt.config import GPTConfig
from gpt.task import GPTTask, train_gpt
from training import loop, micro_batch
from training.config.command_line import config_to_yaml
from training.nonfinite import Guard
from training.runtime.device import Runtime
from training.storage.checkpoint import Checkpoint
from training.storage.run_folder import RunFolder


class Questions(TorchDispatchMode):
    """Counts how often a number is asked of the device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("loss_scale", [None, 8.0])
def test_a_launch_asks_the_device_nothing(
    config: GPTConfig, tmp_path: Path, optimizer: Any, loss_scale: float | None
) -> None:
    config = with_training(config, ema_decay=0.9, accumulation_steps=2)
    config = replace(config, optimizer=replace(config.optimizer, name=optimizer))
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = None if loss_scale is None else GradScaler("cpu", init_scale=loss_scale)
    run = RunFolder(tmp_path / "run")
    run.create(config_to_yaml(config))
    trainer = loop.Trainer(Runtime(accelerator, "fp32", "", [], None), GPTTask(config), config, run)
    with Questions() as made:
        of_step_1 = trainer.batches().make(1)
    assert made.count > 0, "what it computes of its batch is known before"
    with Questions() as launched:
        first = trainer.device_step.launch(1, of_step_1, stop=False)
        second = trainer.device_step.launch(2, trainer.batches().make(2), stop=True)
    assert launched.count == made.count, "no more than the batch of step 2"
    outcomes = first.outcome(), second.outcome()
    assert [(outcome.usable, outcome.stop, outcome.num_targets) for outcome in outcomes] == [
        (True, False, 8 * 16),
        (True, True, 8 * 16),
    ]
    assert all(math.isfinite(outcome.loss) and outcome.grad_norm > 0 for outcome in outcomes)


@pytest.mark.parametrize(
    ("scale", "loss", "norm", "unchanged", "closed"),
    [
        (None, 1.0, 1.0, 0, 0),
        (None, math.nan, 1.0, 1, 1),
        (None, 1.0, math.inf, 1, 1),
        (1.0, 1.0, math.inf, 1, 1),
        (2.0, 1.0, math.inf, 1, 0),  # a lower loss scale may help
        (65536.0, 1.0, math.nan, 1, 0),
        (65536.0, math.inf, 1.0, 1, 1),  # the loss itself is not scaled
    ],
)
def test_a_step_that_is_not_finite_holds_back_those_behind_it(
    scale: float | None, loss: float, norm: float, unchanged: int, closed: int
) -> None:
    scaler = None if scale is None else GradScaler("cpu", init_scale=scale)
    if scaler is not None:
        scaler.scale(torch.ones(()))
    guard = Guard(scaler, torch.device("cpu"))
    assert guard.judge(torch.tensor(loss), torch.tensor(norm)).tolist() == unchanged
    assert guard.closed.tolist() == closed
    assert guard.judge(torch.tensor(1.0), torch.tensor(1.0)).tolist() == closed
    guard.skip()
    assert guard.judge(torch.tensor(1.0), torch.tensor(1.0)).tolist() == guard.closed.tolist() == 0
    assert scaler is None or scaler.get_scale() == scale / 2


def numbers(run: Path) -> list[list[float]]:
    return [[line[name] for name in ("train_loss", "grad_norm")] for line in read_metrics(run)]


@pytest.mark.parametrize(("dropout", "optimizer"), [(0.2, "adamw"), (0.0, "muon")])
def test_micro_batches_change_no_step(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropout: float, optimizer: Any
) -> None:
    config = with_training(config, precision="fp64", max_steps=6, eval_interval=0)
    config = replace(
        config, model=replace(config.model, dropout=dropout), optimizer=replace(config.optimizer, name=optimizer)
    )
    ways: dict[str, dict[str, Any]] = {
        "whole": {},
        "single": {"micro_batch_size": 1},
        "uneven": {"micro_batch_size": 3, "accumulation_steps": 3},
        "accumulated": {"accumulation_steps": 2},
        "cut for the cache": {"tokens": 48},
    }
    for name, way in ways.items():
        monkeypatch.setattr(micro_batch, "MICRO_BATCH_TOKENS", way.pop("tokens", 128))
        train_gpt(with_training(config, **way), output_dir=tmp_path / name)
        torch.testing.assert_close(numbers(tmp_path / name), numbers(tmp_path / "whole"), rtol=0, atol=1e-8)


def test_a_resume_splits_a_step_as_the_run_did(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(micro_batch, "MICRO_BATCH_TOKENS", 48)
    train_gpt(config, output_dir=tmp_path / "run")
    whole = Checkpoint(tmp_path / "run/checkpoints/last")
    assert whole.state["setup"]["micro_batch"] == 3
    tensors = whole.tensors("model")
    shutil.rmtree(whole.folder)
    monkeypatch.setattr(micro_batch, "MICRO_BATCH_TOKENS", 2048)
    train_gpt(config, output_dir=tmp_path / "run", resume=True)
    assert "micro_batch" not in capsys.readouterr().out
    resumed = Checkpoint(tmp_path / "run/checkpoints/last")
    assert resumed.state["setup"]["micro_batch"] == 3
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in resumed.tensors("model").items())
