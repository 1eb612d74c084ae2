"""Twenty steps of small frozen configurations give the losses that they always gave.

`python tests/reliability/test_golden.py [NAME …]` records them anew, where a change is meant to change numbers.
"""

import json
import platform
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data.config import PairConfig, TextConfig
from gpt.config import GPTConfig, ModelConfig
from gpt.task import train_gpt
from seq2seq.config import ModelConfig as Seq2SeqModelConfig
from seq2seq.config import Seq2SeqConfig
from seq2seq.task import train_seq2seq
from training.config.sections import OptimizerConfig, RunConfig, ScheduleConfig, TrainingConfig
from training.runtime.machine import cpu_name

RECORD = Path(__file__).with_name("golden.json")
TEXT = "".join(f"{i} times {i % 7} is {i * (i % 7)}.\n" for i in range(300))
FROZEN = GPTConfig(
    name="golden",
    tracking="none",
    model=ModelConfig(num_layers=2, d_model=32, num_heads=4, d_ff=48, max_len=32),
    training=TrainingConfig(max_steps=20, batch_size=8, precision="fp32", eval_interval=10, log_interval=1),
    optimizer=OptimizerConfig(name="adamw", learning_rate=3e-3),
    schedule=ScheduleConfig(name="cosine", warmup_steps=3, final_ratio=0.1),
)
CONFIGS: dict[str, RunConfig] = {
    "adamw, rotary": FROZEN,
    "muon, learned, grouped heads, accumulation": replace(
        FROZEN,
        model=replace(FROZEN.model, positions="learned", num_kv_heads=2, tie_embeddings=True),
        training=replace(FROZEN.training, accumulation_steps=3),
        optimizer=OptimizerConfig(name="muon", learning_rate=3e-3),
    ),
    "sinusoidal, dropout, average, wsd": replace(
        FROZEN,
        model=replace(FROZEN.model, positions="sinusoidal", dropout=0.2, qk_norm=False),
        training=replace(FROZEN.training, ema_decay=0.9),
        schedule=ScheduleConfig(name="wsd", warmup_steps=3),
    ),
    "encoder-decoder, both ends, dropout, label smoothing": Seq2SeqConfig(
        name="golden",
        tracking="none",
        model=Seq2SeqModelConfig(num_layers=2, d_model=32, num_heads=4, d_ff=48, max_len=32, dropout=0.2),
        data=PairConfig(task="reverse", val_samples=50),
        training=replace(FROZEN.training, label_smoothing=0.1),
        optimizer=OptimizerConfig(name="muon", learning_rate=3e-3),
        schedule=FROZEN.schedule,
    ),
}


def kind() -> dict[str, Any]:
    """What the last bit of a loss depends on."""
    capabilities = dict(getattr(torch.cpu, "get_capabilities", dict)())
    return {"cpu": cpu_name(), "capabilities": capabilities, "machine": platform.machine(), "torch": torch.__version__}


def losses(config: RunConfig, folder: Path) -> list[list[float]]:
    if isinstance(config, Seq2SeqConfig):
        run = train_seq2seq(config, output_dir=folder / "run").run
    else:
        assert isinstance(config, GPTConfig)
        (folder / "text.txt").write_text(TEXT)
        data = TextConfig(source=str(folder / "text.txt"))
        run = train_gpt(replace(config, data=data), output_dir=folder / "run").run
    lines = run.read_metrics()
    return [
        [line["train_loss"], line["grad_norm"], *([line["val_loss"]] if "val_loss" in line else [])] for line in lines
    ]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_losses_are_those_that_were_recorded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = json.loads(RECORD.read_text())[name]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    found = losses(CONFIGS[name], tmp_path)
    assert len(found) == 20
    if kind() == record["kind"]:
        assert found == record["losses"], "not equal to the last bit, on the same kind of CPU"
    for here, there in zip(found, record["losses"], strict=True):
        assert here == pytest.approx(there, abs=1e-4)


def main() -> None:
    """Record those that are named, or all."""
    recorded = json.loads(RECORD.read_text())
    for name in sys.argv[1:] or CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            recorded[name] = {"kind": kind(), "losses": losses(CONFIGS[name], Path(folder))}
    RECORD.write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
