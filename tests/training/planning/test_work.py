"""Counts of what a run does, and of its arithmetic, against sums by hand."""

from types import SimpleNamespace
from typing import Any

import pytest
from helpers import with_training

from gpt.config import GPTConfig
from gpt.task import GPTTask
from seq2seq.config import Seq2SeqConfig
from seq2seq.task import Seq2SeqTask
from training.config.sections import TrainingConfig
from training.planning.memory import expected_bytes
from training.planning.start import memory_line, work_line
from training.planning.work import orthogonal_flops, sent_bytes, work_of
from training.runtime.sizes import gigabytes
from training.storage.state import Counters


@pytest.mark.parametrize(
    ("steps", "evaluations", "checkpoints", "expected"),
    [
        (12, 5, 4, (3, 5)),  # Evaluations at 5, 10 and 12, saves at 4, 5, 8, 10 and 12.
        (12, 4, 4, (3, 3)),
        (12, 0, 0, (1, 1)),
        (12, 0, 6, (1, 2)),
        (13, 6, 0, (3, 3)),
        (3, 5, 5, (1, 1)),
    ],
)
def test_evaluations_and_saves(
    config: GPTConfig, steps: int, evaluations: int, checkpoints: int, expected: tuple[int, int]
) -> None:
    asked = with_training(config, max_steps=steps, eval_interval=evaluations, checkpoint_interval=checkpoints)
    run = work_of(GPTTask(asked), asked)
    assert (run.steps, run.evaluations, run.saves) == (steps, *expected)


def test_arithmetic_of_a_step(config: GPTConfig) -> None:
    """Two blocks, 16 wide, with feed-forward layers of 32: four matrices of 16 x 16 and three of 16 x 32 each."""
    task = GPTTask(config)
    squares, oblongs = 2 * 4 * (4 * 16**3 + 2 * 16**3), 2 * 3 * (4 * 16 * 16 * 32 + 2 * 16**3)
    assert orthogonal_flops(task.model, config) == 5 * (squares + oblongs)
    run = work_of(task, config)
    assert run.tokens == 8 * 16
    assert run.flops == 128 * task.flops_per_token + 5 * (squares + oblongs)
    targets = task.data.validation_targets
    assert run.evaluated == 3 * targets
    part = with_training(config, eval_tokens=targets // 2 + 1, ema_decay=0.9, eval_raw_weights=True)
    assert work_of(task, part).evaluated == 2 * (3 * targets / 2 + targets), "and the whole at the end, and both twice"


def test_what_is_sent(config: GPTConfig) -> None:
    model = GPTTask(config).model
    weights = sum(p.numel() for p in model.parameters())
    matrices = 2 * (4 * 16 * 16 + 3 * 16 * 32)
    assert sent_bytes(model, config, "bf16") == (4 * weights, 2 * matrices)
    assert sent_bytes(model, with_training(config, gradient_compression="bf16"), "fp32") == (2 * weights, 4 * matrices)


def test_the_lines_of_a_run_at_its_start(config: GPTConfig) -> None:
    task = GPTTask(config)
    assert work_line(task, config, Counters()) == "7.15 MFLOP a step, 85.8 MFLOP in all"
    going_on = work_line(task, config, Counters(step=3, seconds=100.0))
    assert going_on.endswith("; 5 minutes of training left at the speed so far")
    assert work_line(task, config, Counters(step=12, seconds=100.0)) == work_line(task, config, Counters())
    line = memory_line(task, config, "fp32", 8)
    assert line is not None
    assert line.startswith("about ")
    assert " MB of each device by formula: activations " in line
    pairs = Seq2SeqConfig(training=TrainingConfig(max_steps=1, batch_size=64))
    task_of_pairs = Seq2SeqTask(pairs)
    longest = task_of_pairs.data.training_batch(0, 64).targets_BT.size(1)
    parts = expected_bytes(task_of_pairs.model, pairs, "fp32", 8 * longest, length=longest, varying=True)
    line = memory_line(task_of_pairs, pairs, "fp32", 8)
    assert line is not None
    assert line.startswith(f"about {gigabytes(sum(parts.values()))} of "), "with their padding"
    other: Any = SimpleNamespace(model=None)
    assert memory_line(task, other, "fp32", 8) is None, "a model of another kind"
