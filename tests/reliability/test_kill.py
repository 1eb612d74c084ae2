"""Runs that are killed or asked to stop from outside."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from forking import python
from helpers import ROOT, command, read_metrics, wait_for_step, with_training
from reliability.killing import Ordeal, Precision

from gpt.config import GPTConfig
from training.config.command_line import config_to_yaml
from training.runtime.signals import REPEAT_SECONDS
from training.storage.checkpoint import Checkpoint

TRAIN = ROOT / "launch/train_gpt.py"


def start(config: GPTConfig, folder: Path, *options: str, script: Path = TRAIN) -> "subprocess.Popen[str]":
    file = folder / "config.yaml"
    file.write_text(config_to_yaml(config))
    return subprocess.Popen(
        [*python(), "-u", str(script), "--config", str(file), "--output_dir", "run", *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(config: GPTConfig, tmp_path: Path, number: signal.Signals) -> None:
    endless = with_training(config, max_steps=100_000, eval_interval=0, checkpoint_interval=0)
    with start(endless, tmp_path) as process:
        wait_for_step(process, 5)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 3
    step = json.loads((tmp_path / "run/checkpoints/last/state.json").read_text())["counters"]["step"]
    assert errors.startswith(f"stopped: saved step {step}; go on with: ")
    assert errors.endswith(f"{TRAIN} --output_dir run --resume\n")
    _, *arguments = errors.split("go on with: ")[1].split()
    done = command(*arguments, "--training.max_steps", str(step + 3), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == list(range(1, step + 4))


SLOW = """
import sys, time
from data.batches.windows import TextData
from gpt.task import GPTTask
from launch.train_gpt import main
from training.runtime.errors import exit_code

class SlowData(TextData):
    def training_batch(self, first, count):
        time.sleep(60 if first == 7 * 8 else 0)  # step 8
        return super().training_batch(first, count)

class Slow(GPTTask):
    data_class = SlowData

sys.exit(exit_code(lambda: main(Slow)))
"""


def test_a_second_signal_ends_a_long_step_at_once_and_loses_nothing_that_was_saved(
    config: GPTConfig, tmp_path: Path
) -> None:
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    with start(config, tmp_path, script=script) as process:
        wait_for_step(process, 6)  # 7 is told when 8 is done
        time.sleep(1)  # until 8 is under way
        process.terminate()
        time.sleep(REPEAT_SECONDS + 0.2)
        assert process.poll() is None, "the step is not over"
        process.terminate()
        process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGTERM
    assert Checkpoint(tmp_path / "run/checkpoints/last").state["step"] == 5
    with start(config, tmp_path, "--resume") as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "resuming    after step 5" in output


@pytest.mark.parametrize(
    ("model", "precision", "processes", "kills", "background"),
    [
        pytest.param("gpt", "fp32", 1, 3, False, marks=pytest.mark.nightly),
        pytest.param("gpt", "fp32", 1, 3, True, marks=pytest.mark.nightly),
        pytest.param("gpt", "bf16", 2, 2, False, marks=pytest.mark.nightly),
        pytest.param("seq2seq", "fp32", 1, 2, False, marks=pytest.mark.nightly),
        pytest.param("seq2seq", "fp32", 2, 2, True, marks=pytest.mark.nightly),
    ],
)
def test_a_killed_run_ends_as_if_left_alone(
    tmp_path: Path, model: str, precision: Precision, processes: int, kills: int, background: bool
) -> None:
    """The same with many more kills is part of `make reliability`."""
    ordeal = Ordeal(model=model, precision=precision, processes=processes, kills=kills, background=background)
    outcome = ordeal.endure(tmp_path)
    assert len(outcome.kills) == kills
    assert 2 * sum(kill.after_first_checkpoint for kill in outcome.kills) >= kills
    assert {kill.rank is None for kill in outcome.kills} == ({True} if processes == 1 else {True, False})
    assert outcome.same_weights
    assert outcome.same_metrics
    assert outcome.quarantined == 0
