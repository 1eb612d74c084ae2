"""A terminal, and Accelerate's launcher, around the training command."""

import fcntl
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from helpers import ROOT, command

from gpt.config import GPTConfig
from training.config.command_line import config_to_yaml

TRAIN = ROOT / "launch/train_gpt.py"


@pytest.fixture
def arguments(config: GPTConfig, tmp_path: Path) -> list[str]:
    (tmp_path / "config.yaml").write_text(config_to_yaml(config))
    return [str(TRAIN), "--config", "config.yaml", "--output_dir", "run"]


@pytest.mark.ci
def test_a_terminal_shows_a_bar_with_loss_rate_speed_and_time_left(arguments: list[str], tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 150))
    arguments = [*arguments, "--training.max_steps", "150", "--training.eval_interval", "75"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, *arguments], cwd=tmp_path, env=environment, stdout=theirs, stderr=theirs
    ) as run:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end has closed
                break
            shown += part
        run.wait(timeout=60)
    text = shown.decode()
    assert run.returncode == 0, text
    assert re.search(r"\d+%\|.*\d+/150 \[\d\d:\d\d<.*loss \d\.\d{4}  lr \S+  [\d,]+ tokens/s", text)
    assert "validation loss" in text
    assert not re.search(r"\nstep \d+/150  loss", text), "no line per interval under a bar"


def take_terminal() -> None:
    """Make the standard input one's own terminal, whose signals count even where this suite was told to ignore them."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.ci
@pytest.mark.parametrize("line", ["trap : INT; {train} 2>&1 | tee log; exit ${{PIPESTATUS[0]}}", "exec {train}"])
def test_a_run_whose_reader_or_terminal_goes_first_saves(arguments: list[str], tmp_path: Path, line: str) -> None:
    ours, theirs = pty.openpty()
    train = shlex.join([sys.executable, *arguments, "--training.max_steps", "100000", "--training.log_interval", "1"])
    run = subprocess.Popen(
        ["bash", "-c", line.format(train=train)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=take_terminal,
    )
    try:
        os.close(theirs)
        shown = b""
        while b"step 5/" not in shown:  # The line of the validation loss, which a terminal shows too.
            shown += os.read(ours, 65536)
        if "tee" in line:
            os.write(ours, b"\x03")  # Ctrl-C, to all of the terminal's foreground
            assert run.wait(timeout=60) == 3
            assert "stopped: saved" not in (tmp_path / "log").read_text(), "tee went before"
        os.close(ours)
        assert run.wait(timeout=60) == 3
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    assert (tmp_path / "run/checkpoints/last").resolve().name.startswith("step-")


@pytest.mark.ci
def test_accelerate_launch_without_a_file(arguments: list[str], tmp_path: Path) -> None:
    done = command(
        "-m",
        "accelerate.commands.launch",
        *arguments,
        cwd=tmp_path,
        HF_HOME=str(tmp_path / "home"),
        OMP_NUM_THREADS="1",
    )
    assert done.returncode == 0, done.stderr
    assert "device      cpu, 1 process" in done.stdout
    assert f"{len(os.sched_getaffinity(0))} threads each" in done.stdout


@pytest.mark.ci
def test_accelerate_launch_with_our_file_and_its_code_for_bad_input(arguments: list[str], tmp_path: Path) -> None:
    launch = ["-m", "accelerate.commands.launch", "--config_file", ROOT / "accelerate_config.yaml"]
    done = command(*launch, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "device      cpu, 1 process" in done.stdout
    done = command(*launch, *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert "error: run already holds a run" in done.stderr
