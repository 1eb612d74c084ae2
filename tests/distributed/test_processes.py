"""Real processes over gloo: more of them make a step faster, never different."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, command, read_metrics, with_training

from gpt.config import GPTConfig
from gpt.trainer import train_gpt
from training.command_line import config_to_yaml

pytestmark = pytest.mark.distributed

ENVIRONMENT = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def torchrun(processes: int) -> list[str]:
    return ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", free_port()]


def write(config: GPTConfig, folder: Path) -> Path:
    file = folder / "config.yaml"
    file.write_text(config_to_yaml(config))
    return file


@pytest.fixture
def exact(config: GPTConfig) -> GPTConfig:
    """20 steps in fp64 without dropout: what is left to differ is a mistake."""
    config = with_training(config, precision="fp64", max_steps=20, eval_interval=10)
    return replace(config, model=replace(config.model, dropout=0.0))


@pytest.mark.parametrize(("optimizer", "accumulation_steps"), [("adamw", 1), ("muon", 1), ("adamw", 3), ("muon", 2)])
def test_two_processes_give_the_losses_of_one(
    exact: GPTConfig, tmp_path: Path, optimizer: Any, accumulation_steps: int
) -> None:
    exact = replace(exact, optimizer=replace(exact.optimizer, name=optimizer))
    train_gpt(exact, output_dir=tmp_path / "one")
    file = write(with_training(exact, accumulation_steps=accumulation_steps), tmp_path)
    done = command(
        *torchrun(2), ROOT / "launch/train_gpt.py", "--config", file, "--output_dir", "two", cwd=tmp_path, **ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("device      cpu, 2 processes, 1 threads each, fp64") == 1
    one, two = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two")
    assert len(one) == len(two) == 20
    for a, b in zip(one, two, strict=True):
        assert a["tokens"] == b["tokens"]
        assert b["train_loss"] == pytest.approx(a["train_loss"], abs=1e-8, rel=0)
        assert b.get("val_loss") == (pytest.approx(a["val_loss"], abs=1e-8, rel=0) if "val_loss" in a else None)


def test_a_run_can_change_its_number_of_processes_on_the_way(exact: GPTConfig, tmp_path: Path) -> None:
    train_gpt(exact, output_dir=tmp_path / "one")
    train_gpt(with_training(exact, max_steps=20, eval_interval=0, checkpoint_interval=10), output_dir=tmp_path / "two")
    for link in ("last", "best"):
        (tmp_path / "two/checkpoints" / link).unlink()
    for file in (tmp_path / "two/checkpoints/step-00000020").iterdir():
        file.unlink()
    done = command(
        *torchrun(2),
        ROOT / "launch/train_gpt.py",
        *("--config", write(exact, tmp_path), "--output_dir", "two", "--resume"),
        cwd=tmp_path,
        **ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    assert "resuming    after step 10" in done.stdout
    for a, b in zip(read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two"), strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], abs=1e-8, rel=0)


@pytest.mark.reliability
@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.nightly)])
def test_several_processes_resume_to_the_bit(config: GPTConfig, tmp_path: Path, processes: int) -> None:
    file = write(with_training(config, batch_size=12), tmp_path)
    train = [*torchrun(processes), ROOT / "launch/train_gpt.py", "--config", file]
    for folder in ("whole", "run"):
        done = command(*train, "--output_dir", folder, cwd=tmp_path, **ENVIRONMENT)
        assert done.returncode == 0, done.stderr
    (tmp_path / "run/checkpoints/step-00000012/state.json").unlink()
    done = command(*train, "--output_dir", "run", "--resume", cwd=tmp_path, **ENVIRONMENT)
    assert "resuming    after step 10" in done.stdout, done.stderr
    model = "checkpoints/last/model.safetensors"
    assert (tmp_path / "whole" / model).read_bytes() == (tmp_path / "run" / model).read_bytes()


def test_accelerate_launch_with_a_file_starts_real_processes(config: GPTConfig, tmp_path: Path) -> None:
    done = command(
        *("-m", "accelerate.commands.launch", "--config_file", ROOT / "accelerate_config.yaml", "--num_processes", "2"),
        *("--main_process_port", free_port(), ROOT / "launch/train_gpt.py"),
        *("--config", write(config, tmp_path), "--output_dir", "run"),
        cwd=tmp_path,
        CUDA_VISIBLE_DEVICES="",
    )
    assert done.returncode == 0, done.stderr
    assert "device      cpu, 2 processes" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output_dir", "run"], "error: run already holds a run"),
        (["--data.source", "nowhere"], "error: data.source nowhere does not exist"),
    ],
)
def test_an_error_is_said_once_and_nobody_hangs(
    config: GPTConfig, tmp_path: Path, options: list[str], message: str
) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    train = [*torchrun(2), ROOT / "launch/train_gpt.py", "--config", write(config, tmp_path), *options]
    done = command(*train, cwd=tmp_path, **ENVIRONMENT)
    assert done.returncode != 0
    assert done.stderr.count(message) == 1


@pytest.mark.reliability
def test_sigterm_to_the_launcher_stops_all_processes_with_a_checkpoint(config: GPTConfig, tmp_path: Path) -> None:
    file = write(with_training(config, max_steps=100_000, eval_interval=0, checkpoint_interval=0), tmp_path)
    arguments = [*torchrun(2), ROOT / "launch/train_gpt.py", "--config", file, "--output_dir", "run"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | ENVIRONMENT
    with subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step "):
                break
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert errors.count("stopped: saved step") == 1
    assert (tmp_path / "run/checkpoints/last/manifest.json").exists()
