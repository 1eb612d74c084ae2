"""The moving average of the weights, and who uses it."""

import signal
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from helpers import read_metrics, with_training
from torch import nn

from data.batches.windows import TextData
from gpt.config import GPTConfig
from gpt.task import GPTTask, load_gpt, train_gpt
from training.average import WeightAverage
from training.evaluation import validation_loss
from training.runtime.errors import InputError, StoppedBySignal
from training.storage.checkpoint import Checkpoint, CheckpointError
from training.task import Batch


def test_the_average_follows_its_equation() -> None:
    model = nn.Linear(3, 2).double()
    average = WeightAverage(model, 0.5)
    expected = model.weight.detach().clone()
    for step in range(1, 30):
        with torch.no_grad():
            model.weight.normal_()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
        average.update(step, torch.zeros(()))
        torch.testing.assert_close(average.tensors["weight"], expected)
        kept = average.tensors["weight"].clone()
        with torch.no_grad():
            model.weight.normal_()
        average.update(step, torch.ones(()))
        assert torch.equal(average.tensors["weight"], kept)


def test_the_weights_come_back_to_the_last_bit_even_after_an_error() -> None:
    model = nn.Linear(3, 2)
    average = WeightAverage(model, 0.9)
    with torch.no_grad():
        model.weight.normal_()
    before, mean = model.weight.detach().clone(), average.tensors["weight"].clone()

    def fail() -> None:
        with average.in_model():
            assert torch.equal(model.weight, mean)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(model.weight, before)
    assert torch.equal(average.tensors["weight"], mean)


def test_a_run_is_evaluated_by_its_average_and_commands_use_it(config: GPTConfig, tmp_path: Path) -> None:
    train_gpt(config, output_dir=tmp_path / "plain")
    config = with_training(config, ema_decay=0.99, eval_raw_weights=True)
    train_gpt(config, output_dir=tmp_path / "run")
    plain, lines = read_metrics(tmp_path / "plain"), read_metrics(tmp_path / "run")
    assert [line["train_loss"] for line in lines] == [line["train_loss"] for line in plain]
    assert lines[-1]["raw_val_loss"] == plain[-1]["val_loss"], "the average leaves training as it is"
    task = GPTTask(config)
    for weights, key in ((None, "val_loss"), ("ema", "val_loss"), ("raw", "raw_val_loss")):
        loaded = load_gpt(tmp_path / "run/checkpoints/last", weights=weights)
        assert loaded.weights == (weights or "ema")
        task.model.load_state_dict(loaded.model.state_dict())
        loss = validation_loss(Accelerator(cpu=True), task, 64)
        assert loss == pytest.approx(lines[-1][key], abs=1e-6)
    assert lines[-1]["val_loss"] != lines[-1]["raw_val_loss"]
    assert load_gpt(tmp_path / "plain").weights == "raw"
    with pytest.raises(CheckpointError, match=r"step-00000012 has no average of the weights .*: use raw"):
        load_gpt(tmp_path / "plain", weights="ema")


def test_a_stopped_run_keeps_its_average(config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = with_training(config, ema_decay=0.9)
    train_gpt(config, output_dir=tmp_path / "whole")
    original = TextData.training_batch

    def signalling(data: TextData, first: int, count: int) -> Batch:
        if first == 6 * 8:
            signal.raise_signal(signal.SIGTERM)
        return original(data, first, count)

    monkeypatch.setattr(TextData, "training_batch", signalling)
    with pytest.raises(StoppedBySignal):
        train_gpt(config, output_dir=tmp_path / "stopped")
    monkeypatch.undo()
    train_gpt(config, output_dir=tmp_path / "stopped", resume=True)
    for name in ("model", "optimizer", "ema"):
        whole, stopped = (Checkpoint(tmp_path / run / "checkpoints/last").tensors(name) for run in ("whole", "stopped"))
        assert all(torch.equal(whole[key], stopped[key]) for key in whole | stopped)
    losses = [
        [(line["step"], line.get("val_loss")) for line in read_metrics(tmp_path / run)] for run in ("whole", "stopped")
    ]
    assert losses[0] == losses[1]


def test_a_run_cannot_change_its_decay(config: GPTConfig, tmp_path: Path) -> None:
    train_gpt(config, output_dir=tmp_path / "run")
    with pytest.raises(InputError, match=r"training\.ema_decay was 0\.0, is now 0\.9"):
        train_gpt(with_training(config, ema_decay=0.9), output_dir=tmp_path / "run", resume=True)
