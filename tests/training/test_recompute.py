"""What is computed twice changes no number, and is computed twice in training alone."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import OF_GPT2
from seq2seq_models import small_config
from torch import Tensor, nn

from data.tokenizers.vocabulary import PAD
from gpt.config import GPTConfig
from gpt.model import GPT
from layers import MultiHeadAttention
from layers.block import Block
from seq2seq.model import EncoderDecoder
from training.recompute import Recompute, recompute_in_training
from training.runtime.errors import InputError

VOCAB = 11


def gpt(config: GPTConfig) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return GPT(config.model, VOCAB), (torch.arange(2 * 9).view(2, 9) % VOCAB,)


def gpt_as_gpt2(config: GPTConfig) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return GPT(replace(config.model, head_dim=4, **OF_GPT2), VOCAB), gpt(config)[1]


def encoder_decoder(config: GPTConfig) -> tuple[nn.Module, tuple[Tensor, ...]]:
    tokens_BS = 4 + torch.arange(2 * 6).view(2, 6) % (VOCAB - 4)
    tokens_BS[0, 4:] = PAD
    shape = replace(small_config().model, num_layers=2, dropout=0.2)
    return EncoderDecoder(shape, VOCAB), (tokens_BS, tokens_BS.flip(1)[:, :4])


def drawn(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return model


def outcome(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Logits, and the gradients of all parameters."""
    torch.manual_seed(7)
    logits_BTV = model(*inputs)
    torch.rand(3)
    logits_BTV.square().sum().backward()
    return {"": logits_BTV.detach()} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("make", [gpt, gpt_as_gpt2, encoder_decoder])
@pytest.mark.parametrize(("what", "counted"), [("blocks", Block), ("attention", MultiHeadAttention)])
def test_a_part_is_computed_twice_to_the_same_bits(
    config: GPTConfig,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[GPTConfig], tuple[nn.Module, tuple[Tensor, ...]]],
    what: Recompute,
    counted: type[nn.Module],
) -> None:
    calls: Counter[int] = Counter()
    original = counted.forward

    def counting(module: nn.Module, *arguments: Any, **options: Any) -> Tensor:
        calls[id(module)] += 1
        result: Tensor = original(module, *arguments, **options)
        return result

    monkeypatch.setattr(counted, "forward", counting)
    (model, inputs), (other, _) = make(config), make(config)
    plain = outcome(drawn(model), inputs)
    number = len(calls)
    assert set(calls.values()) == {1}
    keys = list(other.state_dict())
    recompute_in_training(drawn(other), what)
    calls.clear()
    again = outcome(other, inputs)
    assert list(calls.values()) == number * [2]
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    assert list(other.state_dict()) == keys
    calls.clear()
    other.eval()(*inputs).sum().backward()
    assert set(calls.values()) == {1}


def test_a_model_without_blocks_has_nothing_to_recompute() -> None:
    with pytest.raises(InputError, match=r"training\.recompute is blocks, and a Linear has none: use none"):
        recompute_in_training(nn.Linear(2, 2), "blocks")
    recompute_in_training(nn.Linear(2, 2), "none")
