"""Several trainings in one Python session, as in a notebook."""

import io
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from helpers import ROOT, command, read_metrics, with_training

from gpt.config import GPTConfig
from gpt.task import train_gpt
from training.config.command_line import config_to_yaml
from training.storage.run_folder import RunFolder


def result(run: Path) -> tuple[list[dict[str, Any]], bytes]:
    """What a run wrote, but for its times."""
    times = {"seconds", "tokens_per_second"}
    lines = [{key: value for key, value in line.items() if key not in times} for line in read_metrics(run)]
    return lines, (run / "checkpoints/last/model.safetensors").read_bytes()


def test_each_training_of_a_session_ends_as_in_a_process_of_its_own(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text(config_to_yaml(with_training(config, max_steps=3, eval_interval=0)))
    alone = {}
    for precision in ("fp32", "bf16"):
        options = ["--config", "config.yaml", "--training.precision", precision, "--output_dir", precision]
        done = command(ROOT / "launch/train_gpt.py", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        alone[precision] = result(tmp_path / precision)
    assert alone["fp32"] != alone["bf16"]

    def train(name: str, precision: Any, **changes: Any) -> tuple[list[dict[str, Any]], bytes]:
        asked = with_training(config, max_steps=3, eval_interval=0, precision=precision, **changes)
        train_gpt(asked, output_dir=tmp_path / name)
        return result(tmp_path / name)

    assert train("first", "fp32") == alone["fp32"]
    assert train("second", "bf16") == alone["bf16"]
    accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
    with accelerator.accumulate():  # Of another program in this session; its next step is not one.
        assert not accelerator.sync_gradients
    assert train("third", "fp32") == alone["fp32"]
    for stream in ("stdout", "stderr"):  # A notebook's have no descriptor.
        monkeypatch.setattr(sys, stream, io.StringIO())
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(train, "fourth", "bf16").result() == alone["bf16"]


@pytest.mark.parametrize("program", ["", "-c", "/lib/ipykernel_launcher.py"])
def test_in_a_session_a_run_says_what_to_call_to_go_on(
    program: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.argv", [program])
    said = RunFolder(tmp_path / "run").resume_command
    assert said == f"the same call with output_dir={str(tmp_path / 'run')!r} and resume=True"
