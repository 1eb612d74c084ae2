"""Sampling: what is drawn, and that the cache changes nothing."""

import pytest
import torch

from gpt.config import ModelConfig
from gpt.generation import Reader, Sampling, generate
from gpt.model import GPT
from training.errors import InputError

GREEDY = Sampling(temperature=0)


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
    assert list(generate(model, [1, 2, 3], max_new_tokens=7, sampling=GREEDY)) == tokens[3:]


@torch.no_grad()
def test_past_the_context_the_newer_half_is_read_anew(model: GPT) -> None:
    tokens, start = [1, 2, 3], 0
    for _ in range(30):
        if len(tokens) - start > 10:
            start = len(tokens) - 5
        tokens.append(int(model(torch.tensor([tokens[start:]]))[0, -1].argmax()))
    assert list(generate(model, [1, 2, 3], max_new_tokens=30, sampling=GREEDY)) == tokens[3:]


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
    draws = torch.tensor([Sampling(temperature=0.5).choose(logits, generator) for _ in range(4000)])
    shares = torch.bincount(draws, minlength=3) / 4000
    torch.testing.assert_close(shares, (logits / 0.5).softmax(-1), atol=0.03, rtol=0)


def test_top_k_leaves_the_likeliest_and_tiny_temperatures_stay_finite() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([3.0, 1.0, 2.9, -1.0])
    assert {Sampling(top_k=2).choose(logits, generator) for _ in range(200)} == {0, 2}
    assert Sampling(temperature=1e-30).choose(logits, generator) == 0


def test_top_p_leaves_the_fewest_tokens_that_have_that_probability_together() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log()

    def drawn(**options: float) -> set[int]:
        return {Sampling(**options).choose(logits, generator) for _ in range(400)}

    assert drawn(top_p=0.4) == {1}
    assert drawn(top_p=0.79) == {1, 3}
    assert drawn(top_p=0.81) == {0, 1, 3}
    assert drawn(top_p=1.0) == {0, 1, 2, 3}
    assert drawn(top_p=1e-9) == {1}
    assert drawn(top_p=0.81, temperature=0.5) == {1, 3}, "counted after the temperature"
    assert drawn(top_p=0.99, top_k=2) == {1, 3}


@pytest.mark.parametrize("prompt", [[1], [1, 2, 3, 4, 5, 6] * 3])
def test_without_a_cache_the_logits_are_the_same(model: GPT, prompt: list[int]) -> None:
    cached, uncached = Reader(model), Reader(model, use_cache=False)
    unread = prompt
    for _ in range(25):
        logits = cached.read(unread)
        torch.testing.assert_close(logits, uncached.read(unread))
        unread = [int(logits.argmax())]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, r"temperature must be at least 0, got -1\.0"),
        ({"temperature": float("nan")}, "temperature must be at least 0, got nan"),
        ({"top_k": 0}, "top_k must be null or at least 1, got 0"),
        ({"top_p": 0.0}, r"top_p must be null, or above 0 and at most 1, got 0\.0"),
        ({"top_p": float("nan")}, "top_p must be null, or above 0 and at most 1, got nan"),
    ],
)
def test_bad_sampling_is_an_error(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampling(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"seed": 2**63}, r"seed must be at least 0 and below 2\^63, got 9223372036854775808"),
    ],
)
def test_bad_lengths_and_seeds_are_errors(model: GPT, options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        next(generate(model, [1], **({"max_new_tokens": 1} | options)))


def test_an_empty_prompt_is_an_error(model: GPT) -> None:
    with pytest.raises(InputError, match="prompt is empty"):
        next(generate(model, [], max_new_tokens=1))
