"""Where the decoder looks, as numbers and as a picture."""

from pathlib import Path

import pytest
import torch
from seq2seq_models import random_model

from data.tokenizers.symbols import Symbols
from data.tokenizers.vocabulary import Vocabulary
from layers import MultiHeadAttention
from seq2seq.attention_map import cross_attention, plot_attention
from seq2seq.model import EncoderDecoder

SOURCE, TARGET = [3, 4, 5, 6], [6, 5, 4]


def test_a_row_for_each_choice_sums_to_one(model: EncoderDecoder) -> None:
    layers = cross_attention(model, SOURCE, TARGET)
    assert [tuple(weights.shape) for weights in layers] == [(4, len(TARGET) + 1, len(SOURCE) + 2)] * 2
    for weights in layers:
        assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:-1]))
        assert (weights >= 0).all()


@torch.inference_mode()
def test_the_weights_are_those_that_attention_uses(model: EncoderDecoder) -> None:
    attention: MultiHeadAttention = model.decoder_blocks[1].cross_attention  # type: ignore[assignment, union-attr]
    seen: dict[str, torch.Tensor] = {}
    attention.out.register_forward_pre_hook(lambda _, inputs: seen.__setitem__("mixed", inputs[0]))
    attention.value.register_forward_hook(lambda _, inputs, output: seen.__setitem__("values", output))
    weights_HTS = cross_attention(model, SOURCE, TARGET)[1]
    values_HSD = seen["values"][0].view(len(SOURCE) + 2, -1, attention.head_size).transpose(0, 1)
    values_HSD = values_HSD.repeat_interleave(weights_HTS.size(0) // values_HSD.size(0), 0)
    mixed_TM = (weights_HTS @ values_HSD).transpose(0, 1).flatten(1)
    assert torch.allclose(mixed_TM, seen["mixed"][0], atol=1e-5)


def test_looking_leaves_nothing_behind() -> None:
    model = random_model()
    cross_attention(model, SOURCE, TARGET)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_picture_is_drawn(tmp_path: Path, suffix: str) -> None:
    vocabulary = Vocabulary(Symbols("abcdef", "characters"))
    model = random_model()
    output = tmp_path / f"attention{suffix}"
    plot_attention(cross_attention(model, SOURCE, TARGET), SOURCE, TARGET, vocabulary, output)
    assert output.stat().st_size > 10_000
