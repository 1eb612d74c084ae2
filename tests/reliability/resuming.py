"""Our own resume in the middle of an epoch, beside those of `accelerate_own.py`."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from reliability.accelerate_own import digest
from reliability.isolated import isolated
from reliability.killing import CONFIG, TEXT

from data.batches.windows import TextData
from data.config import TextConfig
from gpt.task import GPTTask, train_gpt
from training.storage.checkpoint import checkpoint_name
from training.task import Batch

STEPS, STOP = 60, 40
"""27 steps are an epoch."""


def train(folder: Path, dropout: float, *, resume: bool) -> tuple[list[str], str]:
    """Train in `folder`; return the samples in order, as digests, and that of the weights."""
    torch.set_num_threads(1)
    seen = []

    class WitnessData(TextData):
        def training_batch(self, first: int, count: int) -> Batch:
            batch = super().training_batch(first, count)
            seen.append(digest(batch))
            return batch

    class Witness(GPTTask):
        data_class = WitnessData

    training = replace(CONFIG.training, precision="fp32", max_steps=STEPS, eval_interval=0, checkpoint_interval=STOP)
    model, data = replace(CONFIG.model, dropout=dropout), TextConfig(source=str(folder / "text.txt"))
    config = replace(CONFIG, training=training, model=model, data=data)
    (folder / "text.txt").write_text(TEXT)
    run = train_gpt(config, task=Witness, output_dir=folder / "run", resume=resume).run
    return seen, digest([file.read_bytes() for file in sorted(run.checkpoints.glob("last/*.safetensors"))])


def compare_our_resume(folder: Path) -> list[dict[str, Any]]:
    """Without and with dropout: does a run that goes on in mid-epoch see the same samples and end the same?"""
    rows = []
    for dropout in (0.0, 0.1):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        order, weights = isolated(train, folder, dropout, resume=False)
        shutil.rmtree(folder / "run/checkpoints" / checkpoint_name(STEPS))
        found_order, found_weights = isolated(train, folder, dropout, resume=True)
        assert 0 < len(found_order) < len(order)
        row = {"recipe": "this project: --resume", "dropout": dropout}
        same = {"same_samples": order[-len(found_order) :] == found_order, "same_weights": weights == found_weights}
        rows.append(row | same)
    return rows
