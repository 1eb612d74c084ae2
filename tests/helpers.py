"""Small things that several suites do to runs."""

import json
import os
import shlex
import socket
import subprocess
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import psutil
from forking import python

from training.config.sections import RunConfig

ROOT = Path(__file__).parents[1]


OF_GPT2: dict[str, Any] = {
    "positions": "learned",
    "qk_norm": False,
    "norm": "layer",
    "activation": "gelu",
    "attention_bias": True,
    "feed_forward_bias": True,
}
"""What makes a model's shape one like GPT-2's."""

Config = TypeVar("Config", bound=RunConfig)


def with_training(config: Config, **changes: Any) -> Config:
    """The configuration with other values in its training section."""
    return replace(config, training=replace(config.training, **changes))


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def command(
    *arguments: str | Path, cwd: Path, timeout: float = 300, stdin: str | None = None, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run Python with arguments, from a folder, and capture what it prints; `forking` says how, and for whom not."""
    return subprocess.run(
        [*python(), *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def python_file(folder: Path) -> Path:
    """What stands for `sys.executable` where a program starts it: a file that makes a fork."""
    file = folder / "python"
    if not file.exists():
        file.write_text(f'#!/bin/sh\nexec {shlex.join(python())} "$@"\n')
        file.chmod(0o755)
    return file


def free_port() -> str:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def torchrun(processes: int, *options: str) -> list[str]:
    """What comes before a script to start it in several processes, each of them a fork, too; options of torchrun."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", free_port()]
    return [*launcher, *options, "--no-python", *python(), "-u"]


def ranks(folder: Path) -> dict[int, psutil.Process]:
    """Those that a launcher has started from a folder: what is sent to one reaches the command that it stands for."""
    found = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.cwd() == str(folder.resolve()) and "RANK" in (environment := process.environ()):
                found[int(environment["RANK"])] = process
    return found


def wait_for_step(process: "subprocess.Popen[str]", step: int) -> None:
    """Read what a run prints until it has come to a step."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step ") and int(line.split()[1].split("/")[0]) >= step:
            return
    raise AssertionError(f"the run ended before step {step}")
