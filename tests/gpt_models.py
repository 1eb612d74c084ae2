"""GPTs to decode from, and what every way of reading must say of them."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from decoding.decoder import Decoder
from decoding.generation import generate
from decoding.int8 import Int8Linear
from decoding.sampling import GREEDY
from gpt.config import ModelConfig
from gpt.model import GPT
from layers import KVCache

# Head sizes of 6, 32 and 84: none, two and five times the 16 numbers that the native step takes at once, and a rest.
NARROW = ModelConfig(num_layers=2, d_model=24, num_heads=4, d_ff=40, max_len=36)
WIDE = ModelConfig(num_layers=2, d_model=128, num_heads=4, d_ff=384, max_len=72)
LONG_HEADS = ModelConfig(num_layers=1, d_model=168, num_heads=2, d_ff=52, max_len=36)
# As GPT-2, with another head size and activation; as Qwen3 and Llama 3.1, with fewer key-value heads.
GPT2 = replace(
    NARROW, positions="learned", qk_norm=False, norm="layer", norm_eps=1e-2, activation="gelu_tanh",
    attention_bias=True, feed_forward_bias=True, embedding_scale=1.0, tie_embeddings=True,
)  # fmt: skip
OTHER_SHAPES = {
    "GPT-2": GPT2,
    "GPT-2, heads apart": replace(GPT2, head_dim=10, activation="gelu", norm_eps=1e-5, tie_embeddings=False),
    "Qwen3": replace(NARROW, num_kv_heads=2, head_dim=16, rope_theta=1e6, norm_eps=0.1, embedding_scale=1.0),
    "Llama": replace(NARROW, qk_norm=False, head_dim=8, rope_scaling="llama3:8:1:4:16", attention_bias=True),
}

BF16 = 2.0**-8
"""What rounding to bf16 changes in a number."""


def random_model(config: ModelConfig, vocab_size: int = 19) -> GPT:
    """A model none of whose weights is zero, so that no part of it is idle."""
    model = GPT(config, vocab_size).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 1.5 * config.d_model**-0.5, generator=generator).add_(0.01)
    return model


def random_tokens(model: GPT, texts: int = 3) -> Tensor:
    size = texts, model.config.max_len
    return torch.randint(model.vocab_size, size, generator=torch.Generator().manual_seed(1))


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    difference = (actual.float() - expected).abs().max().item() / expected.abs().max().item()
    assert difference <= tolerance


def poisoned(cache: KVCache) -> KVCache:
    """Full of what no token may see."""
    for layer in cache.layers:
        layer.keys_BHSD.fill_(100.0)
        layer.values_BHSD.fill_(3e4)
    return cache


COUNTS, PIECES = [5, 2, 7], [1, 1, 3, 1, 1, 10, 1, 1, 9, 1]


@torch.inference_mode()
def assert_reads_like(
    decoder: Decoder, whole: GPT, tolerance: float = 1e-5, pieces: Sequence[int] = PIECES, max_len: int | None = None
) -> None:
    """Ragged prompts and then pieces of three texts, up to the end of the longest one's cache."""
    tokens_BT = random_tokens(whole)
    expected_BTV, cache = whole(tokens_BT), poisoned(decoder.take_cache(3, max_len))
    rows_B, ends_B = torch.arange(3), torch.tensor(COUNTS)
    logits_BV = decoder.prefill(tokens_BT[:, : max(COUNTS)], cache, COUNTS)
    assert_near(logits_BV, expected_BTV[rows_B, ends_B - 1], tolerance)
    for piece in pieces:
        places_BT = ends_B[:, None] + torch.arange(piece)
        logits_BTV = decoder.decode_step(tokens_BT.gather(1, places_BT), cache)
        assert_near(logits_BTV, expected_BTV[rows_B[:, None], places_BT], tolerance)
        ends_B += piece
    assert cache.lengths == cache.lengths_B.tolist() == ends_B.tolist()


def in_fp32(model: GPT) -> GPT:
    """A model that computes in fp32 with the weights of one of fewer bits."""
    exact = deepcopy(model)
    for module in list(exact.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Int8Linear):
                linear = nn.Linear(child.weight.size(1), child.weight.size(0), bias=child.bias is not None)
                linear.weight.data = child.weight.float() * child.scale_O[:, None]
                if child.bias is not None:
                    linear.bias.data = child.bias
                setattr(module, name, linear)
    return exact.float()


def with_backend(backend: str) -> Any:
    compile_with = torch.compile
    return lambda function, **options: compile_with(function, backend=backend, **options)


def greedy(decoder: Decoder, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    steps = generate(decoder, prompts, max_new_tokens=count, sampling=GREEDY, seeds=range(len(prompts)))
    return torch.stack([chosen.tokens_B for chosen in steps], 1).tolist()
