"""Sampling: what is drawn, and that the cache changes nothing."""

import pytest
import torch

from gpt.config import ModelConfig
from gpt.generation import choose_token, generate
from gpt.model import GPT
from training.errors import InputError


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    model = GPT(ModelConfig(num_layers=2, d_model=16, num_heads=2, d_ff=24, max_len=10), 7).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.5)
    return model


@torch.no_grad()
def test_greedy_text_equals_the_uncached_argmax_within_the_context(model: GPT) -> None:
    tokens = [1, 2, 3]
    for _ in range(7):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    assert list(generate(model, [1, 2, 3], max_new_tokens=7, temperature=0)) == tokens[3:]


@torch.no_grad()
def test_past_the_context_the_newer_half_is_read_anew(model: GPT) -> None:
    tokens, start = [1, 2, 3], 0
    for _ in range(30):
        if len(tokens) - start > 10:
            start = len(tokens) - 5
        tokens.append(int(model(torch.tensor([tokens[start:]]))[0, -1].argmax()))
    assert list(generate(model, [1, 2, 3], max_new_tokens=30, temperature=0)) == tokens[3:]


def test_of_a_long_prompt_the_end_counts(model: GPT) -> None:
    prompt = [1, 2, 3, 4, 5, 6] * 5
    assert list(generate(model, prompt, max_new_tokens=5, seed=1)) == list(
        generate(model, prompt[-10:], max_new_tokens=5, seed=1)
    )


def test_the_seed_decides(model: GPT) -> None:
    texts = [list(generate(model, [1], max_new_tokens=40, seed=seed)) for seed in (4, 4, 5)]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_draws_follow_the_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([0.0, 1.0, 2.0])
    draws = torch.tensor([choose_token(logits, 0.5, None, generator) for _ in range(4000)])
    shares = torch.bincount(draws, minlength=3) / 4000
    torch.testing.assert_close(shares, (logits / 0.5).softmax(-1), atol=0.03, rtol=0)


def test_top_k_leaves_the_likeliest_and_tiny_temperatures_stay_finite() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([3.0, 1.0, 2.9, -1.0])
    assert {choose_token(logits, 1.0, 2, generator) for _ in range(200)} == {0, 2}
    assert choose_token(logits, 1e-30, None, generator) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"temperature": -1.0}, r"temperature must be at least 0, got -1\.0"),
        ({"temperature": float("nan")}, "temperature must be at least 0, got nan"),
        ({"top_k": 0}, "top_k must be null or at least 1, got 0"),
        ({"seed": 2**63}, r"seed must be at least 0 and below 2\^63, got 9223372036854775808"),
    ],
)
def test_bad_options_are_errors(model: GPT, options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        next(generate(model, [1], **({"max_new_tokens": 1} | options)))


def test_an_empty_prompt_is_an_error(model: GPT) -> None:
    with pytest.raises(InputError, match="prompt is empty"):
        next(generate(model, [], max_new_tokens=1))
