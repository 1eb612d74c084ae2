"""Runs that are killed or asked to stop from outside."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, command, read_metrics, wait_for_step, with_training
from reliability.killing import Ordeal, Precision

from gpt.config import GPTConfig
from training.command_line import config_to_yaml

pytestmark = pytest.mark.reliability

TRAIN = str(ROOT / "launch/train_gpt.py")


def start(config: GPTConfig, folder: Path, *options: str) -> "subprocess.Popen[str]":
    file = folder / "config.yaml"
    file.write_text(config_to_yaml(config))
    return subprocess.Popen(
        [sys.executable, "-u", TRAIN, "--config", str(file), "--output_dir", "run", *options],
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
    assert errors.endswith(f"{TRAIN} --config run/config.yaml --output_dir run --resume\n")
    _, *arguments = errors.split("go on with: ")[1].split()
    done = command(*arguments, "--training.max_steps", str(step + 3), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == list(range(1, step + 4))


@pytest.mark.parametrize(("precision", "processes", "kills"), [("fp32", 1, 3), ("bf16", 2, 2)])
def test_a_killed_run_ends_as_if_left_alone(tmp_path: Path, precision: Precision, processes: int, kills: int) -> None:
    """The same with 54 kills is part of `make reliability`."""
    outcome = Ordeal(precision=precision, processes=processes, kills=kills).endure(tmp_path)
    assert len(outcome.kills) == kills
    assert 2 * sum(kill.after_first_checkpoint for kill in outcome.kills) >= kills
    assert {kill.rank is None for kill in outcome.kills} == ({True} if processes == 1 else {True, False})
    assert outcome.same_weights
    assert outcome.same_metrics
    assert outcome.set_aside == 0
