"""Exit codes come through a real start of Python too.

All other commands of the suite are forks, but for the three here (2, 5, 143) and those of `test_launchers.py`:
three in a terminal (0, 3, 3), and what Accelerate's launcher starts.
"""

import re
import resource
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, free_port

from gpt.config import GPTConfig
from gpt.task import GPTTask
from training.config.command_line import config_to_yaml


def start(*arguments: str | Path, cwd: Path, **options: Any) -> "subprocess.Popen[str]":
    """Python, as a person starts it, from a folder that is not the project's."""
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *arguments], cwd=cwd, text=True, stdout=pipe, stderr=pipe, **options)


def test_bad_input_is_2(tmp_path: Path) -> None:
    process = start(ROOT / "launch/evaluate.py", "--checkpoint", "nothing", cwd=tmp_path)
    said, error = process.communicate(timeout=120)
    assert (process.returncode, said, error.count("\n")) == (2, "", 1), error
    assert error.startswith("error: nothing does not exist")


@pytest.mark.ci
def test_a_save_that_fails_is_5(config: GPTConfig, tmp_path: Path) -> None:
    GPTTask(config)  # Its tokens are in the cache then, and written by no process with the limit.
    (tmp_path / "config.yaml").write_text(config_to_yaml(config))
    train = [ROOT / "launch/train_gpt.py", "--config", "config.yaml", "--output_dir", "run"]
    small_files = (resource.RLIMIT_FSIZE, (8192, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    process = start(*train, cwd=tmp_path, preexec_fn=lambda: resource.setrlimit(*small_files))
    _, error = process.communicate(timeout=120)
    assert process.returncode == 5, error
    assert re.match("error: .*File too large", error), error
    assert error.count("\n") == 1


@pytest.mark.ci
def test_the_page_is_ended_by_its_signal(tmp_path: Path) -> None:
    process = start(ROOT / "demo/app.py", "--port", free_port(), cwd=tmp_path)
    try:
        assert process.stdout is not None
        url = next(found[1] for line in process.stdout if (found := re.match(r"open (http://\S+)", line)))
        with urllib.request.urlopen(url, timeout=60) as page:
            assert page.status == 200
        process.terminate()
        _, error = process.communicate(timeout=60)
        assert (process.returncode, error) == (143, "")
    finally:
        process.kill()
