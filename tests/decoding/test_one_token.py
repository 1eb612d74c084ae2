"""The step of one token of one sequence: what the model says, from the cache that all steps share."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from gpt_models import (
    BF16,
    GPT2,
    NARROW,
    OTHER_SHAPES,
    WIDE,
    assert_near,
    greedy,
    in_fp32,
    poisoned,
    random_model,
    with_backend,
)
from torch import Tensor

import decoding.one_token
from decoding.choices import Precision
from decoding.decoder import Decoder, convert
from decoding.one_token import LONG_CONTEXT, OneTokenStep, supports_one_token_step
from gpt.config import ModelConfig
from gpt.model import GPT


@torch.inference_mode()
def read(model: GPT, tokens_T: Tensor, prompt: int) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Logits after each token behind a prompt, (T, V), and what the cache then holds."""
    step, cache = OneTokenStep(model, {}), poisoned(model.new_cache())
    if prompt:
        model(tokens_T[None, :prompt], cache)
    logits = []
    for token in tokens_T[prompt:]:
        logits.append(step(token.view(1, 1), cache)[0, 0])
        cache.advance(1)
    return torch.stack(logits), [layer.read(len(tokens_T)) for layer in cache.layers]


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding.one_token.torch, "compile", lambda function, **options: function)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("tie_embeddings", [False, True], ids=["head", "tied"])
@pytest.mark.parametrize("qk_norm", [False, True], ids=["plain", "qk_norm"])
@pytest.mark.parametrize("num_kv_heads", [None, 2, 1])
@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary"])
def test_it_says_what_the_model_says_and_stores_what_it_stores(
    positions: str, num_kv_heads: int | None, qk_norm: bool, tie_embeddings: bool
) -> None:
    options = {"positions": positions, "num_kv_heads": num_kv_heads, "qk_norm": qk_norm}
    model = random_model(replace(NARROW, tie_embeddings=tie_embeddings, **options))
    tokens_T = torch.randint(model.vocab_size, (12,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        exact = model.new_cache()
        expected_TV = model(tokens_T[None], exact)[0]
    for merge in (False, True):
        logits_TV, stored = read(convert(model, "fp32", merge=merge), tokens_T, 5)
        assert_near(logits_TV, expected_TV[5:])
        for layer, (keys_BHSD, values_BHSD) in zip(exact.layers, stored, strict=True):
            assert_near(keys_BHSD, layer.read(12)[0])
            assert_near(values_BHSD, layer.read(12)[1])


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("merge", [False, True], ids=["apart", "merged"])
@pytest.mark.parametrize("shape", OTHER_SHAPES.values(), ids=OTHER_SHAPES)
def test_it_reads_the_shapes_of_other_models(shape: ModelConfig, merge: bool) -> None:
    model = random_model(shape)
    assert supports_one_token_step(model)
    tokens_T = torch.randint(model.vocab_size, (12,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected_TV = model(tokens_T[None])[0]
    logits_TV, _ = read(convert(model, "fp32", merge=merge), tokens_T, 0)
    assert_near(logits_TV, expected_TV, 2e-6)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("size", [NARROW, WIDE, GPT2], ids=["narrow", "wide", "GPT-2"])
@pytest.mark.parametrize("precision", ["bf16", "fp16", "int8"])
def test_it_rounds_nothing_but_weights_and_cache(precision: Precision, size: ModelConfig) -> None:
    model = convert(random_model(replace(size, num_kv_heads=2)), precision)
    tokens_T = torch.randint(model.vocab_size, (20,), generator=torch.Generator().manual_seed(1))
    logits_TV, _ = read(model, tokens_T, 0)
    assert logits_TV.dtype == torch.float32
    with torch.inference_mode():
        assert_near(logits_TV, in_fp32(model)(tokens_T[None])[0], 2 * BF16)


@pytest.fixture(params=["eager", pytest.param("inductor", marks=pytest.mark.nightly)])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(decoding.one_token.torch, "compile", with_backend(request.param))
    torch._dynamo.reset()
    yield request.param
    torch._dynamo.reset()


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("shape", [replace(NARROW, positions="rotary"), GPT2], ids=["rotary", "GPT-2"])
def test_it_is_compiled_once_for_all_blocks_and_caches(shape: ModelConfig, precision: Precision) -> None:
    model = convert(random_model(shape), precision)
    compiled, eager = Decoder(model, "compiled"), Decoder(in_fp32(model), "eager")
    step = compiled._compiled
    assert step is not None
    assert step._one_token is None, "on a CPU, torch's own products are as fast"
    step._one_token = OneTokenStep(model, {})
    torch._dynamo.utils.counters.clear()
    assert greedy(compiled, [[1, 2]], 4) == greedy(eager, [[1, 2]], 4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 6
    with torch.compiler.set_stance("fail_on_recompile"):
        assert greedy(compiled, [[5, 3, 8]], 30) == greedy(eager, [[5, 3, 8]], 30)
        assert not compiled._free[1][0].lengths_B.is_cuda
        compiled._free.clear()  # So that the next text takes another cache.
        assert greedy(compiled, [[4]], 9) == greedy(eager, [[4]], 9)


def test_only_parts_that_it_knows_are_read_by_it() -> None:
    class Other(GPT):
        has_native_step = False

    assert supports_one_token_step(random_model(NARROW))
    assert not supports_one_token_step(random_model(NARROW).double())
    model = random_model(NARROW)
    model.__class__ = Other
    assert not supports_one_token_step(model)
    model = random_model(NARROW)
    model.blocks[1].attention.out = torch.nn.Sequential(model.blocks[1].attention.out)
    assert not supports_one_token_step(model)


@pytest.mark.parametrize(("max_len", "split"), [(LONG_CONTEXT, False), (LONG_CONTEXT + 1, True)])
def test_only_a_long_context_is_summed_by_several_kernels(
    max_len: int, split: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}
    monkeypatch.setattr(
        decoding.one_token.torch, "compile", lambda function, **options: asked.update({function.__name__: options})
    )
    OneTokenStep(random_model(replace(NARROW, max_len=max_len)), {"tuned": True})
    assert asked["_attend"] == {"fullgraph": True, "options": {"tuned": True, "split_reductions": split}}
    assert asked["_down"] == {"fullgraph": True, "options": {"tuned": True}}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
def test_a_token_takes_six_kernels_a_block_and_two_more(positions: str, precision: Precision) -> None:
    size = replace(WIDE, qk_norm=False, positions=positions)
    decoder = Decoder(convert(random_model(size).cuda(), precision), "compiled")
    greedy(decoder, [[1, 2]], 3)
    assert decoder._compiled is not None
    (graph,) = decoder._compiled._graphs.values()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
        graph._graph.replay()
        torch.cuda.synchronize()
    kernels = [event.name for event in trace.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert 0 < len(kernels) <= 2 + 6 * size.num_layers, kernels
