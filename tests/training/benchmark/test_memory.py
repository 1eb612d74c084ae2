"""Memory by formula, and as it is watched."""

import time

import pytest
import torch
from helpers import with_training

from gpt.config import GPTConfig
from gpt.model import GPT
from training.benchmark.memory import ACTIVATIONS, CardMemory, MemoryPeak, expected_bytes


def test_the_formula_is_that_of_its_words(config: GPTConfig) -> None:
    model = GPT(config.model, 30)
    weights = sum(p.numel() for p in model.parameters())
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    matrices = sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2)
    found = expected_bytes(model, config, "bf16", 100)
    assert found == {
        "weights": 4 * weights,
        "weights in 16 bits": 2 * sum(layer.weight.numel() for layer in linear),
        "gradients": 4 * weights,
        "optimizer": 4 * (2 * weights - matrices),
        ACTIVATIONS: 100 * (2 * sum(layer.in_features + layer.out_features for layer in linear) + 4 * 4 * 30),
    }
    saved = {}
    for what in ("none", "attention", "blocks"):
        saved[what] = expected_bytes(model, with_training(config, recompute=what), "fp32", 100)[ACTIVATIONS]
    assert saved["none"] > saved["attention"] > saved["blocks"]
    of_block = sum(m.in_features + m.out_features for m in model.blocks[0].modules() if isinstance(m, torch.nn.Linear))
    assert saved["none"] - saved["blocks"] == 100 * 4 * (of_block - 2 * config.model.d_model)
    large = GPT(config.model, 100_000)
    assert expected_bytes(large, config, "fp32", 10_000)[ACTIVATIONS] < 10**10, "the loss is computed in chunks"
    assert expected_bytes(model, config, "fp64", 1)["gradients"] == 8 * weights


def test_a_cpus_peak_is_what_was_taken_at_once() -> None:
    peak = MemoryPeak(torch.device("cpu"), 0)
    large = torch.ones(2**26)  # 256 MiB
    del large
    peak.forget()
    middle = torch.ones(2**25)
    found = peak.bytes()
    assert found is None or 0.9 * middle.nbytes < found < 1.5 * middle.nbytes
    assert peak.reserved() is None


def test_the_memory_of_a_card_is_watched_while_another_process_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([900, 900, 400, 700])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (next(free, 850), 1000))
    with CardMemory() as memory:
        while memory.bytes != 500:
            time.sleep(0.01)
    assert memory.bytes == 500


def test_without_a_card_nothing_is_watched() -> None:
    with CardMemory() as memory:
        pass
    assert memory.bytes is None
