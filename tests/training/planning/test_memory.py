"""Memory by formula."""

import torch
from helpers import with_training

from gpt.config import GPTConfig
from gpt.model import GPT
from training.planning.memory import ACTIVATIONS, expected_bytes


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
