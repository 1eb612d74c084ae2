"""Reading with a cache, in every mode and in every kind of numbers: what the whole model says of the whole text."""

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from gpt_models import (
    BF16,
    COUNTS,
    LONG_HEADS,
    NARROW,
    OTHER_SHAPES,
    WIDE,
    assert_near,
    assert_reads_like,
    greedy,
    in_fp32,
    poisoned,
    random_model,
    random_tokens,
    with_backend,
)
from torch import Tensor, nn

import decoding.compiled
import decoding.decoder
from decoding.compiled import CompiledStep, missing_for_compiling
from decoding.decoder import COMPILED_STEPS, MAX_TOKENS, Decoder, Mode, Precision, convert, resolved
from decoding.int8 import Int8Linear
from decoding.native import NativeError, library
from gpt.config import ModelConfig
from layers import KVCache
from training.runtime.errors import InputError

try:
    library()
    NATIVE = pytest.param("native")
except NativeError as error:
    NATIVE = pytest.param("native", marks=pytest.mark.skip(reason=str(error)))

SIZES = pytest.mark.parametrize("size", [NARROW, WIDE, LONG_HEADS], ids=["narrow", "wide", "long heads"])


@pytest.mark.parametrize("mode", ["eager", NATIVE])
@pytest.mark.parametrize("tie_embeddings", [False, True], ids=["head", "tied"])
@pytest.mark.parametrize("qk_norm", [False, True], ids=["plain", "qk_norm"])
@pytest.mark.parametrize("num_kv_heads", [None, 2, 1])
@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary"])
def test_reading_ragged_texts_in_pieces_equals_the_whole_texts(
    positions: str, num_kv_heads: int | None, qk_norm: bool, tie_embeddings: bool, mode: Mode
) -> None:
    options = {"positions": positions, "num_kv_heads": num_kv_heads, "qk_norm": qk_norm}
    model = random_model(replace(NARROW, tie_embeddings=tie_embeddings, **options))
    assert_reads_like(Decoder(model, mode), model)


@pytest.mark.parametrize("mode", ["eager", "compiled", NATIVE])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("shape", OTHER_SHAPES.values(), ids=OTHER_SHAPES)
def test_shapes_of_other_models_are_read_in_every_mode(
    shape: ModelConfig, precision: Precision, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding.compiled.torch, "compile", lambda function, **options: function)
    model = convert(random_model(shape), precision)
    decoder = Decoder(model, mode)
    assert decoder.mode == mode
    assert_reads_like(decoder, in_fp32(model), 1e-5 if precision == "fp32" else 8 * BF16)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("tie_embeddings", [False, True], ids=["head", "tied"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("mode", [NATIVE])
@SIZES
def test_the_native_step_rounds_nothing_but_weights_and_cache(
    size: ModelConfig, mode: Mode, precision: Precision, tie_embeddings: bool
) -> None:
    model = convert(random_model(replace(size, tie_embeddings=tie_embeddings, num_kv_heads=2)), precision)
    tolerance = 1e-5 if precision == "fp32" else 2 * BF16
    decoder, whole = Decoder(model, mode), in_fp32(model)
    # A prompt is read by torch, in bf16 throughout: start with an empty cache instead.
    tokens_BT = random_tokens(model)
    with torch.inference_mode():
        expected_BTV, cache = whole(tokens_BT), poisoned(decoder.take_cache(3, 33))
        read = [decoder.decode_step(part_BT, cache) for part_BT in tokens_BT[:, :33].split([10, 1, 1, 9, 1, 10, 1], 1)]
    assert_near(torch.cat(read, 1), expected_BTV[:, :33], tolerance)
    # The first layer's keys and values come from the weights alone: the nearest that the cache can hold.
    with torch.inference_mode():
        exact = whole.new_cache(3, 33)
        whole(tokens_BT[:, :33], exact)
    for stored_BHSD, exact_BHSD in zip(cache.layers[0].read(33), exact.layers[0].read(33), strict=True):
        if precision == "fp32":
            assert_near(stored_BHSD, exact_BHSD)
        else:
            assert (stored_BHSD == exact_BHSD.to(torch.bfloat16)).float().mean() > 0.99


@pytest.mark.parametrize("mode", ["eager", NATIVE])
@pytest.mark.parametrize("precision", ["bf16", "fp16", "int8"])
def test_fewer_bits_say_what_fp32_says_of_the_same_weights(precision: Precision, mode: Mode) -> None:
    model = convert(random_model(replace(NARROW, num_kv_heads=2)), precision)
    if (precision, mode) != ("fp16", "native"):
        assert_reads_like(Decoder(model, mode), in_fp32(model), 8 * BF16)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16), ("int8", torch.bfloat16)],
)
def test_a_converted_model_keeps_its_positions_exact(precision: Precision, dtype: torch.dtype) -> None:
    original = random_model(replace(NARROW, positions="rotary"))
    model = convert(deepcopy(original), precision)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model.new_cache().dtype == dtype
    assert model.rotary is not None
    assert original.rotary is not None
    assert torch.equal(model.rotary.cos_TD, original.rotary.cos_TD)
    layers = {type(module) for module in model.modules()} & {nn.Linear, Int8Linear}
    assert layers == {Int8Linear if precision == "int8" else nn.Linear}
    for name, weight in original.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        scale_O = getattr(module, "scale_O", None)
        if scale_O is None:
            assert torch.equal(module.weight, weight.to(dtype))
        else:
            error = (module.weight.float() * scale_O[:, None] - weight).abs()
            assert (error <= scale_O[:, None] * 0.501).all()


@pytest.mark.parametrize("counts", [None, [7, 7, 7], [7, 3, 4], [1, 6, 3], [2, 7, 5], [0, 7, 1], [3, 3, 3]])
@pytest.mark.parametrize("positions", ["learned", "rotary"])
@torch.inference_mode()
def test_a_prompt_read_in_chunks_is_read_whole(
    positions: str, counts: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(replace(NARROW, positions=positions))
    decoder, tokens_BT = Decoder(model, "eager"), random_tokens(model)
    ends_B = torch.tensor(counts or [7] * 3)
    monkeypatch.setattr(decoding.decoder, "CHUNK", 3)
    # No larger than the longest needs, though the padding of a last chunk stands beyond.
    cache = poisoned(decoder.take_cache(3, int(ends_B.max()) + 1))
    logits_BV = decoder.prefill(tokens_BT[:, :7], cache, counts)
    assert cache.lengths == ends_B.tolist()
    expected_BTV = model(tokens_BT)
    for row, end in enumerate(ends_B.tolist()):
        if end:
            assert_near(logits_BV[row], expected_BTV[row, end - 1])
    next_B1 = tokens_BT.gather(1, ends_B[:, None])
    assert_near(decoder.decode_step(next_B1, cache)[:, 0], expected_BTV[torch.arange(3), ends_B])


@torch.inference_mode()
def test_the_end_of_a_prompt_sees_all_of_its_last_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(NARROW)
    decoder, tokens_BT = Decoder(model, "eager"), random_tokens(model)
    monkeypatch.setattr(decoding.decoder, "CHUNK", 3)
    logits_BV = decoder.prefill(tokens_BT[:, :8], poisoned(decoder.take_cache(3)))
    assert_near(logits_BV, model(tokens_BT)[:, 7])


def test_the_last_block_computes_only_the_end_of_a_prompt() -> None:
    model = random_model(NARROW)
    decoder, tokens_BT = Decoder(model, "eager"), random_tokens(model)
    read = []
    for block in model.blocks:
        block.feed_forward.register_forward_pre_hook(lambda layer, inputs: read.append(inputs[0].size(1)))
    decoder.prefill(tokens_BT[:, :7], decoder.take_cache(3))
    assert read == [7, 1]


@pytest.fixture(params=["eager", NATIVE, "compiled"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Decoder]:
    """Every mode; torch.compile follows the step, and leaves out the compiler, which takes its time."""
    monkeypatch.setattr(decoding.decoder.torch, "compile", with_backend("eager"))
    torch._dynamo.reset()
    yield Decoder(random_model(replace(NARROW, num_kv_heads=2)), request.param)
    torch._dynamo.reset()


@torch.inference_mode()
def test_what_does_not_fit_into_the_cache_is_an_error_and_changes_nothing(decoder: Decoder) -> None:
    tokens_BT = random_tokens(decoder.model)
    cache = decoder.take_cache(3, 36)
    decoder.prefill(tokens_BT[:, :35], cache)
    with pytest.raises(ValueError, match="the cache holds 36 tokens of a sequence, 38 were asked for"):
        decoder.decode_step(tokens_BT[:, :3], cache)
    last_BV = decoder.decode_step(tokens_BT[:, 35:], cache)[:, 0]
    assert_near(last_BV, decoder.model(tokens_BT)[:, -1])
    stored = [layer.keys_BHSD.clone() for layer in cache.layers]
    with pytest.raises(ValueError, match="the cache holds 36 tokens of a sequence, 37 were asked for"):
        decoder.decode_step(tokens_BT[:, :1], cache)
    assert cache.lengths == cache.lengths_B.tolist() == [36] * 3
    assert all(torch.equal(layer.keys_BHSD, before) for layer, before in zip(cache.layers, stored, strict=True))


def test_threads_share_a_decoder_and_never_a_cache(decoder: Decoder) -> None:
    texts = [[[number + 1, 2, 3]] * (1 + number % 2) for number in range(4)]
    alone = [greedy(decoder, text, 12) for text in texts]
    held: list[KVCache] = []

    def take_and_give_back(_: int) -> None:
        for _ in range(300):
            cache = decoder.take_cache(2)
            assert all(other is not cache for other in held)
            held.append(cache)
            held.remove(cache)
            decoder.give_back(cache)

    before = sys.getswitchinterval()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda text: greedy(decoder, text, 12), texts)) == alone
        sys.setswitchinterval(1e-6)
        try:
            list(pool.map(take_and_give_back, range(4)))
        finally:
            sys.setswitchinterval(before)


@torch.inference_mode()
def test_more_tokens_than_the_native_step_takes_are_read_too(decoder: Decoder) -> None:
    tokens_BT = random_tokens(decoder.model, MAX_TOKENS + 1)
    cache = decoder.take_cache(MAX_TOKENS + 1)
    read = [decoder.decode_step(part_BT, cache) for part_BT in tokens_BT[:, :4].split([1, 2, 1], 1)]
    assert_near(torch.cat(read, 1), decoder.model(tokens_BT)[:, :4])


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
def test_a_compiled_step_is_made_once_and_uses_its_caches_again(
    backend: str, positions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding.decoder.torch, "compile", with_backend(backend))
    torch._dynamo.reset()
    model = random_model(replace(NARROW, num_kv_heads=2, positions=positions))
    decoder, eager = Decoder(model, "compiled"), Decoder(model, "eager")
    prompts = [[1, 2], [3, 4, 5, 6], [7]]
    assert greedy(decoder, prompts, 10) == greedy(eager, prompts, 10)
    with torch.compiler.set_stance("fail_on_recompile"):
        prompts = [[5] * 9, [6, 1], [8, 3, 2]]
        assert greedy(decoder, prompts, 10) == greedy(eager, prompts, 10)
        assert_reads_like(decoder, model)
    with torch.inference_mode():
        first, second = decoder.take_cache(3), decoder.take_cache(3)
        assert first is not second
        assert first.max_len == NARROW.max_len
        decoder.give_back(first)
        assert decoder.take_cache(2) is not first
        again = decoder.take_cache(3, 5)
        assert again is first
        assert again.lengths == again.lengths_B.tolist() == [0, 0, 0]
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("backend", "precision"),
    [
        ("eager", "fp32"),
        ("eager", "bf16"),
        ("eager", "int8"),
        pytest.param("inductor", "fp32", marks=pytest.mark.ci),
        pytest.param("inductor", "bf16", marks=pytest.mark.nightly),
        pytest.param("inductor", "int8", marks=pytest.mark.nightly),
    ],
)
def test_one_compiled_block_serves_all_blocks_and_any_number_of_sequences(
    backend: str, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding.decoder.torch, "compile", with_backend(backend))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = convert(random_model(NARROW), precision)
    compiled, eager = Decoder(model, "compiled"), Decoder(model, "eager")
    for batch_size in (1, 3):
        assert greedy(compiled, [[1, 2]] * batch_size, 3) == greedy(eager, [[1, 2]] * batch_size, 3)
    with torch.compiler.set_stance("fail_on_recompile"):
        for batch_size in range(1, 12):
            assert greedy(compiled, [[1, 2]] * batch_size, 3) == greedy(eager, [[1, 2]] * batch_size, 3)
    assert len(model.blocks) > 1
    # What comes before the blocks, a block, and what comes after them: for one sequence, and for several.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 6
    torch._dynamo.reset()


def test_one_thread_at_a_time_records_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    step = CompiledStep(random_model(NARROW))
    recording: list[KVCache] = []

    class Graph:
        def __init__(self, step: CompiledStep, cache: KVCache) -> None:
            recording.append(cache)
            time.sleep(0.01)
            assert recording == [cache]
            recording.remove(cache)

        def __call__(self, tokens_BT: Tensor) -> Tensor:
            return tokens_BT

    monkeypatch.setattr(step, "_on_gpu", True)
    monkeypatch.setattr(decoding.compiled, "_Graph", Graph)
    tokens_BT, caches = torch.zeros(1, 1), [step._model.new_cache() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert all(logits_BTV is tokens_BT for logits_BTV in pool.map(step, [tokens_BT] * 4, caches))
    assert set(step._graphs) == set(caches)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("texts", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@torch.inference_mode()
def test_a_step_recorded_as_a_cuda_graph_equals_the_model(precision: Precision, texts: int) -> None:
    model = convert(random_model(replace(WIDE, num_kv_heads=2)).cuda(), precision)
    decoder, eager = Decoder(model, "compiled"), Decoder(model, "eager")
    tokens_BT = random_tokens(model, texts).cuda()
    for _ in range(2):  # The second time with the cache, and the graph, of the first.
        cache, plain = decoder.take_cache(texts), eager.take_cache(texts)
        kept: list[tuple[Tensor, Tensor]] = []
        for reader, into in ((decoder, cache), (eager, plain)):
            reader.prefill(tokens_BT[:, :7], into, COUNTS[:texts])
        for token in range(7, 40):
            new_BT = tokens_BT[:, token : token + 1]
            kept.append((decoder.decode_step(new_BT, cache), eager.decode_step(new_BT, plain).float()))
        for recorded_BTV, expected_BTV in kept:  # None was overwritten by a later replay.
            assert_near(recorded_BTV, expected_BTV, 1e-4 if precision == "fp32" else 8 * BF16)
        decoder.give_back(cache)
    assert len(decoder._compiled._graphs) == 1
    assert (Decoder(model).mode, Decoder(model, steps=COMPILED_STEPS).mode) == ("eager", "compiled")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("fast_bf16", [False, True])
@pytest.mark.parametrize("mode", [NATIVE])
@torch.inference_mode()
def test_the_native_step_reads_prompts_where_torch_is_slow_at_bf16(
    mode: Mode, precision: Precision, fast_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding.decoder, "cpu_has_fast_bf16", lambda: fast_bf16)
    model = convert(random_model(WIDE), precision)
    decoder, tokens_BT = Decoder(model, mode), random_tokens(model)
    calls: list[int] = []
    model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    cache = decoder.take_cache(3)
    logits_BV = decoder.prefill(tokens_BT[:, :50], cache)
    natively = precision != "fp32" and not fast_bf16
    assert bool(calls) != natively
    if natively:
        again = decoder.take_cache(3)
        singles = [decoder.decode_step(tokens_BT[:, place : place + 1], again) for place in range(50)]
        assert torch.equal(logits_BV, singles[-1][:, 0]), "to the last bit, as any other reading of it"
        assert cache.lengths == [50] * 3
    with pytest.raises(ValueError, match="the cache holds 72 tokens of a sequence, 73 were asked for"):
        decoder.prefill(tokens_BT[:, :23], cache)
    assert cache.lengths == [50] * 3


GPU = torch.device("cuda", 0)


def with_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], triton: bool) -> None:
    monkeypatch.setattr(decoding.compiled, "find_spec", lambda name: object() if triton else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


def test_auto_is_compiled_for_long_texts_on_a_gpu_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, (8, 9), triton=True)
    assert resolved("auto", GPU, COMPILED_STEPS) == "compiled"
    assert resolved("auto", GPU, COMPILED_STEPS - 1) == resolved("auto", GPU, 0) == "eager"
    assert resolved("auto", torch.device("cpu"), COMPILED_STEPS) == "auto"
    for mode in ("eager", "compiled", "native"):
        assert resolved(mode, GPU, COMPILED_STEPS) == resolved(mode, GPU, 0) == mode


@pytest.mark.parametrize(
    ("capability", "triton", "reason"),
    [
        ((9, 0), False, "the package triton is not installed"),
        ((6, 1), True, "Triton wants compute capability 7.0, this GPU has 6.1"),
    ],
)
def test_where_nothing_can_be_compiled_auto_is_eager_and_compiled_an_error(
    capability: tuple[int, int], triton: bool, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpu(monkeypatch, capability, triton)
    assert resolved("auto", GPU, COMPILED_STEPS) == "eager"
    model = random_model(NARROW)
    monkeypatch.setattr(decoding.decoder, "missing_for_compiling", lambda device: missing_for_compiling(GPU))
    with pytest.raises(InputError, match=f"^there is no compiled step here: {reason}$"):
        Decoder(model, "compiled")
    assert missing_for_compiling(torch.device("cpu")) is None


def test_an_unknown_mode_is_an_error() -> None:
    with pytest.raises(InputError, match="mode must be one of auto, eager, compiled, native, got fast"):
        Decoder(random_model(NARROW), "fast")  # type: ignore[arg-type]
