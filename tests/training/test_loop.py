"""The loop: what it writes, that it can stop anywhere and go on, and that a step is the same however it is split."""

import math
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from helpers import read_metrics, with_training
from torch import Tensor, nn

from data.batches.windows import TextData
from gpt.config import GPTConfig
from gpt.task import GPTTask, load_gpt, train_gpt
from training import evaluation, loop
from training.config.command_line import config_to_yaml, parse_config_text
from training.config.fields import options_of
from training.evaluation import validation_loss
from training.optimizer import MuonAdamW
from training.reporting import Speed
from training.runtime.device import Runtime
from training.runtime.errors import InputError, NonFiniteError, StoppedBySignal
from training.schedule import count_steps, learning_rate_scale
from training.step import DeviceStep, Launched
from training.storage import checkpoint
from training.storage.checkpoint import Checkpoint, CheckpointError, CheckpointStore
from training.storage.run_folder import RunFolder
from training.storage.state import saved_state
from training.task import Batch, loss_sum

CI = pytest.mark.ci


def weights(run: Path, name: str = "last") -> dict[str, Tensor]:
    checkpoint = Checkpoint(run / "checkpoints" / name)
    return checkpoint.tensors("model") | {f"optimizer/{k}": v for k, v in checkpoint.tensors("optimizer").items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def losses(run: Path) -> list[tuple[Any, ...]]:
    names = ("step", "epoch", "tokens", "train_loss", "val_loss", "learning_rate", "grad_norm")
    return [tuple(line.get(name) for name in names) for line in read_metrics(run)]


Trained = Callable[[GPTConfig, Path], None]


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One text for all tests, so that their runs are the same."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("".join(f"{i} times {i % 7} is {i * (i % 7)}.\n" for i in range(300)))
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Makes a run; one that was made before is copied."""
    runs: dict[str, Path] = {}

    def make(config: GPTConfig, place: Path) -> None:
        name = config_to_yaml(config)
        if name not in runs:
            runs[name] = tmp_path_factory.mktemp("trained") / "run"
            train_gpt(config, output_dir=runs[name])
        shutil.copytree(runs[name], place, symlinks=True)

    return make


def test_a_run_leaves_what_it_promises(config: GPTConfig, tmp_path: Path) -> None:
    result = train_gpt(config, output_dir=tmp_path / "run")
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {".lock", "checkpoints", "config.yaml", "metrics.jsonl", "samples"}
    assert os.readlink(run / "checkpoints/last") == "step-00000012"
    lines = read_metrics(run)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["step"] for line in lines if "val_loss" in line] == [5, 10, 12]
    expected = "step epoch tokens seconds train_loss val_loss learning_rate grad_norm tokens_per_second"
    assert set(lines[-1]) == {*expected.split(), "perplexity", "bits_per_character", "bits_per_byte"}
    assert set(lines[0]) == set(expected.split()) - {"val_loss"}
    assert lines[-1]["perplexity"] == pytest.approx(math.exp(lines[-1]["val_loss"]))
    assert lines[-1]["bits_per_character"] == pytest.approx(math.log2(math.e) * lines[-1]["val_loss"])
    assert lines[-1]["tokens"] == 12 * 8 * 16
    assert lines[-1]["val_loss"] < lines[0]["train_loss"]
    assert result.counters.best_val_loss == min(line["val_loss"] for line in lines if "val_loss" in line)
    assert all(len((run / f"samples/step-{step:08d}.txt").read_text()) == 20 for step in (5, 10, 12))


def test_the_validation_loss_is_the_mean_over_every_target(config: GPTConfig, trained: Trained, tmp_path: Path) -> None:
    trained(config, tmp_path / "run")
    model, tokenizer, *_ = load_gpt(tmp_path / "run/checkpoints/last")
    text = Path(config.data.source).read_text()
    ids = torch.from_numpy(tokenizer.encode(text[len(text) * 9 // 10 :])).long()
    total, context = 0.0, config.model.max_len
    with torch.no_grad():
        for start in range(0, len(ids) - 1, context):
            window = ids[start : start + context + 1]
            logits = model(window[None, :-1])[0]
            total += nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
    assert read_metrics(tmp_path / "run")[-1]["val_loss"] == pytest.approx(total / (len(ids) - 1), rel=1e-5)


def test_the_same_command_twice_is_equal_to_the_last_bit(config: GPTConfig, trained: Trained, tmp_path: Path) -> None:
    trained(config, tmp_path / "a")
    train_gpt(config, output_dir=tmp_path / "b")
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert equal(weights(tmp_path / "a"), weights(tmp_path / "b"))


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals) -> None:
    """Send a signal to this process in the middle of a step."""
    original = DeviceStep.launch

    def signalling(device_step: DeviceStep, at: int, *arguments: Any, **options: Any) -> Launched:
        if at == step:
            signal.raise_signal(number)
        return original(device_step, at, *arguments, **options)

    monkeypatch.setattr(DeviceStep, "launch", signalling)


@pytest.mark.parametrize(
    ("step", "number", "optimizer"),
    [
        (1, signal.SIGINT, "adamw"),
        (3, signal.SIGINT, "muon"),
        (5, signal.SIGTERM, "adamw"),
        (8, signal.SIGTERM, "muon"),
        (11, signal.SIGINT, "adamw"),
    ],
)
def test_a_stopped_run_goes_on_as_if_left_alone(
    config: GPTConfig,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    number: signal.Signals,
    optimizer: Any,
) -> None:
    config = replace(config, optimizer=replace(config.optimizer, name=optimizer))
    trained(config, tmp_path / "whole")
    stop_at(monkeypatch, step, number)
    monkeypatch.setattr(sys, "argv", ["train_gpt.py"])
    with pytest.raises(
        StoppedBySignal, match=r"saved step \d+; go on with: .*python.* --output_dir .*stopped --resume"
    ):
        train_gpt(config, output_dir=tmp_path / "stopped")
    monkeypatch.undo()
    assert Checkpoint(tmp_path / "stopped/checkpoints/last").state["counters"]["step"] == step
    torch.rand(5)
    train_gpt(config, output_dir=tmp_path / "stopped", resume=True)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert equal(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))
    assert equal(weights(tmp_path / "stopped", "best"), weights(tmp_path / "whole", "best"))


def stop_in_evaluation(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Send SIGTERM to this process in the middle of its evaluation `number`, counted from 1."""
    original, evaluations = TextData.validation_batches, count(1)

    def signalling(data: TextData, *arguments: int) -> Iterator[Batch]:
        batches = list(original(data, *arguments))
        stop = next(evaluations) == number
        for index, batch in enumerate(batches):
            if stop:
                assert index <= len(batches) // 2, "the evaluation is given up"
                if index == len(batches) // 2:
                    signal.raise_signal(signal.SIGTERM)
            yield batch

    monkeypatch.setattr(TextData, "validation_batches", signalling)


@pytest.mark.parametrize(
    ("evaluation", "ema_decay"), [(1, 0.0), pytest.param(3, 0.0, marks=CI), pytest.param(2, 0.9, marks=CI), (5, 0.9)]
)
def test_an_evaluation_does_not_keep_a_run_from_stopping_and_is_done_at_the_resume(
    config: GPTConfig,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    evaluation: int,
    ema_decay: float,
) -> None:
    raw = ema_decay > 0
    config = with_training(config, ema_decay=ema_decay, eval_raw_weights=raw, eval_batch_size=4)
    config = replace(config, tracking="tensorboard")
    trained(config, tmp_path / "whole")
    stop_in_evaluation(monkeypatch, evaluation)
    with pytest.raises(StoppedBySignal):
        train_gpt(config, output_dir=tmp_path / "stopped")
    monkeypatch.undo()
    step = {(1, 0.0): 5, (3, 0.0): 12, (2, 0.9): 5, (5, 0.9): 12}[evaluation, ema_decay]
    assert Checkpoint(tmp_path / "stopped/checkpoints/last").state["step"] == step
    assert len(losses(tmp_path / "stopped")) == step - 1
    shutil.copytree(tmp_path / "stopped", tmp_path / "again", symlinks=True)
    for folder in ("stopped", "again", "again"):  # the last time a run that has ended
        train_gpt(config, output_dir=tmp_path / folder, resume=True)
        if folder == "stopped" and step == 5:
            # As if killed between the evaluation and the next checkpoint.
            shutil.copytree(tmp_path / "stopped", tmp_path / "killed", symlinks=True)
            for later in (10, 12):
                shutil.rmtree(tmp_path / f"killed/checkpoints/step-{later:08d}", ignore_errors=True)
            shutil.rmtree(tmp_path / "killed/checkpoints/step-00000008", ignore_errors=True)
            train_gpt(config, output_dir=tmp_path / "killed", resume=True)
            assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
        assert losses(tmp_path / folder) == losses(tmp_path / "whole")
        assert equal(weights(tmp_path / folder), weights(tmp_path / "whole"))
        assert equal(weights(tmp_path / folder, "best"), weights(tmp_path / "whole", "best"))
        assert os.readlink(tmp_path / folder / "checkpoints/best") == os.readlink(tmp_path / "whole/checkpoints/best")


def test_a_signal_in_the_last_step_stops_before_the_last_evaluation(
    config: GPTConfig, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(config, tmp_path / "whole")
    stop_at(monkeypatch, 12, signal.SIGTERM)
    with pytest.raises(StoppedBySignal, match="saved step 12"):
        train_gpt(config, output_dir=tmp_path / "run")
    monkeypatch.undo()
    train_gpt(config, output_dir=tmp_path / "run", resume=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


@pytest.mark.parametrize(("step", "ends"), [(4, True), (12, False)])
def test_a_signal_during_a_save_waits_for_one_more_step_at_most(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, ends: bool
) -> None:
    original = CheckpointStore.save

    def signalling(store: CheckpointStore, at: int, **arguments: Any) -> Path:
        if at == step:
            signal.raise_signal(signal.SIGTERM)
        return original(store, at, **arguments)

    monkeypatch.setattr(CheckpointStore, "save", signalling)
    with pytest.raises(StoppedBySignal, match="saved step 5") if ends else nullcontext():
        train_gpt(config, output_dir=tmp_path / "run")
    assert Checkpoint(tmp_path / "run/checkpoints/last").state["step"] == (5 if ends else 12)


def test_resume_goes_back_behind_damage_and_still_ends_the_same(
    config: GPTConfig, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(config, tmp_path / "whole")
    trained(config, tmp_path / "run")
    (tmp_path / "run/checkpoints/step-00000012/optimizer.safetensors").write_bytes(b"rubbish")
    train_gpt(config, output_dir=tmp_path / "run", resume=True)
    printed = capsys.readouterr().out
    assert "step-00000012 is damaged: optimizer.safetensors: expected" in printed
    assert "resuming    after step 10" in printed
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_resume_starts_where_there_is_nothing(config: GPTConfig, tmp_path: Path) -> None:
    train_gpt(config, output_dir=tmp_path / "fresh", resume=True)
    assert Checkpoint(tmp_path / "fresh/checkpoints/last").state["counters"]["step"] == 12


def test_a_finished_run_can_be_trained_on(config: GPTConfig, trained: Trained, tmp_path: Path) -> None:
    trained(config, tmp_path / "run")
    result = train_gpt(with_training(config, max_steps=14), output_dir=tmp_path / "run", resume=True)
    assert result.counters.step == 14
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == list(range(1, 15))


def test_resume_refuses_another_run_and_names_what_differs(config: GPTConfig, trained: Trained, tmp_path: Path) -> None:
    trained(config, tmp_path / "run")
    before = (tmp_path / "run/config.yaml").read_text()
    other = replace(config, seed=9, model=replace(config.model, d_ff=48))
    with pytest.raises(InputError, match=r"model.d_ff was 32, is now 48; seed was 1, is now 9\. Undo that, or start"):
        train_gpt(other, output_dir=tmp_path / "run", resume=True)
    assert (tmp_path / "run/config.yaml").read_text() == before


def test_the_best_checkpoint_outlives_the_newer_ones(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([3.0, 1.0, 2.0, 2.5])
    monkeypatch.setattr(evaluation, "validation_loss", lambda *arguments: next(values))
    result = train_gpt(with_training(config, eval_interval=3), output_dir=tmp_path / "run")
    assert (result.counters.best_step, result.counters.best_val_loss, result.counters.val_loss) == (6, 1.0, 2.5)
    folder = tmp_path / "run/checkpoints"
    assert os.readlink(folder / "best") == "step-00000006"
    assert sorted(p.name for p in folder.glob("step-*")) == ["step-00000006", "step-00000008", "step-00000012"]


def test_patience_ends_a_run_whose_loss_does_not_fall(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = iter([3.0, 2.0, 2.0, 2.5, 1.0, 1.5])
    monkeypatch.setattr(evaluation, "validation_loss", lambda *arguments: next(values))
    patient = with_training(config, eval_interval=2, checkpoint_interval=0, patience=2)
    result = train_gpt(patient, output_dir=tmp_path / "run")
    assert (result.counters.step, result.counters.best_step) == (8, 4)
    assert os.readlink(tmp_path / "run/checkpoints/last") == "step-00000008"
    assert os.readlink(tmp_path / "run/checkpoints/best") == "step-00000004"
    stop = "step 8/12  validation loss 2.5000  (best 2.0000 at step 4; stopping early, after 2 evaluations without a"
    assert stop in capsys.readouterr().out
    assert train_gpt(patient, output_dir=tmp_path / "run", resume=True).counters.step == 8
    longer = with_training(patient, patience=3)
    assert train_gpt(longer, output_dir=tmp_path / "run", resume=True).counters.best_step == 10


@pytest.mark.parametrize(("optimizer", "accumulation_steps"), [("adamw", 4), ("muon", 4), ("muon", 3)])
def test_accumulation_changes_nothing(
    config: GPTConfig, trained: Trained, tmp_path: Path, optimizer: Any, accumulation_steps: int
) -> None:
    config = with_training(config, precision="fp64", max_steps=8, eval_interval=0)
    config = replace(
        config, model=replace(config.model, dropout=0.0), optimizer=replace(config.optimizer, name=optimizer)
    )
    trained(config, tmp_path / "whole")
    train_gpt(with_training(config, accumulation_steps=accumulation_steps), output_dir=tmp_path / "parts")
    for whole, parts in zip(read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "parts"), strict=True):
        assert parts["train_loss"] == pytest.approx(whole["train_loss"], abs=1e-8, rel=0)
        assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], abs=1e-8, rel=0)


def poison(monkeypatch: pytest.MonkeyPatch, step: int, kind: str) -> None:
    """Make the loss, or only its gradient, NaN at a step."""
    calls = 0

    def poisoned(model: nn.Module, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        nonlocal calls
        loss = loss_sum(model, batch, label_smoothing)
        calls += torch.is_grad_enabled()
        if calls != step or not torch.is_grad_enabled():
            return loss
        if kind == "loss":
            return loss * math.nan
        loss.register_hook(lambda gradient: gradient * math.inf)
        return loss

    monkeypatch.setattr("training.loss.loss_sum", poisoned)


@pytest.mark.parametrize(("kind", "cause"), [("loss", "loss is nan"), ("gradient", "gradient norm is (nan|inf)")])
def test_a_non_finite_number_stops_the_run_before_the_weights_change(
    config: GPTConfig, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, cause: str
) -> None:
    trained(config, tmp_path / "sound")
    poison(monkeypatch, 7, kind)
    with pytest.raises(
        NonFiniteError,
        match=rf"at step 7 the {cause} \((rank 0|all ranks): epoch 0, windows at characters [\d,; ]+\); "
        "the weights of step 6 are saved in .*last",
    ) as caught:
        train_gpt(config, output_dir=tmp_path / "poisoned")
    assert str(caught.value).split(")")[0].count(";") == 7, "eight windows"
    assert Checkpoint(tmp_path / "poisoned/checkpoints/last").state["counters"]["step"] == 6
    assert losses(tmp_path / "poisoned") == losses(tmp_path / "sound")[:6]
    monkeypatch.undo()
    train_gpt(config, output_dir=tmp_path / "poisoned", resume=True)
    assert equal(weights(tmp_path / "poisoned"), weights(tmp_path / "sound"))


def poison_steps(monkeypatch: pytest.MonkeyPatch, steps: set[int], overflows: int = 0) -> None:
    """Make the loss of some steps not a number, and the gradient of one too large."""
    original, now = DeviceStep.launch, 0

    def noting(device_step: DeviceStep, at: int, *arguments: Any, **options: Any) -> Launched:
        nonlocal now
        now = at
        return original(device_step, at, *arguments, **options)

    def poisoned(*arguments: Any) -> Tensor:
        loss = loss_sum(*arguments) * (math.nan if now in steps and torch.is_grad_enabled() else 1.0)
        if now == overflows and torch.is_grad_enabled():
            loss.register_hook(lambda gradient: gradient * math.inf)
        return loss

    monkeypatch.setattr(DeviceStep, "launch", noting)
    monkeypatch.setattr("training.loss.loss_sum", poisoned)


def test_steps_that_are_not_finite_are_left_out_up_to_so_many_in_a_row(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_training(config, max_nonfinite_steps=2, checkpoint_interval=1, keep_checkpoints=12, ema_decay=0.9)
    poison_steps(monkeypatch, {3, 4, 6})
    train_gpt(config, output_dir=tmp_path / "run")
    printed = capsys.readouterr().out
    told = re.findall(r"warning     at step (\d+) the loss is nan .*; the step is skipped \((.) of 2 in a row", printed)
    assert told == [("3", "1"), ("4", "2"), ("6", "1")]
    at = [weights(tmp_path / "run", f"step-{step:08d}") for step in range(1, 13)]
    same = [step for step in range(2, 13) if equal(at[step - 1], at[step - 2])]
    assert same == [3, 4, 6], "weights and optimizer stand still at these steps alone"
    averages = [Checkpoint(tmp_path / f"run/checkpoints/step-{step:08d}").tensors("ema") for step in (2, 3)]
    assert equal(*averages)
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["step"] for line in lines if "train_loss" not in line] == [3, 4, 6]
    assert Checkpoint(tmp_path / "run/checkpoints/last").state["counters"]["skipped_steps"] == 3


def test_one_step_too_many_that_is_not_finite_stops_the_run_after_a_resume_too(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_training(config, max_nonfinite_steps=2, checkpoint_interval=1)
    poison_steps(monkeypatch, {7, 8, 9})
    with pytest.raises(NonFiniteError, match="at step 9 the loss is nan .* the weights of step 8 are saved"):
        train_gpt(config, output_dir=tmp_path / "run")
    with pytest.raises(NonFiniteError, match="at step 9 the loss is nan"):
        train_gpt(config, output_dir=tmp_path / "run", resume=True)
    train_gpt(with_training(config, max_nonfinite_steps=3), output_dir=tmp_path / "run", resume=True)


def test_a_validation_loss_that_is_not_finite_stops_the_run_and_is_never_the_best(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([2.0, math.nan])
    monkeypatch.setattr(evaluation, "validation_loss", lambda *arguments: next(values))
    with pytest.raises(NonFiniteError, match="at step 10 the validation loss is nan; the weights of step 10 are saved"):
        train_gpt(config, output_dir=tmp_path / "run")
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == list(range(1, 11))
    assert os.readlink(tmp_path / "run/checkpoints/best") == "step-00000005"


def test_the_learning_rate_follows_the_schedule_and_gradients_keep_to_their_norm(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, norms = [], []
    original = MuonAdamW.step

    def watched(optimizer: MuonAdamW) -> None:
        rates.append([group["lr"] for group in optimizer.param_groups])
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())
        original(optimizer)

    monkeypatch.setattr(MuonAdamW, "step", watched)
    train_gpt(with_training(config, max_grad_norm=0.01), output_dir=tmp_path / "run")
    scales = [learning_rate_scale(config.schedule, step, 12) for step in range(1, 13)]
    assert rates == [[pytest.approx(0.02 * scale), pytest.approx(5e-3 * scale)] for scale in scales]
    assert norms == [pytest.approx(0.01, rel=1e-3)] * 12
    lines = read_metrics(tmp_path / "run")
    assert [line["learning_rate"] for line in lines] == [pytest.approx(5e-3 * scale) for scale in scales]
    assert all(line["grad_norm"] > 0.01 for line in lines)


def test_utilisation_is_the_share_of_the_peak(config: GPTConfig, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.create(config_to_yaml(config))
    trainer = loop.Trainer(Runtime(Accelerator(cpu=True), "fp32", "", [], 1e12), GPTTask(config), config, run)
    trainer.fit([])
    # Six per weight of blocks and head, twelve per layer, width and token of the context.
    flops = 6 * (2 * (4 * 16**2 + 3 * 16 * 32) + 16 * len(trainer.task.data.tokenizer)) + 12 * 2 * 16 * 16
    for line in read_metrics(tmp_path / "run"):
        assert line["mfu"] == pytest.approx(line["tokens_per_second"] * flops / 1e12)


def test_gpu_memory_is_the_most_that_was_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**29)
    speed = Speed(torch.device("cuda", 0), flops_per_token=1.0, peak_flops=None)
    speed.start(loop.Counters(seconds=2.0, tokens=100))
    counters = loop.Counters(seconds=4.0, tokens=300)
    assert speed.measures(counters) == {"tokens_per_second": 100.0, "gpu_memory_gib": 1.5}


def test_the_loss_scale_of_fp16_is_saved_and_restored(config: GPTConfig, tmp_path: Path) -> None:
    def trainer(folder: str) -> loop.Trainer:
        accelerator = Accelerator(cpu=True)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        run = RunFolder(tmp_path / folder)
        run.create(config_to_yaml(config))
        return loop.Trainer(Runtime(accelerator, "fp32", "", [], None), GPTTask(config), config, run)

    first = trainer("run")
    first.accelerator.scaler.load_state_dict(
        first.accelerator.scaler.state_dict() | {"scale": 32.0, "_growth_tracker": 5}
    )
    first.saver.write(first.counters)
    second = trainer("run")
    assert second.accelerator.scaler.state_dict()["scale"] == 8.0
    second.restore(Checkpoint(tmp_path / "run/checkpoints/last"))
    assert second.accelerator.scaler.get_scale() == 32.0
    assert second.accelerator.scaler.state_dict()["_growth_tracker"] == 5


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary"])
def test_every_kind_of_model_trains_and_comes_back_from_its_checkpoint(
    config: GPTConfig, tmp_path: Path, positions: Any
) -> None:
    model = replace(config.model, positions=positions, num_kv_heads=1, tie_embeddings=True, qk_norm=False)
    config = replace(config, model=model)
    result = train_gpt(config, output_dir=tmp_path / "run")
    loaded = load_gpt(tmp_path / "run")
    task = GPTTask(config)
    task.model.load_state_dict(loaded.model.state_dict())
    accelerator = Accelerator(cpu=True)
    assert validation_loss(accelerator, task, 8) == pytest.approx(result.counters.best_val_loss, abs=1e-6)


def test_a_run_stopped_before_its_first_evaluation_can_end_there(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(monkeypatch, 2, signal.SIGTERM)
    with pytest.raises(StoppedBySignal, match="saved step 2"):
        train_gpt(config, output_dir=tmp_path / "run")
    monkeypatch.undo()
    result = train_gpt(with_training(config, max_steps=2), output_dir=tmp_path / "run", resume=True)
    assert result.counters.best_step == result.counters.step
    assert (tmp_path / "run/checkpoints/best").exists()


def test_too_little_space_is_an_early_error_and_the_size_is_right(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_training(config, ema_decay=0.9)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    with pytest.raises(CheckpointError, match="no space for a checkpoint in .*run"):
        train_gpt(config, output_dir=tmp_path / "run")
    monkeypatch.undo()
    train_gpt(config, output_dir=tmp_path / "run")
    told = re.search(r"checkpoints {1,2}([\d.]+) MB each, [\d.]+ .B free", capsys.readouterr().out)
    assert told is not None
    real = sum(file.stat().st_size for file in (tmp_path / "run/checkpoints/last").glob("*.safetensors"))
    assert float(told[1]) == pytest.approx(real / 1e6, abs=0.1)


def test_a_batch_too_small_to_split_is_an_error_before_anything_is_written(config: GPTConfig, tmp_path: Path) -> None:
    config = with_training(config, batch_size=4, accumulation_steps=5)
    with pytest.raises(InputError, match=r"must be at least processes x .*\(1 x 5\), got 4"):
        train_gpt(config, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_epochs_and_max_steps_end_a_run_whichever_is_first(config: GPTConfig) -> None:
    task = GPTTask(config)
    per_epoch = math.ceil(2 * task.data.samples_per_epoch / 8)
    assert count_steps(with_training(config, max_steps=None, epochs=2), task) == per_epoch
    assert count_steps(with_training(config, max_steps=3, epochs=2), task) == 3
    assert count_steps(with_training(config, max_steps=10**6, epochs=2), task) == per_epoch


def test_max_tokens_ends_a_run_with_the_last_whole_step_and_the_schedule_with_it(
    config: GPTConfig, tmp_path: Path
) -> None:
    step = config.training.batch_size * config.model.max_len
    ended, limits = with_training(config, max_steps=4), {"max_steps": None, "max_tokens": 5 * step - 1}
    counters = train_gpt(with_training(config, log_interval=1, **limits), output_dir=tmp_path / "run").counters
    assert (counters.step, counters.tokens) == (4, 4 * step)
    rates = [line["learning_rate"] for line in RunFolder(tmp_path / "run").read_metrics()]
    assert rates == [config.optimizer.learning_rate * learning_rate_scale(ended.schedule, at, 4) for at in range(1, 5)]
    task = GPTTask(config)
    assert count_steps(with_training(config, max_steps=None, max_tokens=10**15), task) == 10**15 // step
    assert count_steps(with_training(config, max_steps=None, epochs=2, max_tokens=step), task) == 1
    assert count_steps(with_training(config, max_steps=3, max_tokens=9 * step), task) == 3
    with pytest.raises(InputError, match=f"max_tokens must be at least the {step} tokens of one step, got {step - 1}"):
        count_steps(with_training(config, max_steps=None, max_tokens=step - 1), task)


def test_a_state_file_of_a_newer_version_is_read(config: GPTConfig, trained: Trained, tmp_path: Path) -> None:
    trained(config, tmp_path / "run")
    checkpoint = Checkpoint(tmp_path / "run/checkpoints/last")
    checkpoint.state["counters"]["later"] = 1
    assert saved_state(checkpoint).counters.step == 12


def test_an_evaluation_that_an_older_version_left_pending_is_read(
    config: GPTConfig, trained: Trained, tmp_path: Path
) -> None:
    trained(config, tmp_path / "run")
    checkpoint = Checkpoint(tmp_path / "run/checkpoints/last")
    checkpoint.state["counters"]["unreported"] = {"step": 12, "train_loss": 2.5}
    del checkpoint.state["counters"]["pending_evaluation"]
    counters = saved_state(checkpoint).counters
    assert (counters.pending_evaluation, counters.reported_step) == ({"step": 12, "train_loss": 2.5}, 11)


def test_a_resume_says_which_options_have_changed_and_which_matter(
    config: GPTConfig, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(config, tmp_path / "run")
    capsys.readouterr()
    train_gpt(config, output_dir=tmp_path / "run", resume=True)
    assert "changed" not in capsys.readouterr().out
    changed = with_training(config, max_steps=15, log_interval=5)
    changed = replace(changed, optimizer=replace(config.optimizer, learning_rate=1e-3))
    train_gpt(changed, output_dir=tmp_path / "run", resume=True)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("changed")]
    assert lines == [
        "changed     optimizer.learning_rate was 0.005, is now 0.001: the steps to come differ for it",
        "changed     training.log_interval was 1, is now 5: the steps are the same",
        "changed     training.max_steps was 12, is now 15: the steps to come differ for it",
        "changed     the learning rate goes from 0 of its peak to 0.154 at once: --schedule.restart_step 12 warms it "
        "up instead, --schedule.name constant holds it at a peak of your own",
    ]


def test_options_that_are_said_to_change_no_step_change_none(
    config: GPTConfig, trained: Trained, tmp_path: Path
) -> None:
    training: dict[str, Any] = {
        "eval_interval": 4,
        "eval_tokens": 100,
        "eval_raw_weights": True,
        "eval_batch_size": 3,
        "patience": 9,
        "log_interval": 5,
        "checkpoint_interval": 3,
        "keep_checkpoints": 4,
        "background_saves": True,
        "on_save_error": "continue",
        "max_nonfinite_steps": 3,
        "collective_timeout": 60.0,
    }
    text = tmp_path / "the same text"
    text.write_text(Path(config.data.source).read_text())
    other = replace(with_training(config, **training), name="other", tracking="tensorboard")
    other = replace(other, data=replace(config.data, source=str(text)))
    # What they lead to is known by its content as well.
    others = ("column", "include", "mix", "on_bad_row", "revision", "subset", "tokenizer_bytes", "unknown")
    answers = ("prompt_column", "answer_column", "messages_column")
    of_text = {f"data.{name}" for name in (*others, *answers)} | {"init_from"}
    changed = {"name", "tracking", "data.source"} | {f"training.{name}" for name in training}
    assert changed | of_text == {option.name for option in options_of(GPTConfig) if option.on_resume == "same"}
    trained(config, tmp_path / "a")
    train_gpt(other, output_dir=tmp_path / "b")
    assert equal(weights(tmp_path / "a"), weights(tmp_path / "b"))


@pytest.mark.parametrize("changes", [{"max_steps": 24}, {"eval_interval": 7, "max_steps": 20}])
def test_an_evaluation_that_is_still_to_be_done_is_done_under_another_configuration_too(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, int]
) -> None:
    """Also from a run that has ended since: its last checkpoint is the one before that evaluation."""
    config = with_training(config, eval_interval=0, log_interval=5)
    stop_in_evaluation(monkeypatch, 1)
    with pytest.raises(StoppedBySignal, match="saved step 12"):
        train_gpt(with_training(config, eval_batch_size=4), output_dir=tmp_path / "run")
    monkeypatch.undo()
    shutil.copytree(tmp_path / "run", tmp_path / "ended", symlinks=True)
    train_gpt(config, output_dir=tmp_path / "ended", resume=True)
    for folder in ("run", "ended"):
        train_gpt(with_training(config, **changes), output_dir=tmp_path / folder, resume=True)
        lines = read_metrics(tmp_path / folder)
        assert [line["step"] for line in lines] == sorted({line["step"] for line in lines} | {5, 10, 12, 15, 20})
        assert "val_loss" in next(line for line in lines if line["step"] == 12)
        assert Checkpoint(tmp_path / folder / "checkpoints/last").state["counters"]["pending_evaluation"] is None


@pytest.mark.parametrize("log_interval", [1, 5])
def test_a_run_that_is_to_end_where_it_was_stopped_is_evaluated_there(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_interval: int
) -> None:
    config = with_training(config, log_interval=log_interval)
    stop_at(monkeypatch, 8, signal.SIGTERM)
    with pytest.raises(StoppedBySignal, match="saved step 8"):
        train_gpt(config, output_dir=tmp_path / "run")
    monkeypatch.undo()
    result = train_gpt(with_training(config, max_steps=8), output_dir=tmp_path / "run", resume=True)
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == (list(range(1, 9)) if log_interval == 1 else [5, 8])
    assert lines[-1]["val_loss"] == result.counters.val_loss
    assert ("train_loss" in lines[-1]) == (log_interval == 1)


def test_a_loss_that_is_not_finite_is_named_though_the_disk_is_full(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(store: CheckpointStore, step: int, **arguments: Any) -> Path:
        raise CheckpointError("cannot write checkpoint: No space left on device")

    poison_steps(monkeypatch, {3})
    monkeypatch.setattr(CheckpointStore, "save", full)
    with pytest.raises(NonFiniteError, match="at step 3 the loss is nan .*; cannot write checkpoint: No space left"):
        train_gpt(config, output_dir=tmp_path / "run")


def test_a_run_of_any_name_can_be_resumed(config: GPTConfig, tmp_path: Path) -> None:
    for name in ("2024-02-30", "012", "1:30", "=", "<<"):
        config = replace(with_training(config, max_steps=2), name=name)
        assert parse_config_text(GPTConfig, config_to_yaml(config)) == config
    for resume in (False, True):
        train_gpt(config, output_dir=tmp_path / "run", resume=resume)


def test_deterministic_operations_are_asked_of_torch(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        train_gpt(config, output_dir=tmp_path / "a")
        assert not torch.are_deterministic_algorithms_enabled()
        train_gpt(with_training(config, deterministic=True), output_dir=tmp_path / "b")
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert not torch.backends.cuda.mem_efficient_sdp_enabled()
        train_gpt(with_training(config, max_steps=1), output_dir=tmp_path / "c")
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cuda.mem_efficient_sdp_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cuda.enable_mem_efficient_sdp(True)
        torch.backends.cuda.enable_cudnn_sdp(True)
    assert equal(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_a_tracker_whose_disk_is_full_ends_and_the_run_goes_on(
    config: GPTConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full:
        description = "curves"
        calls = 0

        def log(self, metrics: Any, sample: str | None) -> None:
            self.calls += 1
            if self.calls == 3:
                raise OSError(28, "No space left on device")

        def finish(self) -> None:
            raise AssertionError("it has ended before")

    run, tracker = RunFolder(tmp_path / "run"), Full()
    run.create(config_to_yaml(config))
    trainer = loop.Trainer(Runtime(Accelerator(cpu=True), "fp32", "", [], None), GPTTask(config), config, run)
    trainer.fit([tracker])
    assert tracker.calls == 3
    assert "warning     curves: No space left on device; it ends here" in capsys.readouterr().out
    assert len(read_metrics(tmp_path / "run")) == 12


def fp16_trainer(config: GPTConfig, folder: Path, loss_scale: float) -> loop.Trainer:
    """A trainer that computes in fp32, with a loss scale that grows every third step."""
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=loss_scale, growth_interval=3)
    run = RunFolder(folder)
    run.create(config_to_yaml(config))
    return loop.Trainer(Runtime(accelerator, "fp32", "", [], None), GPTTask(config), config, run)


@pytest.mark.parametrize("loss_scale", [1.0, 8.0])
def test_a_step_left_out_under_fp16_does_not_disturb_the_next(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss_scale: float
) -> None:
    poison_steps(monkeypatch, {3, 6}, overflows=8)
    trainer = fp16_trainer(with_training(config, max_nonfinite_steps=1), tmp_path / "run", loss_scale)
    trainer.fit([])
    assert trainer.counters.skipped_steps == 3
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == list(range(1, 13))


@pytest.mark.parametrize("loss_scale", [None, 1.0, 8.0])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_numbers_read_late_change_no_step(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: Any, loss_scale: float | None
) -> None:
    """With steps that are skipped, each run is the one that settles every step before it launches the next."""
    config = with_training(config, max_nonfinite_steps=2, ema_decay=0.9, eval_interval=0, checkpoint_interval=0)
    config = replace(config, optimizer=replace(config.optimizer, name=optimizer))
    poison_steps(monkeypatch, {2, 3, 6}, overflows=9)
    for name in ("late", "at once"):
        trainer = fp16_trainer(config, tmp_path / name, loss_scale or 8.0)
        if loss_scale is None:
            trainer.accelerator.scaler = trainer.device_step.guard._scaler = None
        if name == "at once":
            monkeypatch.setattr(trainer, "_pauses_after", lambda step: True)
        trainer.fit([])
        assert trainer.counters.skipped_steps == 4
    assert losses(tmp_path / "late") == losses(tmp_path / "at once")
    assert equal(weights(tmp_path / "late"), weights(tmp_path / "at once"))
    late, at_once = (Checkpoint(tmp_path / name / "checkpoints/last") for name in ("late", "at once"))
    assert equal(late.tensors("ema"), at_once.tensors("ema"))
    assert late.state["counters"] | {"seconds": 0.0} == at_once.state["counters"] | {"seconds": 0.0}


@pytest.mark.parametrize("loss_scale", [1.0, 8.0])
def test_a_run_that_stops_saves_the_loss_scale_of_its_last_good_step(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss_scale: float
) -> None:
    config = with_training(config, eval_interval=0, checkpoint_interval=0)
    poison_steps(monkeypatch, {6})
    with pytest.raises(NonFiniteError, match="at step 6 the loss is nan"):
        fp16_trainer(config, tmp_path / "run", loss_scale).fit([])
    counters = saved_state(Checkpoint(tmp_path / "run/checkpoints/last")).counters
    assert (counters.step, counters.loss_scale, counters.loss_scale_streak) == (5, 2 * loss_scale, 2)
