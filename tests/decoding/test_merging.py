"""Joined matrices: the same model, once in memory."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from gpt_models import NARROW, assert_near, assert_reads_like, in_fp32, random_model, random_tokens
from seq2seq_models import random_model as random_encoder_decoder
from torch import nn

from decoding.choices import Precision
from decoding.decoder import Decoder, convert
from decoding.int8 import Int8Linear
from decoding.merging import Rows, merge_products
from decoding.native import NativeError, library
from decoding.targets import decode

GQA = replace(NARROW, num_kv_heads=2, qk_norm=True, positions="rotary", attention_bias=True, feed_forward_bias=True)


def bytes_of(model: nn.Module) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8"])
def test_a_merged_model_holds_the_same_weights_once(precision: Precision) -> None:
    plain = convert(random_model(GQA), precision, merge=False)
    merged = convert(random_model(GQA), precision)
    assert bytes_of(merged) == bytes_of(plain)
    assert sum(p.numel() for p in merged.parameters()) == sum(p.numel() for p in plain.parameters())
    for of_merged, of_plain in zip(merged.blocks, plain.blocks, strict=True):
        for name in (
            *("attention." + name for name in ("query", "key", "value")),
            "feed_forward.gate",
            "feed_forward.up",
        ):
            rows, layer = of_merged.get_submodule(name), of_plain.get_submodule(name)
            assert isinstance(rows, Rows)
            assert torch.equal(rows.weight, layer.weight), name
            assert rows.weight.is_contiguous()
            assert torch.equal(rows.bias, layer.bias)
            if isinstance(layer, Int8Linear):
                assert torch.equal(rows.scale_O, layer.scale_O)
            x_TM = torch.randn(3, GQA.d_model).to(merged.embedding.weight.dtype)
            assert torch.equal(rows(x_TM), layer(x_TM))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_merged_model_says_what_the_plain_one_says(precision: Precision) -> None:
    plain = convert(random_model(GQA), precision, merge=False)
    merged, tokens_BT = convert(random_model(GQA), precision), random_tokens(plain)
    calls: list[str] = []
    for name, module in merged.named_modules():
        if isinstance(module, Rows):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    tolerance = 1e-5 if precision == "fp32" else 2.0**-6
    with torch.inference_mode():
        assert_near(merged(tokens_BT), plain(tokens_BT).float(), tolerance)
    assert calls == [], "one product for three, and one for two"
    assert_reads_like(Decoder(merged, "eager"), in_fp32(plain), tolerance=1e-5 if precision == "fp32" else 2.0**-5)
    copied = deepcopy(merged)
    copied.blocks[0].attention.merged.weight.zero_()
    assert copied.blocks[0].attention.key.weight.count_nonzero() == 0, "the copy's rows are of the copy's matrix"
    assert merged.blocks[0].attention.key.weight.count_nonzero() > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_the_native_step_reads_merged_weights_to_the_bit(precision: Precision) -> None:
    try:
        library()
    except NativeError as error:
        pytest.skip(str(error))
    read = []
    for merge in (False, True):
        model = convert(random_model(GQA), precision, merge=merge)
        decoder = Decoder(model, "native")
        read.append(decoder.decode_step(random_tokens(model)[:, :9], decoder.take_cache(3)))
    assert torch.equal(*read)


def test_targets_of_a_merged_encoder_decoder_are_those_of_the_plain_one() -> None:
    plain, merged = random_encoder_decoder(num_kv_heads=2), random_encoder_decoder(num_kv_heads=2)
    merge_products(merged)
    crossing = merged.decoder_blocks[0].cross_attention
    assert (crossing.merged, type(crossing.query)) == (None, nn.Linear), "there the query alone is new at each step"
    assert merged.encoder_blocks[0].attention.merged is not None
    sources = [[3, 4, 5], [6], [7, 8, 3, 4]]
    for mode in ("eager", "auto"):
        found, expected = decode(merged, sources, mode=mode), decode(plain, sources, mode=mode)
        assert [target.tokens for target in found] == [target.tokens for target in expected]


def test_what_is_merged_or_unknown_stays_as_it_is() -> None:
    model = convert(random_model(GQA), "fp32")
    before = model.blocks[0].attention.merged
    merge_products(model)
    assert model.blocks[0].attention.merged is before
    other = random_model(GQA)
    other.blocks[0].feed_forward.up = nn.Sequential(other.blocks[0].feed_forward.up)
    merge_products(other)
    assert other.blocks[0].feed_forward.merged is None
    assert other.blocks[1].feed_forward.merged is not None
    mixed = random_model(GQA)
    mixed.blocks[0].attention.key.bias = None
    merge_products(mixed)
    assert mixed.blocks[0].attention.merged is None
