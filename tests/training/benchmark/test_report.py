"""What is told of a GPU, which only a GPU measures: figures made by hand."""

from pathlib import Path
from typing import Any

import pytest

from training.benchmark.report import plot, show
from training.benchmark.turns import speeds

MEASURED: dict[str, Any] = {
    "source": "seed.yaml",
    "device": "NVIDIA H200",
    "threads": 8,
    "torch": "2.11.0",
    "python": "3.12.1",
    "processes": 1,
    "precision": "bf16",
    "parameters": 113_000_000,
    "batch_size": 32,
    "tokens_per_step": 16384.0,
    "flops_per_token": 7e8,
    "loss": 2.5,
    "products_per_second": 7e14,
    "printed_peak_flops": 989.4e12,
    "compile": "model",
    "compile_seconds": 41.5,
    "peak_bytes": 9 * 2**30,
    "reserved_bytes": 10 * 2**30,
    "expected_bytes": {"weights": 2**30, "activations, estimated": 7 * 2**30},
    "parts": {
        "steps": 3,
        "step_milliseconds": 40.0,
        "milliseconds": {"forward": 12.0, "backward": 24.0, "host gap": 0.5},
    },
    "expensive": [{"name": "gemm", "milliseconds": 60.0, "share": 0.5, "calls": 300}],
    "profile": "trace.json.gz",
    "baselines": [
        {
            "name": "nanoGPT",
            "tokens_per_second": 4e5,
            "slowest": 3.9e5,
            "fastest": 4.1e5,
            "turns": [3.9e5, 4.1e5],
            "loss": 2.4,
            "card_bytes": 12 * 2**30,
            "ratio": 1.25,
        }
    ],
    "until": {
        "loss": 1.8,
        "reached": True,
        "curve": [
            {"step": 250, "epoch": 5, "seconds": 9.5, "train_loss": 2.0, "val_loss": 1.9},
            {"step": 500, "epoch": 9, "seconds": 19.0, "train_loss": 1.8, "val_loss": 1.79},
        ],
        "wall_seconds": 70.0,
    },
}
FIGURES = MEASURED | speeds([4.9e5, 5.1e5, 5e5], MEASURED)


def test_all_is_told_in_tables(capsys: pytest.CaptureFixture[str]) -> None:
    show(FIGURES)
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in lines if line}
    assert rows["compile"] == "model, in 41.5 s before the rounds"
    assert rows["ours"] == "500,000 (490,000 to 510,000) 32.77 2.5000 10,240"
    assert rows["nanoGPT"] == "400,000 (390,000 to 410,000) 2.4000 12,288 1.25x"
    assert "350.0 TFLOP/s by the model's shape are 50.0% of the 700.0 TFLOP/s at which the" in lines
    assert "and 35.4% of the 989.4 TFLOP/s that its maker prints" in lines
    assert rows["backward"] == "24.00 60.0%"
    assert rows["host"] == "gap 0.50 1.2%"
    assert rows["together,"] == "by formula 8,192.0"
    assert rows["measured"] == "peak 9,216.0"
    assert rows["50.0%"] == "60.00 ms 300 calls gemm"
    assert lines[-1] == (
        "validation loss 1.7900 at step 500, after 19.0 s of training (70.0 s with evaluations and compiling)"
    )


def test_a_loss_that_was_not_reached(capsys: pytest.CaptureFixture[str]) -> None:
    curve = FIGURES["until"]["curve"]
    show(FIGURES | {"until": FIGURES["until"] | {"reached": False, "loss": 1.0, "curve": curve[::-1]}})
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("validation loss 1 was not reached: the best was 1.7900 at step 500, after 19.0 s of")
    assert said.endswith("; the last 1.9000")


def test_it_is_drawn(tmp_path: Path) -> None:
    plot(FIGURES, tmp_path / "figures.png")
    assert (tmp_path / "figures.png").stat().st_size > 10_000
    plot(FIGURES | {"parts": {}, "peak_bytes": None, "baselines": []}, tmp_path / "less.pdf")
    assert (tmp_path / "less.pdf").stat().st_size > 1000
