"""The GPT in transformers: the same logits and the same text, and models that have no equivalent."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data.tokenizers.subwords import END_OF_TEXT, learn_subwords
from decoding.int8 import Int8Linear
from gpt.config import ModelConfig
from gpt.formats.to_transformers import to_transformers
from gpt.model import GPT
from layers import SwiGLU
from training.runtime.errors import InputError

SMALL = ModelConfig(num_layers=2, d_model=32, num_heads=4, d_ff=48, max_len=48)
VOCABULARY = 29


def random_model(config: ModelConfig, vocab_size: int = VOCABULARY) -> GPT:
    """A model none of whose weights is zero, in training mode, whose dropout must not come along."""
    model = GPT(replace(config, dropout=0.5), vocab_size)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator).add_(0.01)
    return model


def exported(model: GPT) -> Any:
    pytest.importorskip("transformers")
    return to_transformers(model)


def random_tokens(length: int) -> Tensor:
    return torch.randint(VOCABULARY, (2, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def likeliest_tokens(model: GPT, prompt: Sequence[int], count: int) -> list[int]:
    """Greedy text without a cache."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens


@pytest.mark.parametrize("tie_embeddings", [False, True])
@pytest.mark.parametrize("num_kv_heads", [None, 2, 1])
@pytest.mark.parametrize("qk_norm", [False, True])
@torch.no_grad()
def test_logits_and_greedy_text_are_the_same(qk_norm: bool, num_kv_heads: int | None, tie_embeddings: bool) -> None:
    config = replace(SMALL, qk_norm=qk_norm, num_kv_heads=num_kv_heads, tie_embeddings=tie_embeddings)
    ours = random_model(config)
    theirs = exported(ours)
    assert ours.training
    ours.eval()
    tokens = random_tokens(SMALL.max_len)
    expected = ours(tokens)
    assert (theirs(tokens).logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    prompt = tokens[:1, :5]
    written = theirs.generate(prompt, max_new_tokens=30, do_sample=False, use_cache=True)
    assert written[0].tolist() == likeliest_tokens(ours, prompt[0].tolist(), 30)


@torch.no_grad()
def test_norms_add_the_same_to_small_squares() -> None:
    ours = random_model(SMALL).eval()
    for name, parameter in ours.named_parameters():
        if name.endswith(("embedding.weight", "query.weight", "key.weight", "out.weight", "down.weight")):
            parameter.mul_(1e-3)
    tokens = random_tokens(SMALL.max_len)
    expected = ours(tokens)
    assert (exported(ours)(tokens).logits - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("qk_norm", [False, True])
def test_the_copy_is_ready_to_use_and_stands_alone(qk_norm: bool) -> None:
    ours = random_model(replace(SMALL, qk_norm=qk_norm)).to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    theirs = exported(ours)
    assert torch.equal(torch.get_rng_state(), state)
    assert not theirs.training
    assert theirs.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in theirs.parameters()} == {torch.bfloat16}
    assert theirs.generation_config.eos_token_id is None
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())


@torch.no_grad()
def test_a_vocabulary_of_subwords_gives_the_same_tokens_logits_and_end(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    texts = [f"{n} times {n % 7} is {n * (n % 7)} \u20ac, \u00e7a" for n in range(200)]
    tokenizer = learn_subwords(texts, 300, 10**6)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    # What looks like a special token is text here, and theirs where it is told so.
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), split_special_tokens=True
    )
    text = f"  7 times 9, \U0001f642\n\n{END_OF_TEXT} \u00e9"
    ids = theirs(text)["input_ids"]
    assert ids == tokenizer.encode_prompt(text)
    assert theirs.decode(ids, clean_up_tokenization_spaces=False) == tokenizer.decode(ids) == text
    assert theirs.convert_tokens_to_ids(END_OF_TEXT) == tokenizer.end_of_text
    ours = random_model(replace(SMALL, max_len=96), len(tokenizer)).eval()
    model = to_transformers(ours, tokenizer.end_of_text)
    expected = ours(torch.tensor([ids]))
    assert (model(torch.tensor([ids])).logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert tokenizer.end_of_text == 0
    model.lm_head.weight.zero_()  # All tokens are as likely, and the first one is taken.
    written = model.generate(torch.tensor([ids]), max_new_tokens=9, do_sample=False)
    assert written[0, len(ids) :].tolist() == [0], "it ends there"


GPT2 = replace(
    SMALL,
    positions="learned",
    norm="layer",
    norm_eps=1e-5,
    activation="gelu_tanh",
    qk_norm=False,
    attention_bias=True,
    feed_forward_bias=True,
    embedding_scale=1.0,
    tie_embeddings=True,
)


@pytest.mark.parametrize(
    ("config", "model_type"),
    [
        (replace(SMALL, head_dim=12, rope_theta=500.0, norm_eps=1e-3, attention_bias=True), "qwen3"),
        (replace(SMALL, head_dim=6, d_model=20, num_heads=3, num_kv_heads=1), "qwen3"),
        (replace(SMALL, qk_norm=False, head_dim=12, attention_bias=True, feed_forward_bias=True), "llama"),
        (replace(SMALL, qk_norm=False, rope_scaling="linear:4", embedding_scale=1.0, tie_embeddings=True), "llama"),
        (replace(SMALL, qk_norm=False, rope_scaling="llama3:8:1:4:16", embedding_scale=3.0), "llama"),
        (GPT2, "gpt2"),
        (replace(GPT2, activation="gelu", attention_bias=False, feed_forward_bias=False, embedding_scale=None), "gpt2"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
@torch.no_grad()
def test_every_field_of_a_form_gives_the_same_logits(config: ModelConfig, model_type: str) -> None:
    ours = random_model(config)
    theirs = exported(ours)
    ours.eval()
    assert theirs.config.model_type == model_type
    tokens = random_tokens(config.max_len)
    expected = ours(tokens)
    assert (theirs(tokens).logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    tied = config.tie_embeddings and config.embedding_scale == 1
    assert (theirs.lm_head.weight is theirs.get_input_embeddings().weight) == tied
    written = theirs.generate(tokens[:1, :5], max_new_tokens=30, do_sample=False, use_cache=True)
    assert written[0].tolist() == likeliest_tokens(ours, tokens[0, :5].tolist(), 30)


@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_other_positions_are_refused(positions: Any) -> None:
    with pytest.raises(InputError, match=rf"^transformers .* {positions} positions: .*--model\.positions rotary$"):
        to_transformers(random_model(replace(SMALL, positions=positions)))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (replace(SMALL, norm="layer", activation="gelu"), "--model.norm rms and --model.activation swiglu"),
        (replace(SMALL, feed_forward_bias=True), "--model.feed_forward_bias false, with model.qk_norm (Qwen3)"),
        (
            replace(SMALL, qk_norm=False, d_model=34, head_dim=8),
            "--model.d_model a multiple of model.num_heads (4), without model.qk_norm (Llama)",
        ),
        (replace(GPT2, norm="rms"), "--model.norm layer, or --model.positions rotary"),
        (
            replace(GPT2, activation="swiglu", qk_norm=True),
            "--model.activation gelu or gelu_tanh and --model.qk_norm false, or --model.positions rotary",
        ),
        (
            replace(GPT2, num_kv_heads=2, head_dim=6),
            "--model.num_kv_heads null and --model.head_dim null, or --model.positions rotary",
        ),
    ],
)
def test_what_no_form_has_is_refused_by_name(config: ModelConfig, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        to_transformers(random_model(config))
    text = f"transformers has no model like ours with {config.positions} positions: expected {expected}"
    assert str(caught.value) == text


class ReLU(nn.Module):
    """A feed-forward layer with two matrices, which has none of SwiGLU's names."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(d_model, d_ff), nn.ReLU(), nn.Linear(d_ff, d_model))

    def forward(self, x_BTM: Tensor) -> Tensor:
        return self.layers(x_BTM)


class GELU(SwiGLU):
    """A feed-forward layer with SwiGLU's names and another activation."""

    def forward(self, x_BTM: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.gate(x_BTM)) * self.up(x_BTM))


class OtherGPT(GPT):
    """A GPT with another feed-forward layer."""

    def __init__(self, config: ModelConfig, layer: type[nn.Module]) -> None:
        super().__init__(config, VOCABULARY)
        for block in self.blocks:
            block.feed_forward = layer(config.d_model, config.d_ff)


@pytest.mark.parametrize("layer", [ReLU, GELU])
def test_other_feed_forward_layers_are_refused(layer: type[nn.Module]) -> None:
    with pytest.raises(InputError, match=r"^transformers .* this OtherGPT: it is no GPT in blocks\.0\.feed_forward"):
        to_transformers(OtherGPT(SMALL, layer))


def test_a_subclass_is_refused_even_with_equal_parts() -> None:
    class Backwards(GPT):
        def forward(self, tokens_BT: Tensor, *rest: Any) -> Tensor:
            return super().forward(tokens_BT.flip(1), *rest)

    with pytest.raises(InputError, match=r"it is no GPT in its class$"):
        to_transformers(Backwards(SMALL, VOCABULARY))


def test_a_layer_of_another_width_is_refused() -> None:
    model = random_model(SMALL)
    model.blocks[1].feed_forward = SwiGLU(SMALL.d_model, 2 * SMALL.d_ff)
    with pytest.raises(InputError, match=r"it is no GPT in blocks\.1\.feed_forward\.down\.weight$"):
        to_transformers(model)


def test_layers_in_int8_are_refused() -> None:
    model = random_model(SMALL)
    model.head = Int8Linear(model.head)
    with pytest.raises(InputError, match=r"it is no GPT in head$"):
        to_transformers(model)


def test_without_transformers_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install transformers$"):
        to_transformers(random_model(SMALL))
