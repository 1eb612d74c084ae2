"""The batches of a step: pure functions of it, made ahead by a thread that ends with the run."""

import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from helpers import with_training

from data.batches.windows import TextData
from gpt.config import GPTConfig
from gpt.task import GPTTask, train_gpt
from training.batches import Batches, StepBatches
from training.runtime.errors import InputError, StoppedBySignal
from training.step import DeviceStep
from training.task import Batch


def batches_of(config: GPTConfig, micro_batch: int = 0) -> Batches:
    return Batches(GPTTask(config).data, config, Accelerator(cpu=True), micro_batch, 12)


def equal(first: StepBatches, second: StepBatches) -> bool:
    return first.shares == second.shares and all(
        torch.equal(one.targets_BT, other.targets_BT) and torch.equal(seeds, others)
        for one, seeds, other, others in zip(first.batches, first.seeds, second.batches, second.seeds, strict=True)
    )


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_batches_do_not_depend_on_what_was_made_ahead(config: GPTConfig) -> None:
    with batches_of(config) as batches:
        for step in (1, 2, 2, 3, 7, 8, 7, 12):
            assert equal(batches.take(step), batches.make(step)), "a step that is done again, too"
    assert threads() == []


def test_the_next_step_is_made_by_the_thread_and_none_after_the_last(
    config: GPTConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, str]] = []
    original = TextData.training_batch

    def noting(data: TextData, first: int, count: int) -> Batch:
        made.append((first // 8 + 1, threading.current_thread().name))
        return original(data, first, count)

    monkeypatch.setattr(TextData, "training_batch", noting)
    main = threading.current_thread().name
    with batches_of(config) as batches:
        batches.take(10)
        batches.take(11)
        batches.take(12)
    assert made == [(10, main), (11, "batches_0"), (12, "batches_0")]


@pytest.mark.parametrize(("micro_batch", "counts"), [(0, [8]), (8, [8]), (7, [4, 4]), (3, [2, 3, 3]), (1, [1] * 8)])
def test_micro_batches_are_even_and_seeds_follow_the_sample(
    config: GPTConfig, micro_batch: int, counts: list[int]
) -> None:
    whole, split = batches_of(config).make(4), batches_of(config, micro_batch).make(4)
    assert [count for _, count in split.shares] == counts == [len(batch.targets_BT) for batch in split.batches]
    assert split.num_targets == whole.num_targets == 8 * 16
    assert torch.equal(torch.cat(split.seeds), whole.seeds[0])
    assert torch.equal(torch.cat([batch.targets_BT for batch in split.batches]), whole.batches[0].targets_BT)
    others = torch.cat([*whole.seeds, *batches_of(config).make(5).seeds])
    assert len(others.unique()) == 16


def test_an_error_of_the_thread_is_the_runs(config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = TextData.training_batch

    def failing(data: TextData, first: int, count: int) -> Batch:
        if first == 3 * 8:
            raise InputError("window 24 is torn")
        return original(data, first, count)

    with monkeypatch.context() as patch:
        patch.setattr(TextData, "training_batch", failing)
        with pytest.raises(InputError, match=r"^window 24 is torn$"):
            train_gpt(config, output_dir=tmp_path / "run")
        assert threads() == []
    train_gpt(with_training(config, max_steps=4), output_dir=tmp_path / "other")
    assert threads() == []


def test_a_signal_ends_the_thread_as_well(config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = DeviceStep.launch

    def signalling(device_step: DeviceStep, step: int, *arguments: Any, **options: Any) -> Any:
        assert threads() == ["batches_0"]
        if step == 2:
            signal.raise_signal(signal.SIGTERM)
        return original(device_step, step, *arguments, **options)

    monkeypatch.setattr(DeviceStep, "launch", signalling)
    with pytest.raises(StoppedBySignal):
        train_gpt(config, output_dir=tmp_path / "run")
    assert threads() == []
