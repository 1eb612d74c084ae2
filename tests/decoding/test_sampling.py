"""Choosing tokens, against the definitions written out in plain Python."""

import math
import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from decoding.sampling import GREEDY, NOISE_BLOCK, Sampler, Sampling, filtered_probabilities, penalise, seen_tokens

LAST = 1 - 2**-53
"""The largest random number below 1."""


def probabilities_by_hand(
    logits: list[float], sampling: Sampling, clear: Callable[[bool], object] = bool
) -> list[float]:
    """What `filtered_probabilities` promises, one token at a time; `clear` hears where rounding decides."""
    top = max(logits)
    weights = [math.exp((logit - top) / sampling.temperature) for logit in logits]
    p = [weight / sum(weights) for weight in weights]
    kept = sorted(range(len(p)), key=lambda i: (-logits[i], i))
    if sampling.top_k is not None:
        kept = kept[: sampling.top_k]
    if sampling.top_p is not None:
        whole, nucleus, mass = sum(p[i] for i in kept), [], 0.0
        for i in kept:
            clear(abs(mass - sampling.top_p) > 1e-9 or sampling.top_p == 1)
            if not nucleus or mass < sampling.top_p or sampling.top_p == 1:
                nucleus.append(i)
            mass += p[i] / whole
        kept = nucleus
    if sampling.min_p is not None:
        limit = sampling.min_p * max(p)
        clear(all(abs(p[i] - limit) > 1e-9 * limit or p[i] in (limit, max(p)) for i in kept))
        kept = [i for i in kept if p[i] >= limit]
    return [p[i] if i in kept else 0.0 for i in range(len(p))]


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    # Numbers from a coarse grid are often exactly equal.
    rows=st.integers(1, 12).flatmap(
        lambda size: st.lists(
            st.lists(st.integers(-12, 12).map(lambda n: n / 4), min_size=size, max_size=size), min_size=1, max_size=3
        )
    ),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 3.0]),
    top_k=st.none() | st.integers(1, 15),
    top_p=st.none() | st.just(1.0) | st.floats(0.01, 0.999),
    min_p=st.none() | st.sampled_from([0.0, 1.0]) | st.floats(0.001, 0.999),
)
@example(rows=[[0.0] * 4, [1.0, 1.0, 0.0, 1.0]], temperature=1.0, top_k=2, top_p=None, min_p=None)
@example(rows=[[2.0, 1.0, 0.0, 1.0, 2.0]], temperature=1.0, top_k=4, top_p=0.9, min_p=0.5)
@example(rows=[[0.0, 0.0, 0.0, 0.0]], temperature=1.0, top_k=None, top_p=0.6, min_p=None)
def test_filters_follow_their_definitions(
    rows: list[list[float]], temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> None:
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    expected = [probabilities_by_hand(row, sampling, assume) for row in rows]
    actual = filtered_probabilities(torch.tensor(rows), sampling).tolist()
    for logits, p, by_hand in zip(rows, actual, expected, strict=True):
        largest = max(range(len(p)), key=lambda i: (logits[i], -i))
        assert [value > 0 for value in p] == [value > 0 for value in by_hand]
        # Not scaled to a sum of 1: what counts is how they stand to each other.
        assert [v / p[largest] for v in p] == pytest.approx([v / by_hand[largest] for v in by_hand], rel=1e-9)


def test_top_k_keeps_exactly_k_of_equal_tokens_and_those_are_the_first() -> None:
    logits_BV = torch.tensor([[0.0] * 100, [1.0] + [0.0] * 98 + [1.0]])
    kept_BV = filtered_probabilities(logits_BV, Sampling(top_k=3)) > 0
    assert [row.nonzero().flatten().tolist() for row in kept_BV] == [[0, 1, 2], [0, 1, 99]]


def test_top_p_counts_what_top_k_left_and_min_p_keeps_the_likeliest() -> None:
    logits_BV = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    for options, kept in (
        ({"top_k": 2, "top_p": 0.56}, [1]),
        ({"top_k": 2, "top_p": 0.58}, [1, 3]),
        ({"min_p": 1.0}, [1]),
        ({"min_p": 0.7}, [1, 3]),
    ):
        probabilities_BV = filtered_probabilities(logits_BV, Sampling(**options))
        assert probabilities_BV[0].nonzero().flatten().tolist() == kept, options


def test_top_p_keeps_no_token_more_than_it_needs() -> None:
    for equal, top_p, kept in [(4, 0.5, 2), (4, 0.51, 3), (4, 0.49, 2), (8, 0.125, 1), (2, 1e-9, 1), (4, 0.75, 3)]:
        p_BV = filtered_probabilities(torch.zeros(1, equal), Sampling(top_p=top_p))
        assert p_BV[0].nonzero().flatten().tolist() == list(range(kept))


@pytest.mark.parametrize("options", [{}, {"top_p": 1.0}, {"min_p": 0.0}, {"top_k": 7}, {"top_k": 3, "top_p": 1.0}])
def test_filters_that_let_all_through_change_nothing_even_where_sums_round_to_1(options: dict[str, float]) -> None:
    logits_BV = torch.tensor([[-80.0, 0.0, -50.0]])
    p_BV = filtered_probabilities(logits_BV, Sampling(**options))
    assert (p_BV > 0).all()
    torch.testing.assert_close(p_BV, logits_BV.double().softmax(-1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("temperature", [1e-4, 1e-30, 5e-324])
@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.5}, {"top_k": 3, "top_p": 0.9}])
def test_tiny_temperatures_and_impossible_tokens_stay_finite(temperature: float, options: dict[str, float]) -> None:
    logits_BV = torch.tensor([[1e4, 3e4, -torch.inf, -3e4], [0.5, -1.0, -torch.inf, 0.25]])
    p_BV = filtered_probabilities(logits_BV, Sampling(temperature=temperature, **options))
    assert p_BV.isfinite().all()
    assert (p_BV > 0).tolist() == [[False, True, False, False], [True, False, False, False]]


def noise_of(sequences: int, seed: int = 0) -> Callable[[int, int], Tensor]:
    """Random numbers for each sequence and block."""

    def noise(row: int, block: int) -> Tensor:
        assert row < sequences
        generator = torch.Generator().manual_seed(1000 * seed + 100_000 * block + row)
        return torch.rand(NOISE_BLOCK, generator=generator, dtype=torch.float64)

    return noise


def sampler_of(sampling: Sampling, noise: Callable[[int, int], Tensor], batch_size: int, vocab: int) -> Sampler:
    return Sampler(sampling, noise, torch.zeros(batch_size, vocab, dtype=torch.bool))


def chi_square_limit(freedom: int) -> float:
    """What chi-square stays below with probability 0.999 (Wilson and Hilferty 1931)."""
    return freedom * (1 - 2 / (9 * freedom) + 3.0902 * math.sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.6),
        Sampling(top_k=5),
        Sampling(top_p=0.8),
        Sampling(min_p=0.2),
        Sampling(temperature=1.7, top_k=8, top_p=0.9, min_p=0.05),
    ],
    ids=str,
)
def test_tokens_come_as_often_as_they_should_and_one_after_another_independently(sampling: Sampling) -> None:
    vocab, rows, steps = 10, 150, 400
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(3))
    sampler = sampler_of(sampling, noise_of(rows), rows, vocab)
    drawn_BT = torch.stack([sampler.choose(logits.expand(rows, -1)).tokens_B for _ in range(steps)], 1)
    by_hand = torch.tensor(probabilities_by_hand(logits.tolist(), sampling))
    p = by_hand / by_hand.sum()
    kept = p.nonzero().flatten()
    assert 1 < len(kept) <= vocab
    assert set(drawn_BT.unique().tolist()) == set(kept.tolist())

    seen = torch.bincount(drawn_BT.flatten(), minlength=vocab)[kept]
    expected = p[kept] * rows * steps
    assert ((seen - expected) ** 2 / expected).sum() < chi_square_limit(len(kept) - 1)

    for neighbours in (
        (drawn_BT[:, :-1], drawn_BT[:, 1:]),
        (drawn_BT[:-1], drawn_BT[1:]),
    ):  # In time, and in the batch.
        pairs = torch.bincount((neighbours[0] * vocab + neighbours[1]).flatten(), minlength=vocab**2)
        expected = (p[:, None] * p).flatten() * pairs.sum()
        likely = expected > 5
        statistic = ((pairs - expected) ** 2 / expected)[likely].sum()
        assert statistic < chi_square_limit(int(likely.sum()) - 1)


@pytest.mark.parametrize("noise", [0.0, 2**-53, 0.5, LAST])
@pytest.mark.parametrize(
    ("logits", "options", "possible"),
    [
        ([-torch.inf, 0.0, 0.0, -torch.inf], {}, {1, 2}),
        ([0.0, 3.0, 3.0, 2.0], {"top_k": 2}, {1, 2}),
        ([0.0, 0.3, 0.1, -1.0], {"top_p": 0.6}, {1, 2}),
        ([-9.0, 0.0, -0.2, -9.0], {"min_p": 0.5}, {1, 2}),
        ([-1e4, 0.0, -1.0, -1e4], {"temperature": 0.5}, {1, 2}),
    ],
)
def test_a_token_of_probability_zero_is_never_drawn(
    logits: list[float], options: dict[str, float], possible: set[int], noise: float
) -> None:
    def fixed(row: int, block: int) -> Tensor:
        return torch.full((NOISE_BLOCK,), noise, dtype=torch.float64)

    drawn = sampler_of(Sampling(**options), fixed, 1, 4).choose(torch.tensor([logits])).tokens_B.item()
    assert drawn in possible
    assert drawn == (min(possible) if noise < 0.1 else max(possible) if noise == LAST else drawn)


def test_each_step_takes_the_next_number_of_its_sequence_over_the_edges_of_blocks() -> None:
    asked, noise, vocab = [], noise_of(2), 1000

    def remembered(row: int, block: int) -> Tensor:
        asked.append((row, block))
        return noise(row, block)

    sampler = sampler_of(Sampling(), remembered, 2, vocab)
    steps = 2 * NOISE_BLOCK + 3
    drawn_BT = torch.stack([sampler.choose(torch.zeros(2, vocab)).tokens_B for _ in range(steps)], 1)
    assert sorted(asked) == [(row, block) for row in range(2) for block in range(3)]
    for row in range(2):
        numbers = torch.cat([noise(row, block) for block in range(3)])[:steps]
        assert drawn_BT[row].tolist() == [int(number * vocab) for number in numbers]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.8, top_k=20, top_p=0.9, min_p=0.01),
        Sampling(repetition_penalty=1.5, top_p=0.7),
        Sampling(repetition_penalty=1.5, temperature=0),
    ],
    ids=str,
)
def test_a_sequence_is_drawn_the_same_alone_and_among_others_and_again(sampling: Sampling) -> None:
    rows, vocab, steps = 6, 50, NOISE_BLOCK + 20
    logits_TBV = 2 * torch.randn(steps, rows, vocab, generator=torch.Generator().manual_seed(1))
    prompts = seen_tokens([[row, 2 * row] for row in range(rows)], vocab)

    def draw(chosen: list[int]) -> list[list[int]]:
        noise = noise_of(rows)
        sampler = Sampler(sampling, lambda row, block: noise(chosen[row], block), prompts[chosen])
        return torch.stack([sampler.choose(logits_BV[chosen]).tokens_B for logits_BV in logits_TBV], 1).tolist()

    together = draw(list(range(rows)))
    assert len(set(map(tuple, together))) == rows
    assert draw(list(range(rows))) == together
    for chosen in ([4], [5, 0], [3, 2, 1]):
        assert draw(chosen) == [together[row] for row in chosen]


def test_the_repetition_penalty_lowers_logits_of_either_sign() -> None:
    logits_BV = torch.tensor([[3.0, -3.0, 0.0, 3.0, -3.0, -torch.inf]] * 2)
    seen_BV = seen_tokens([[0, 1, 2, 5, 0], []], 6)
    assert seen_BV.tolist() == [[True, True, True, False, False, True], [False] * 6]
    expected = [[2.0, -4.5, 0.0, 3.0, -3.0, -torch.inf], logits_BV[1].tolist()]
    assert penalise(logits_BV, seen_BV, 1.5).tolist() == expected


@pytest.mark.parametrize("penalty", [1.0, 1.4, 0.8])
def test_the_repetition_penalty_counts_the_prompt_and_each_new_token(penalty: float) -> None:
    logits = [[3.0, 2.9, 2.2, 2.1, -0.1], [-0.5, -0.6, -0.65, -3.0, -0.71]]
    prompts = [[0, 0], []]
    given = seen_tokens(prompts, 5)
    sampler = Sampler(Sampling(repetition_penalty=penalty, temperature=0), noise_of(2), given)
    drawn = [sampler.choose(torch.tensor(logits)) for _ in range(7)]
    for row, text in enumerate(prompts):
        for step in range(7):
            by_hand = [
                logit if token not in text else logit / penalty if logit > 0 else logit * penalty
                for token, logit in enumerate(logits[row])
            ]
            token = by_hand.index(max(by_hand))
            text.append(token)
            assert drawn[step].tokens_B[row] == token
            # What the model gave, whatever the penalty.
            probability = math.exp(logits[row][token]) / sum(map(math.exp, logits[row]))
            assert drawn[step].log_probabilities_B[row].item() == pytest.approx(math.log(probability), abs=1e-5)
    assert torch.equal(given, seen_tokens([[0], []], 5)), "the caller's tensor stays as it was"


@pytest.mark.parametrize("options", [{}, {"temperature": 0.3, "top_k": 2}, {"temperature": 0, "repetition_penalty": 2}])
@pytest.mark.parametrize("alternatives", [0, 3, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reported_probabilities_are_those_of_the_model_before_any_filter(
    options: dict[str, float], alternatives: int, dtype: torch.dtype
) -> None:
    logits_BV = torch.randn(4, 6, generator=torch.Generator().manual_seed(2)).to(dtype)
    given = logits_BV.clone()
    seen_BV = torch.ones(4, 6, dtype=torch.bool)
    chosen = Sampler(Sampling(**options), noise_of(4), seen_BV, alternatives).choose(logits_BV)
    assert torch.equal(logits_BV, given)
    expected_BV = logits_BV.float().log_softmax(-1)
    for row in range(4):
        order = sorted(range(6), key=lambda i: -expected_BV[row, i].item())[:alternatives]
        assert chosen.alternatives_BA[row].tolist() == order
        assert torch.equal(chosen.alternative_log_probabilities_BA[row], expected_BV[row, order])
        assert chosen.log_probabilities_B[row] == expected_BV[row, chosen.tokens_B[row]]


def test_temperature_0_takes_the_likeliest_without_any_noise() -> None:
    def never(row: int, block: int) -> Tensor:
        raise AssertionError

    logits_BV = torch.randn(20, 30)
    chosen = sampler_of(GREEDY, never, 20, 30).choose(logits_BV)
    assert chosen.tokens_B.tolist() == logits_BV.argmax(-1).tolist()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0},
        {"top_k": 2, "top_p": 0.9, "min_p": 0.1},
        {"repetition_penalty": 1.3},
        {"temperature": 0, "repetition_penalty": 1.3},
    ],
)
def test_logits_that_are_not_finite_give_a_token_and_a_log_probability_of_nan(options: dict[str, float]) -> None:
    bad = [[math.nan, 0.0, 1.0], [math.inf, 0.0, 1.0], [math.nan] * 3, [-math.inf] * 3, [math.inf, math.nan, -math.inf]]
    logits_BV = torch.tensor([*bad, [-math.inf, 0.0, 1.0]])
    seen_BV = torch.ones(len(logits_BV), 3, dtype=torch.bool)
    chosen = Sampler(Sampling(**options), noise_of(len(logits_BV)), seen_BV, 2).choose(logits_BV)
    assert all(0 <= token < 3 for token in chosen.tokens_B.tolist())
    assert chosen.log_probabilities_B.isnan().tolist() == [True] * len(bad) + [False]


@pytest.mark.parametrize("penalty", [1e-300, 1e300])
def test_the_largest_repetition_penalties_leave_numbers(penalty: float) -> None:
    logits_BV, seen_BV = torch.tensor([[-2.0, 0.0, 3.0, -torch.inf]]), torch.tensor([[True, True, True, False]])
    penalised_BV = penalise(logits_BV, seen_BV, penalty)
    assert penalised_BV[0, :3].isfinite().all()
    assert penalised_BV[0, 3] == -torch.inf
    sampler = Sampler(Sampling(repetition_penalty=penalty), noise_of(1), seen_BV)
    assert {int(sampler.choose(logits_BV).tokens_B) for _ in range(20)} <= {0, 1, 2}


@pytest.mark.parametrize(
    ("option", "values", "rule"),
    [
        ("repetition_penalty", [0.0, -1.0, math.inf, math.nan], "above 0"),
        ("temperature", [-0.1, math.inf, math.nan], "at least 0"),
        ("top_k", [0, -3], "null or at least 1"),
        ("top_p", [0.0, 1.1, -0.5, math.nan], "null, or above 0 and at most 1"),
        ("min_p", [-0.1, 1.01, math.nan], "null, or at least 0 and at most 1"),
    ],
)
def test_options_out_of_range_are_errors_of_one_line(option: str, values: list[float], rule: str) -> None:
    for value in values:
        with pytest.raises(ValueError, match="^" + re.escape(f"{option} must be {rule}, got {value}") + "$"):
            Sampling(**{option: value})


def test_the_edges_of_the_ranges_are_allowed() -> None:
    Sampling(repetition_penalty=0.5, temperature=0, top_k=1, top_p=1, min_p=0)
    Sampling(top_p=1e-9, min_p=1)
