"""Folders of runs as a training leaves them, without one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from gpt.config import GPTConfig
from training.config.plain_yaml import dump_yaml
from training.config.sections import TrainingConfig
from training.storage.checkpoint import CheckpointStore
from training.storage.run_folder import RunFolder
from training.storage.state import Counters, SavedState

PLAIN = GPTConfig(training=TrainingConfig(max_steps=20))


def make_run(
    path: Path,
    losses: Sequence[float] = (2.0, 1.0),
    config: GPTConfig = PLAIN,
    *,
    text: str = "text",
    more: Mapping[str, Any] | None = None,
    tensors: Sequence[str] = ("model", "optimizer"),
    num_steps: int | None = None,
) -> RunFolder:
    """A run that was evaluated and saved after every tenth step, its best checkpoint that of the lowest loss.

    Args:
        path: The folder.
        losses: Of the evaluations.
        config: Of the run.
        text: What stands for the SHA-256 of its data.
        more: What else its configuration file says.
        tensors: The files of tensors in a checkpoint.
        num_steps: Of the whole run, as its checkpoints say.
    """
    run, counters = RunFolder(path), Counters()
    text_of_config = dump_yaml(asdict(config) | dict(more or {}))
    run.create(text_of_config)
    store = CheckpointStore(run.checkpoints, 10)
    for step, loss in zip(range(10, 1000, 10), losses, strict=False):
        counters = replace(counters, step=step, samples=step * 4, tokens=step * 32, seconds=step / 2)
        counters.val_loss = loss
        counters.judge(loss)
        run.append_metrics({"step": step, "epoch": step / 40, "tokens": counters.tokens, "val_loss": loss})
        state = SavedState(step, counters, {"model_type": "gpt", "data_sha256": text}, {"precision": "fp32"}, num_steps)
        store.save(
            step,
            tensors={name: {"weight": torch.full((4,), float(step))} for name in tensors},
            state=asdict(state),
            files={"config.yaml": text_of_config, "tokenizer.json": json.dumps({"symbols": "ab"})},
            best=counters.best_step == step,
        )
    return run


def spoil(file: Path) -> None:
    """Change one bit of a file."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
