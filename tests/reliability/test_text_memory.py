"""A text of any size takes the same memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from helpers import ROOT, read_metrics
from reliability.text_memory import growth_of, in_a_fork, peak_of, write_text

from data.batches.windows import TextData, side_by_side
from data.config import TextConfig
from data.text import load_source
from gpt.config import ModelConfig
from gpt.model import GPT
from training.evaluation import mean_loss

MB = 2**20


@pytest.mark.ci
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


def test_an_evaluation_holds_no_more_than_a_batch_at_a_time() -> None:
    model = GPT(ModelConfig(num_layers=1, d_model=8, num_heads=1, d_ff=8, max_len=128), 257).eval()
    tokens_N = torch.zeros(60 * 64 * 128, dtype=torch.int32)
    logits = 4 * 64 * 128 * 257

    def evaluate() -> None:
        mean_loss(Accelerator(cpu=True), model, side_by_side(tokens_N, 128, 64))

    assert in_a_fork(lambda: growth_of(evaluate)) < 12 * logits


@pytest.mark.nightly
@pytest.mark.timeout(3000)
def test_a_gigabyte_is_tokenised_and_trained_on_in_one_and_a_half(tmp_path: Path) -> None:
    write_text(tmp_path / "text.txt", 10**9)
    options = {
        "data.source": "text.txt",
        "data.tokenizer": "bpe:8192",
        "data.validation_share": 0.01,
        "output_dir": "run",
        "tracking": "none",
        "training.max_steps": 20,
        "training.log_interval": 10,
        "training.eval_tokens": 10_000,
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
