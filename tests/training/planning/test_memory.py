"""Memory by formula."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import OF_GPT2, with_training
from torch import Tensor, nn

from data.config import PairConfig, TextConfig
from gpt.config import GPTConfig
from gpt.model import GPT
from seq2seq.config import ModelConfig as PairModel
from seq2seq.config import Seq2SeqConfig
from seq2seq.model import EncoderDecoder
from seq2seq.task import Seq2SeqTask
from training.config.sections import TrainingConfig
from training.loss import LossModel
from training.planning.memory import (
    ACTIVATIONS,
    AT_WORK,
    BY_ALLOCATOR,
    COMES_AND_GOES,
    expected_bytes,
    largest_micro_batch,
)
from training.task import batches_vary, padded_length, tokens_at_once


def test_what_weights_cost_is_the_formula_of_its_words(config: GPTConfig) -> None:
    model = GPT(config.model, 30)
    weights = sum(p.numel() for p in model.parameters())
    matrices = sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2)
    found = expected_bytes(model, config, "bf16", 100)
    assert found["weights"] == found["gradients"] == 4 * weights
    assert found["optimizer"] == 4 * (2 * weights - matrices)
    assert found["copies of weights"] == 2 * (matrices + 30 * config.model.d_model)
    assert found["logits"] == 3 * 4 * 100 * 30
    parts = {"weights", "copies of weights", "gradients", "optimizer", ACTIVATIONS, AT_WORK, "logits"}
    assert found.keys() == parts | {"allocator"}
    comes_and_goes = sum(found[name] for name in parts - {"weights", "optimizer"})
    assert found["allocator"] == pytest.approx(BY_ALLOCATOR * comes_and_goes, abs=1)
    assert expected_bytes(model, config, "bf16", 100, on_gpu=True).keys() == parts
    assert expected_bytes(model, with_training(config, ema_decay=0.9), "fp32", 1)["average"] == 4 * weights
    assert expected_bytes(model, config, "fp64", 1)["gradients"] == 8 * weights
    large = GPT(config.model, 100_000)
    assert expected_bytes(large, config, "fp32", 10_000)["logits"] == 3 * 2**28, "the loss is computed in chunks"


def test_batches_of_pairs_count_with_their_padding_and_leave_more_holes() -> None:
    pairs = Seq2SeqConfig(data=PairConfig(max_length=40), training=TrainingConfig(batch_size=64, max_steps=1))
    data = Seq2SeqTask(pairs).data
    assert batches_vary(data)
    longest = data.training_batch(0, 64).targets_BT.size(1)
    assert padded_length(data, 64) == longest > 1.5 * tokens_at_once(data)
    model = EncoderDecoder(pairs.model, 30)
    alike, varying = (expected_bytes(model, pairs, "fp32", 640, varying=varying) for varying in (False, True))
    assert varying["allocator"] / alike["allocator"] == pytest.approx(0.5 / BY_ALLOCATOR, abs=0.001)
    in_bf16 = expected_bytes(model, pairs, "bf16", 640, varying=True)
    assert in_bf16["allocator"] == pytest.approx(0.9 * sum(in_bf16[name] for name in COMES_AND_GOES), abs=1)
    assert expected_bytes(model, pairs, "bf16", 640, varying=True, on_gpu=True).keys().isdisjoint({"allocator"})


def test_what_is_computed_twice_is_not_kept(config: GPTConfig) -> None:
    model, saved = GPT(replace(config.model, num_layers=6), 30), {}
    for what in ("none", "attention", "blocks"):
        saved[what] = expected_bytes(model, with_training(config, recompute=what), "fp32", 100)[ACTIVATIONS]
    assert saved["none"] > saved["attention"] > saved["blocks"]


@pytest.mark.parametrize(
    ("precision", "shape"),
    [
        ("fp32", {}),
        ("bf16", {"dropout": 0.0, "num_kv_heads": 1}),
        ("fp32", {"positions": "sinusoidal", "qk_norm": False, "dropout": 0.0, "tie_embeddings": True}),
        ("bf16", {"positions": "learned", "num_layers": 3}),
        ("fp32", {"pairs": True, "num_layers": 2}),
        ("fp32", {**OF_GPT2, "dropout": 0.0}),
        ("bf16", {**OF_GPT2, "activation": "gelu_tanh"}),
        ("fp32", {"head_dim": 32, "num_kv_heads": 2, "dropout": 0.0}),
        ("bf16", {"head_dim": 8, "attention_bias": True, "feed_forward_bias": True}),
        ("bf16", {**OF_GPT2, "pairs": True, "head_dim": 32, "num_layers": 2}),
        ("fp32", {"packing": "documents", "dropout": 0.0, "num_kv_heads": 2, "num_heads": 8, "num_layers": 6}),
        ("bf16", {"packing": "documents", "dropout": 0.0, "d_model": 32, "d_ff": 48}),
    ],
)
def test_the_formula_is_what_autograd_keeps(config: GPTConfig, precision: str, shape: dict[str, Any]) -> None:
    sizes: dict[str, Any] = {"d_model": 64, "num_heads": 4, "d_ff": 160, "max_len": 64, "dropout": 0.1} | shape
    config = replace(config, data=replace(config.data, packing=sizes.pop("packing", "joined"), tokenizer="bytes"))
    if sizes.pop("pairs", False):
        pairs = Seq2SeqConfig(model=PairModel(**sizes), training=config.training)
        model: nn.Module = EncoderDecoder(pairs.model, 64)
        config = replace(config, model=pairs.model)
    else:
        config = replace(config, model=replace(config.model, **sizes))
        model = GPT(config.model, 64)
    model.set_sample_seeds(torch.arange(16))
    tokens_BT = torch.randint(5, 64, (16, 64))
    inputs = (tokens_BT, tokens_BT) if isinstance(model, EncoderDecoder) else (tokens_BT,)
    inputs += (torch.arange(64).expand(16, -1) % 20,) if config.is_masked else ()
    kept: dict[int, Tensor] = {}
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.untyped_storage().data_ptr(), t), id),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        loss = LossModel(model)(*inputs, tokens_BT)
    assert loss.isfinite()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    bytes_kept = sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in weights)
    parts = expected_bytes(model, config, precision, tokens_BT.numel(), length=64)
    expected = parts[ACTIVATIONS] + parts["copies of weights"] + parts["logits"] / 3
    assert expected == pytest.approx(bytes_kept, rel=0.08)


@pytest.mark.parametrize(("length", "heads"), [(64, 1), (60, 4)])
def test_on_a_gpu_a_mask_is_kept_by_each_layer(config: GPTConfig, length: int, heads: int) -> None:
    """And keys and values for each head: a kernel that takes a mask takes no groups."""
    sizes = {"num_layers": 3, "d_model": 32, "num_heads": 4, "num_kv_heads": 1, "max_len": 64, "dropout": 0.0}
    config = replace(config, model=replace(config.model, **sizes))
    answers = TextConfig(source="a.jsonl", prompt_column="prompt", answer_column="answer")
    plain, masked = (
        expected_bytes(GPT(config.model, 30), replace(config, data=data), "bf16", 640, length=length, on_gpu=True)
        for data in (TextConfig(), answers)
    )
    repeated = 2 * (2 * 32 - 8)
    assert masked[ACTIVATIONS] - plain[ACTIVATIONS] == 640 * (length + 3 * (2 * heads * length + repeated))
    assert plain.keys() == masked.keys()


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("recompute", ["none", "blocks"])
def test_the_largest_micro_batch_is_the_last_that_fits(config: GPTConfig, on_gpu: bool, recompute: str) -> None:
    config = with_training(config, batch_size=64, recompute=recompute)
    model = GPT(config.model, 30)

    def needed(sequences: int) -> int:
        return sum(expected_bytes(model, config, "fp32", 16 * sequences, on_gpu=on_gpu).values())

    def largest(free: int) -> int:
        return largest_micro_batch(model, config, "fp32", 16, free, on_gpu=on_gpu)

    for sequences in (1, 2, 7, 63):
        assert largest(needed(sequences)) == largest(needed(sequences + 1) - 1) == sequences
        assert needed(sequences) < needed(sequences + 1)
    assert largest(needed(1) - 1) == 0
    assert largest(2**50) == 64, "a batch has no more"


def test_shards_divide_what_is_kept_of_weights_and_not_what_is_gathered(config: GPTConfig) -> None:
    model, config = GPT(config.model, 30), with_training(config, ema_decay=0.9)
    one, four = (expected_bytes(model, config, "fp32", 16, shards=shards) for shards in (1, 4))
    for part in ("weights", "gradients", "optimizer", "average"):
        assert four[part] == one[part] / 4
    assert four[ACTIVATIONS] == one[ACTIVATIONS]
    outside = sum(p.numel() for part in (model.embedding, model.norm, model.head) for p in part.parameters())
    assert isinstance(model.head, nn.Linear)
    block = sum(p.numel() for p in model.blocks[0].parameters())
    assert four["gathered"] == 2 * 4 * (outside + 2 * block)
    assert "gathered" not in one
