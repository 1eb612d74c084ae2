"""Twenty steps of small frozen configurations give the losses that they always gave.

`python tests/reliability/test_golden.py` records them anew, where a change is meant to change numbers.
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

from gpt.benchmark import cpu_name
from gpt.config import DataConfig, GPTConfig, ModelConfig
from gpt.trainer import train_gpt
from training.config import OptimizerConfig, ScheduleConfig, TrainingConfig

pytestmark = pytest.mark.reliability

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
CONFIGS = {
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
}


def kind() -> dict[str, Any]:
    """What the last bit of a loss depends on."""
    capabilities = dict(getattr(torch.cpu, "get_capabilities", dict)())
    return {"cpu": cpu_name(), "capabilities": capabilities, "machine": platform.machine(), "torch": torch.__version__}


def losses(config: GPTConfig, folder: Path) -> list[list[float]]:
    (folder / "text.txt").write_text(TEXT)
    config = replace(config, data=DataConfig(source=str(folder / "text.txt")))
    run = train_gpt(config, output_dir=folder / "run").run
    lines = run.read_metrics()
    return [
        [line["train_loss"], line["grad_norm"], *([line["val_loss"]] if "val_loss" in line else [])] for line in lines
    ]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_losses_are_those_that_were_recorded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = json.loads(RECORD.read_text())
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    found = losses(CONFIGS[name], tmp_path)
    assert len(found) == 20
    if kind() == record["kind"]:
        assert found == record["losses"][name], "not equal to the last bit, on the same kind of CPU"
    for here, there in zip(found, record["losses"][name], strict=True):
        assert here == pytest.approx(there, abs=1e-4)


def main() -> None:
    recorded = {}
    for name, config in CONFIGS.items():
        with tempfile.TemporaryDirectory() as folder:
            recorded[name] = losses(config, Path(folder))
    RECORD.write_text(json.dumps({"kind": kind(), "losses": recorded}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
