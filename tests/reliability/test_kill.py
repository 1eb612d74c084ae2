"""Runs that are killed or asked to stop from outside."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT, command, read_metrics, wait_for_step, with_training

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


def test_a_killed_run_ends_as_if_left_alone(config: GPTConfig, tmp_path: Path) -> None:
    config = with_training(config, max_steps=400, eval_interval=60, checkpoint_interval=7, log_interval=1)
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
    with start(config, tmp_path / "whole") as process:
        process.communicate(timeout=120)
    for step in (20, 200):
        with start(config, tmp_path / "killed", "--resume") as process:
            wait_for_step(process, step)
            time.sleep(0.05)
            process.kill()
    with start(config, tmp_path / "killed", "--resume") as process:
        output, _ = process.communicate(timeout=120)
    assert "resuming    after step" in output
    model = "run/checkpoints/last/model.safetensors"
    assert (tmp_path / "whole" / model).read_bytes() == (tmp_path / "killed" / model).read_bytes()
    whole, killed = read_metrics(tmp_path / "whole/run"), read_metrics(tmp_path / "killed/run")
    assert [(a["step"], a["train_loss"], a.get("val_loss")) for a in whole] == [
        (b["step"], b["train_loss"], b.get("val_loss")) for b in killed
    ]
