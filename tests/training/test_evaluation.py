"""Evaluations of a part of the validation split: which part, what its loss is called, and what goes by it."""

import os
import re
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from helpers import read_metrics, with_training

from data.batches.windows import TextData
from gpt.config import GPTConfig
from gpt.task import GPTTask, load_gpt, train_gpt
from training import evaluation
from training.config.sections import TrainingConfig
from training.evaluation import SUBSET, WHOLE, stride, validation_loss
from training.plots import plot_runs
from training.runs.listing import read_run
from training.runtime.errors import InputError, NonFiniteError, StoppedBySignal
from training.storage.checkpoint import Checkpoint
from training.storage.state import Counters, saved_state
from training.task import Batch
from training.train_command import show_losses

WINDOWS = 4
"""Of the validation split, every so many-th is evaluated."""


def losses(run: Path, *names: str) -> list[list[float | None]]:
    """Of a run's steps: number, training loss, validation losses, and what else is named."""
    return [[line.get(name) for name in ("step", "train_loss", WHOLE, SUBSET, *names)] for line in read_metrics(run)]


@pytest.fixture
def part(config: GPTConfig) -> GPTConfig:
    """A run that evaluates a part of the split."""
    targets = GPTTask(config).data.validation_targets
    return with_training(config, eval_tokens=-(-targets // WINDOWS))


def test_the_stride_leaves_about_as_many_targets_as_asked_for(config: GPTConfig) -> None:
    data = GPTTask(config).data
    targets = data.validation_targets
    assert targets == sum(batch.num_targets for batch in data.validation_batches(7))
    assert [stride(data, asked) for asked in (0, 10**9, targets, targets - 1, 1)] == [1, 1, 1, 2, targets]
    for asked in (targets // 5, targets // 3, targets // 2):
        left = sum(batch.num_targets for batch in data.validation_batches(7, every=stride(data, asked)))
        assert abs(left - asked) <= asked // 5 + data.context


def test_a_run_goes_by_the_same_part_each_time_and_measures_the_whole_at_its_end(
    part: GPTConfig, config: GPTConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train_gpt(part, output_dir=tmp_path / "run")
    lines, counters = read_metrics(tmp_path / "run"), result.counters
    assert [line["step"] for line in lines if SUBSET in line] == [5, 10, 12]
    assert [line["step"] for line in lines if WHOLE in line] == [12], "what has not seen all is never called so"
    assert [line["step"] for line in lines if {"perplexity", "bits_per_character"} & line.keys()] == [12]
    train_gpt(config, output_dir=tmp_path / "plain")
    assert lines[-1][WHOLE] == read_metrics(tmp_path / "plain")[-1][WHOLE]
    assert [line["train_loss"] for line in lines] == [line["train_loss"] for line in read_metrics(tmp_path / "plain")]
    data, model = GPTTask(config).data, load_gpt(tmp_path / "run/checkpoints/last").model
    first = [batch for index, batch in enumerate(data.validation_batches(1)) if index % WINDOWS == 0]
    with torch.no_grad():
        expected = evaluation.mean_loss(Accelerator(cpu=True), model, first)
    assert lines[-1][SUBSET] == pytest.approx(expected, abs=1e-6)
    best = min((line[SUBSET], line["step"]) for line in lines if SUBSET in line)
    assert (counters.best_val_loss_subset, counters.best_step) == best
    assert (counters.best_val_loss, counters.val_loss) == (None, lines[-1][WHOLE])
    show_losses(result, "character")
    out = capsys.readouterr().out
    assert f"evaluation  val_loss_subset, over 1 in {WINDOWS} windows of the validation split\n" in out
    assert f"step 5/12  val_loss_subset {lines[4][SUBSET]:.4f}  (the best so far)\n" in out
    assert f"step 12/12  val_loss_subset {lines[-1][SUBSET]:.4f}  validation loss {lines[-1][WHOLE]:.4f}  (" in out
    assert f"{lines[-1][WHOLE]:.4f} nats per character, over the whole validation split\n" in out
    assert f"checkpoints/best (step {best[1]}, val_loss_subset {best[0]:.4f})\n" in out


def test_as_many_targets_as_there_are_are_the_whole(config: GPTConfig, tmp_path: Path) -> None:
    train_gpt(config, output_dir=tmp_path / "plain")
    train_gpt(with_training(config, eval_tokens=10**6), output_dir=tmp_path / "all")
    assert losses(tmp_path / "plain") == losses(tmp_path / "all")
    assert not any(SUBSET in line for line in read_metrics(tmp_path / "all"))


def measured(monkeypatch: pytest.MonkeyPatch, **values: list[float]) -> None:
    """Let evaluations find these losses, over the whole split and over a part of it."""
    found = {WHOLE: iter(values.get(WHOLE, [])), SUBSET: iter(values.get(SUBSET, []))}
    monkeypatch.setattr(
        evaluation, "validation_loss", lambda *arguments: next(found[(SUBSET, WHOLE)[arguments[-1] == 1]])
    )


def test_the_best_and_patience_go_by_the_part_and_an_early_end_measures_the_whole(
    part: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, val_loss_subset=[3.0, 2.0, 2.0, 2.5], val_loss=[1.0])
    patient = with_training(part, eval_interval=2, checkpoint_interval=0, patience=2)
    counters = train_gpt(patient, output_dir=tmp_path / "run").counters
    assert (counters.step, counters.best_step, counters.val_loss) == (8, 4, 1.0)
    assert os.readlink(tmp_path / "run/checkpoints/best") == "step-00000004"
    assert [(line["step"], line[WHOLE]) for line in read_metrics(tmp_path / "run") if WHOLE in line] == [(8, 1.0)]


@pytest.mark.parametrize("name", [SUBSET, WHOLE])
def test_a_loss_over_a_part_that_is_not_finite_stops_a_run_and_is_named(
    part: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    measured(monkeypatch, **({WHOLE: [2.0], SUBSET: [3.0, 2.0, 1.0]} | {name: [float("nan")]}))
    words, step = {SUBSET: ("val_loss_subset", 5), WHOLE: ("validation loss", 12)}[name]
    with pytest.raises(NonFiniteError, match=f"at step {step} the {words} is nan"):
        train_gpt(part, output_dir=tmp_path / "run")


def test_a_run_stopped_in_its_last_evaluation_goes_on_as_if_left_alone(
    part: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_gpt(part, output_dir=tmp_path / "whole")
    original = TextData.validation_batches

    def signalling(data: TextData, batch_size: int, rank: int, num_ranks: int, every: int) -> Iterator[Batch]:
        if every == 1:
            signal.raise_signal(signal.SIGTERM)
        return original(data, batch_size, rank, num_ranks, every)

    monkeypatch.setattr(TextData, "validation_batches", signalling)
    with pytest.raises(StoppedBySignal):
        train_gpt(part, output_dir=tmp_path / "stopped")
    monkeypatch.undo()
    assert (read_run(tmp_path / "stopped").state, read_run(tmp_path / "stopped").best_step) == ("stopped", 10)
    whole, stopped = (train_gpt(part, output_dir=tmp_path / run, resume=True).counters for run in ("whole", "stopped"))
    assert replace(stopped, seconds=0.0) == replace(whole, seconds=0.0)
    assert losses(tmp_path / "stopped", "perplexity") == losses(tmp_path / "whole", "perplexity")
    # The checkpoint was written before the evaluation, and says what came of it.
    saved = saved_state(Checkpoint(tmp_path / "stopped/checkpoints/last"))
    assert saved.counters == stopped
    found = read_run(tmp_path / "stopped")
    assert (found.state, found.best_step, found.val_loss) == ("done", 12, stopped.val_loss)


def test_a_run_that_is_asked_to_end_where_it_stands_measures_the_whole_and_judges_once(
    part: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, val_loss_subset=[2.0, 3.0, 1.0, 3.0], val_loss=[0.5, 1.5])
    config = with_training(part, checkpoint_interval=5)
    train_gpt(config, output_dir=tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000012")
    counters = train_gpt(with_training(config, max_steps=10), output_dir=tmp_path / "run", resume=True).counters
    assert (counters.step, counters.val_loss) == (10, 1.5)
    assert (counters.best_step, counters.best_val_loss_subset, counters.stale_evaluations) == (5, 2.0, 1)


@pytest.mark.parametrize(("before", "after"), [(0, 40), (40, 0), (40, 80)])
def test_another_part_of_the_split_is_another_best_and_the_resume_says_so(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    before: int, after: int,
) -> None:  # fmt: skip
    short, longer = with_training(config, max_steps=5), with_training(config, max_steps=12, patience=3)
    measured(monkeypatch, val_loss_subset=[1.0], val_loss=[1.0])
    train_gpt(with_training(short, eval_tokens=before), output_dir=tmp_path / "run")
    measured(monkeypatch, val_loss_subset=[3.0, 2.0], val_loss=[3.0, 2.0])
    counters = train_gpt(with_training(longer, eval_tokens=after), output_dir=tmp_path / "run", resume=True).counters
    lowest = counters.best_val_loss if after == 0 else counters.best_val_loss_subset
    assert (lowest, counters.best, counters.best_step, counters.stale_evaluations) == (2.0, 2.0, 12, 0)
    assert os.readlink(tmp_path / "run/checkpoints/best") == "step-00000012"
    out = capsys.readouterr().out
    said = f"training.eval_tokens was {before}, is now {after}: the steps are the same"
    assert re.search(rf"^changed     {said}$", out, re.MULTILINE)
    assert (
        "changed     the best so far (1.0000 at step 5) is over another part of the split: it is chosen anew\n" in out
    )
    assert "step 10/12  " in out
    assert re.search(r"step 10/12 .* 3\.0000  \(the best so far\)$", out, re.MULTILINE)


def test_the_same_part_by_another_number_forgets_nothing(part: GPTConfig, tmp_path: Path) -> None:
    counters = Counters(eval_every=3, step=5)
    counters.judge(2.0)
    assert counters.go_by(3) is None
    assert (counters.best, counters.best_step, counters.best_val_loss) == (2.0, 5, None)
    counters.judge(9.0)
    assert counters.stale_evaluations == 0, "a step counts once"
    assert counters.go_by(1) is not None
    assert (counters.best, counters.best_step, counters.val_step) == (None, None, None)


def test_the_raw_weights_are_measured_where_that_is_asked_for(part: GPTConfig, tmp_path: Path) -> None:
    config = with_training(part, ema_decay=0.9)
    train_gpt(config, output_dir=tmp_path / "plain")
    assert not any(key.startswith("raw_") for line in read_metrics(tmp_path / "plain") for key in line)
    train_gpt(with_training(config, eval_raw_weights=True), output_dir=tmp_path / "raw")
    lines = read_metrics(tmp_path / "raw")
    assert losses(tmp_path / "plain") == losses(tmp_path / "raw")
    assert [line["step"] for line in lines if "raw_val_loss_subset" in line] == [5, 10, 12]
    assert [line["step"] for line in lines if "raw_val_loss" in line] == [12]
    task = GPTTask(config)
    task.model.load_state_dict(load_gpt(tmp_path / "raw/checkpoints/last", weights="raw").model.state_dict())
    for every, key in ((WINDOWS, "raw_val_loss_subset"), (1, "raw_val_loss")):
        loss = validation_loss(Accelerator(cpu=True), task, 64, every=every)
        assert loss == pytest.approx(lines[-1][key], abs=1e-6)


def test_pictures_call_a_part_by_its_name(part: GPTConfig, config: GPTConfig, tmp_path: Path) -> None:
    train_gpt(part, output_dir=tmp_path / "part")
    train_gpt(config, output_dir=tmp_path / "plain")
    plot_runs([tmp_path / "part", tmp_path / "plain"], tmp_path / "curves.svg", x_axis="step")
    drawn = (tmp_path / "curves.svg").read_text()
    assert "<!-- part, val_loss_subset -->" in drawn
    assert "<!-- part, validation -->" in drawn
    assert "<!-- plain, val_loss_subset -->" not in drawn


def test_a_negative_number_of_targets_is_one_clear_line() -> None:
    with pytest.raises(InputError, match=r"training\.eval_tokens must be at least 0, and finite, got -1"):
        TrainingConfig(max_steps=1, eval_tokens=-1)
