"""Measuring the loss of a split with a model that was loaded."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from gpt.config import GPTConfig
from gpt.task import GPTTask, LoadedGPT, measure_split
from training.runtime.errors import InputError


@torch.no_grad()
def test_each_split_is_measured_over_every_target_of_its_own(config: GPTConfig) -> None:
    task = GPTTask(config)
    model = task.model.eval()
    for parameter in model.parameters():
        parameter.normal_(0.0, 0.3)
    loaded = LoadedGPT(model, task.data.tokenizer, config, "raw", task.data.sha256)
    text = Path(config.data.source).read_text()
    cut, context, losses = len(text) * 9 // 10, config.model.max_len, []
    for split, own in (("train", text[:cut]), ("val", text[cut:])):
        ids = torch.from_numpy(task.data.tokenizer.encode(own)).long()
        windows = [ids[start : start + context + 1] for start in range(0, len(ids) - 1, context)]
        parts = [nn.functional.cross_entropy(model(w[None, :-1])[0], w[1:], reduction="sum") for w in windows]
        measured = measure_split(Accelerator(cpu=True), loaded, split)
        assert measured.loss == pytest.approx(float(sum(parts)) / (len(ids) - 1), rel=1e-5)
        assert measured.description.endswith(f"{len(ids) - 1:,} targets")
        losses.append(measured.loss)
    assert losses[0] != losses[1]
    Path(config.data.source).write_text(text[1:])
    with pytest.raises(InputError, match="is not the text that the run was trained on"):
        measure_split(Accelerator(cpu=True), loaded, "val")
