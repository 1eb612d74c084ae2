"""Checkpoints that are written in the background are those of a run that stands still for them."""

import json
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import read_metrics, with_training

from gpt.config import GPTConfig
from gpt.task import train_gpt
from training.evaluation import Evaluator
from training.reporting import Reporter
from training.runtime.errors import NonFiniteError, SaveError, StoppedBySignal
from training.storage.background import NICENESS, Background, Snapshot
from training.storage.checkpoint import Checkpoint, CheckpointError, CheckpointStore
from training.storage.whole import exhaust, wholes

Save = Callable[..., Path]


@pytest.fixture
def background(config: GPTConfig) -> GPTConfig:
    return with_training(config, background_saves=True, ema_decay=0.9)


def on_save(monkeypatch: pytest.MonkeyPatch, before: Callable[[int], None]) -> None:
    """Let something happen before a checkpoint is written, in the thread that writes it."""
    original = CheckpointStore.save

    def save(store: CheckpointStore, step: int, **content: Any) -> Path:
        before(step)
        return original(store, step, **content)

    monkeypatch.setattr(CheckpointStore, "save", save)


def on_report(monkeypatch: pytest.MonkeyPatch, after: Callable[[int], None]) -> None:
    """Let something happen after the metrics of a step."""
    original = Reporter.report

    def report(reporter: Reporter, metrics: Any, *rest: Any) -> None:
        original(reporter, metrics, *rest)
        after(int(metrics["step"]))

    monkeypatch.setattr(Reporter, "report", report)


def refuse(*steps: int) -> Callable[[int], None]:
    def refused(step: int) -> None:
        if step in steps:
            raise CheckpointError(f"cannot write checkpoint of step {step}")

    return refused


def checkpoints(run: Path) -> dict[str, bytes]:
    """All files of all checkpoints, without what a clock says and which way they were written."""
    found = {}
    for folder in (run / "checkpoints").glob("step-*"):
        for file in folder.iterdir():
            name = f"{folder.name}/{file.name}"
            if file.name == "state.json":
                state = json.loads(file.read_text())
                state["counters"].pop("seconds")
                for counts in (state["counters"]["pending_evaluation"] or {},):
                    counts.clear()
                found[name] = json.dumps(state).encode()
            elif file.suffix == ".safetensors":
                found[name] = file.read_bytes()
    return found


def links(run: Path) -> list[str]:
    return [os.readlink(run / "checkpoints" / name) for name in ("best", "last")]


def test_a_run_that_saves_in_the_background_leaves_the_same_checkpoints(
    background: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but the last one are written by a thread, while steps are taken."""
    background = with_training(background, keep_checkpoints=9)
    train_gpt(with_training(background, background_saves=False), output_dir=tmp_path / "plain")
    assert "background" not in capsys.readouterr().out
    threads: dict[int, str] = {}
    on_save(monkeypatch, lambda step: threads.update({step: threading.current_thread().name}))
    train_gpt(background, output_dir=tmp_path / "run")
    assert checkpoints(tmp_path / "run") == checkpoints(tmp_path / "plain")
    assert links(tmp_path / "run") == links(tmp_path / "plain")
    assert threads == dict.fromkeys((4, 5, 8, 10), "checkpoint_0") | {12: "MainThread"}
    assert " free, written in the background from a copy in memory\n" in capsys.readouterr().out


def test_a_checkpoint_is_of_the_moment_at_which_it_was_begun(
    background: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    background = with_training(background, eval_interval=0, keep_checkpoints=9)
    train_gpt(with_training(background, background_saves=False), output_dir=tmp_path / "plain")
    moved_on, events = threading.Event(), list[str]()

    def wait(step: int) -> None:
        if step == 4:
            events.append("begun" if moved_on.wait(60) else "nothing came")

    def note(step: int) -> None:
        if step == 6:
            events.append("step 6")
            moved_on.set()

    on_save(monkeypatch, wait)
    on_report(monkeypatch, note)
    train_gpt(background, output_dir=tmp_path / "run")
    assert events == ["step 6", "begun"]
    assert checkpoints(tmp_path / "run") == checkpoints(tmp_path / "plain")


def test_an_evaluation_and_the_next_save_wait_for_the_one_before(
    background: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = list[str]()
    saved, evaluate = CheckpointStore.save, Evaluator.evaluate

    def save(store: CheckpointStore, step: int, **content: Any) -> Path:
        events.append(f"begin {step}")
        place = saved(store, step, **content)
        events.append(f"end {step}")
        return place

    def evaluating(*arguments: Any, **options: Any) -> Any:
        events.append("evaluation")
        return evaluate(*arguments, **options)

    monkeypatch.setattr(CheckpointStore, "save", save)
    monkeypatch.setattr(Evaluator, "evaluate", evaluating)
    train_gpt(with_training(background, eval_interval=4, max_steps=8), output_dir=tmp_path / "run")
    assert events == ["evaluation", "begin 4", "end 4", "evaluation", "begin 8", "end 8"]


def test_a_write_that_failed_ends_the_run_at_the_next_save(
    background: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That one is still tried, so that no step is lost which the disk would take."""
    background = with_training(background, eval_interval=0)
    with monkeypatch.context() as patch:
        on_save(patch, refuse(4))
        message = (
            "^cannot write checkpoint of step 4; the newest checkpoint is of step 8. When that is mended, go on with"
        )
        with pytest.raises(SaveError, match=message) as caught:
            train_gpt(background, output_dir=tmp_path / "run")
    assert caught.value.exit_code == 5
    assert read_metrics(tmp_path / "run")[-1]["step"] == 8
    train_gpt(background, output_dir=tmp_path / "run", resume=True)
    train_gpt(background, output_dir=tmp_path / "whole")
    last = "step-00000012"
    for run in ("run", "whole"):
        assert links(tmp_path / run) == [last, last]
    ends = [{k: v for k, v in checkpoints(tmp_path / run).items() if last in k} for run in ("run", "whole")]
    assert ends[0] == ends[1]


def test_a_write_that_failed_ends_the_run_at_its_end(
    background: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_save(monkeypatch, refuse(4))
    with pytest.raises(SaveError, match="^cannot write checkpoint of step 4; the newest checkpoint is of step 5"):
        train_gpt(with_training(background, eval_interval=0, max_steps=5), output_dir=tmp_path / "run")


def test_a_run_goes_on_without_it_if_so_configured(
    background: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best is again the one on the disk, before the next evaluation is judged by it."""
    background = with_training(background, on_save_error="continue", eval_interval=4)
    losses = {4: 2.0, 8: 3.0, 12: 4.0}
    evaluate = Evaluator.evaluate

    def evaluated(*arguments: Any, **options: Any) -> Any:
        measures, sample = evaluate(*arguments, **options)
        return measures | {"val_loss": losses.pop(min(losses))}, sample

    monkeypatch.setattr(Evaluator, "evaluate", evaluated)
    on_save(monkeypatch, refuse(4))
    result = train_gpt(background, output_dir=tmp_path / "run")
    said = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert said == [
        "warning     cannot write checkpoint of step 4; the run goes on, there is no checkpoint yet",
    ]
    assert (result.counters.best_step, links(tmp_path / "run")[0]) == (8, "step-00000008")


def test_a_stop_request_waits_for_a_write_and_saves_at_once(
    background: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, threads = threading.Event(), dict[int, str]()

    def wait(step: int) -> None:
        assert step != 4 or asked.wait(60)
        threads[step] = threading.current_thread().name

    def stop(step: int) -> None:
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
            asked.set()

    on_save(monkeypatch, wait)
    on_report(monkeypatch, stop)
    with pytest.raises(StoppedBySignal, match="saved step"):
        train_gpt(with_training(background, eval_interval=0), output_dir=tmp_path / "run")
    (stopped,) = threads.keys() - {4}
    assert stopped in (6, 7)
    assert list(threads) == [4, stopped]
    assert threads[stopped] == "MainThread"
    assert Checkpoint(tmp_path / "run/checkpoints/last").step == stopped


def test_a_loss_that_is_not_finite_waits_for_a_write(
    background: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = list[int]()
    on_save(monkeypatch, steps.append)
    optimizer = replace(background.optimizer, name="adamw", learning_rate=1e30)
    with pytest.raises(NonFiniteError, match="the weights of step"):
        train_gpt(
            replace(with_training(background, eval_interval=0, checkpoint_interval=1), optimizer=optimizer),
            output_dir=tmp_path / "run",
        )
    assert Checkpoint(tmp_path / "run/checkpoints/last").step == steps[-1]


def test_a_run_that_ends_by_another_error_ends_after_the_write(
    background: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is let go only then."""
    gone = threading.Event()

    def wait(step: int) -> None:
        gone.wait(60)

    def fail(step: int) -> None:
        if step == 6:
            gone.set()
            raise RuntimeError("something else")

    on_save(monkeypatch, wait)
    on_report(monkeypatch, fail)
    with pytest.raises(RuntimeError, match="something else"):
        train_gpt(with_training(background, eval_interval=0), output_dir=tmp_path / "run")
    assert Checkpoint(tmp_path / "run/checkpoints/last").step == 4


def test_lines_of_metrics_up_to_a_checkpoint_are_on_the_disk_before_it(
    background: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(step: int) -> None:
        steps = [line["step"] for line in read_metrics(tmp_path / "run")]
        assert steps[:step] == list(range(1, step + 1))

    on_save(monkeypatch, look)
    train_gpt(background, output_dir=tmp_path / "run")


def test_the_background_does_one_thing_after_another_and_tells_of_an_error_once() -> None:
    background, done = Background(), list[Any]()
    background.wait()
    background.start(lambda: done.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
    background.wait()
    background.start(lambda: done.append(2))
    background.wait()
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert done == [min(own + NICENESS, 19), 2] or own > 19 - NICENESS
    background.start(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        background.wait()
    background.wait()
    background.start(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        background.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoint")]


def test_a_snapshot_keeps_the_values_and_its_memory() -> None:
    groups = {"model": {"w": torch.ones(3), "b": torch.zeros(2)}, "ema": {"w": torch.full((3,), 5.0)}}
    snapshot = Snapshot()
    kept = snapshot.take(groups, wholes(groups))
    places = [tensor.data_ptr() for tensors in kept.values() for tensor in tensors.values()]
    groups["model"]["w"].fill_(7)
    assert kept["model"]["w"].tolist() == [1, 1, 1]
    again = snapshot.take(groups, wholes(groups))
    assert again["model"]["w"].tolist() == [7, 7, 7]
    assert again["ema"]["w"].tolist() == [5, 5, 5]
    assert [tensor.data_ptr() for tensors in again.values() for tensor in tensors.values()] == places


def test_a_resumed_run_holds_no_file_that_it_may_prune(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open file keeps its space on the disk."""
    train_gpt(config, output_dir=tmp_path / "run")
    held = list[str]()

    def look(step: int) -> None:
        links = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
        held.extend(name for link in links if link.is_symlink() and "safetensors" in (name := os.readlink(link)))

    on_report(monkeypatch, look)
    train_gpt(with_training(config, max_steps=14), output_dir=tmp_path / "run", resume=True)
    assert held == []


def test_each_value_is_asked_for_though_the_disk_refuses(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where other processes have a part in each of them, and wait for it."""
    from training import saving

    left = list[int]()

    def exhausted(values: Any) -> None:
        left.append(sum(1 for _ in values))
        exhaust(values)

    monkeypatch.setattr(saving, "exhaust", exhausted)
    monkeypatch.setattr(saving, "in_shards", lambda tensors: True)
    on_save(monkeypatch, refuse(4))
    with pytest.raises(SaveError):
        train_gpt(config, output_dir=tmp_path / "run")
    assert left[0] > 10
