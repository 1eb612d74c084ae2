"""A text of any size takes the same memory."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, read_metrics
from reliability.text_memory import growth_of, in_a_fork, peak_of, write_text

from data.config import TextConfig
from data.text import load_source
from data.windows import TextData

MB = 2**20
PROCESS = 700 * MB
"""What a training holds whatever its text is: torch, the loop, a model of two small layers."""


@pytest.mark.parametrize("tokenizer", ["characters", "bytes"])
def test_a_text_is_not_held(tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    write_text(tmp_path / "text.txt", 60 * MB)

    def train() -> None:
        config = TextConfig(source=str(tmp_path / "text.txt"), tokenizer=tokenizer)
        text = TextData(load_source(config), context=256, seed=1, data=config)
        for step in range(200):
            text.training_batch(32 * step, 32)
        next(iter(text.validation_batches(32)))

    assert 0 < in_a_fork(lambda: growth_of(train)) < 60 * MB


@pytest.mark.nightly
@pytest.mark.timeout(3000)
def test_a_gigabyte_is_trained_on_in_less_memory_than_a_tenth_of_what_its_tokens_took(tmp_path: Path) -> None:
    write_text(tmp_path / "text.txt", 10**9)
    options = {
        "data.source": "text.txt",
        "data.tokenizer": "bpe:8192",
        "output_dir": "run",
        "tracking": "none",
        "training.max_steps": 20,
        "training.eval_tokens": 10_000,
        "training.eval_batch_size": 8,
        "model.num_layers": 2,
        "model.d_model": 64,
        "model.num_heads": 2,
        "model.d_ff": 128,
        "model.max_len": 256,
    }
    arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    environment = {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, str(ROOT / "launch/train_gpt.py"), *arguments]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, text=True) as process:
        peak = peak_of(process)
    assert process.returncode == 0
    assert len(read_metrics(tmp_path / "run")) >= 2
    print(f"anonymous memory: {peak / MB:,.0f} MiB at most")
    assert peak < 1500 * MB
