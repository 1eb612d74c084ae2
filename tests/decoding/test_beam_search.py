"""Beam search against an exhaustive search, and against one that never stops early."""

import itertools
import math
import re
import zlib
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from decoding.beam_search import Beam, beam_search

Logits = Callable[[tuple[int, ...]], Tensor]


def random_logits(seed: int, vocab: int, scale: float = 1.5) -> Logits:
    """Logits that depend on all tokens before."""

    def logits(tokens: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(repr((seed, tokens)).encode()))
        return scale * torch.randn(vocab, generator=generator)

    return logits


class Reader:
    """A model that keeps the tokens of each beam, as a cache would."""

    def __init__(self, logits: Logits, width: int) -> None:
        self.logits, self.beams, self.reads = logits, [()] * width, 0

    def __call__(self, tokens: Sequence[int], origins: Sequence[int]) -> Tensor:
        assert len(tokens) == len(origins) == len(self.beams)
        self.beams = [(*self.beams[origin], token) for token, origin in zip(tokens, origins, strict=True)]
        self.reads += 1
        return torch.stack([self.logits(beam) for beam in self.beams])


def search(logits: Logits, *, width: int, **options: float | None) -> tuple[list[Beam], Reader]:
    read = Reader(logits, width)
    return beam_search(logits(()), read, width=width, **options), read


def log_probability(logits: Logits, tokens: tuple[int, ...]) -> float:
    parts = (logits(tokens[:i]).double().log_softmax(-1)[token].item() for i, token in enumerate(tokens))
    return sum(parts)


def without_early_stop(
    logits: Logits, *, width: int, max_new_tokens: int, length_penalty: float, end: int | None
) -> list[tuple[tuple[int, ...], float]]:
    """Beam search, one candidate at a time; all beams run to the end."""
    done: list[tuple[tuple[int, ...], float]] = []
    alive: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    for _ in range(max_new_tokens):
        grown = []
        for tokens, total in alive:
            for token, more in enumerate(logits(tokens).double().log_softmax(-1).tolist()):
                grown.append(((*tokens, token), total + more))
        grown = sorted(grown, key=lambda beam: -beam[1])[: 2 * width]
        done += [beam for beam in grown[:width] if beam[0][-1] == end]
        alive = [beam for beam in grown if beam[0][-1] != end][:width]
    scored = [(tokens, total / len(tokens) ** length_penalty) for tokens, total in done + alive]
    return sorted(scored, key=lambda beam: -beam[1])[:width]


def assert_same(beams: list[Beam], expected: list[tuple[tuple[int, ...], float]]) -> None:
    assert [beam.tokens for beam in beams] == [tokens for tokens, _ in expected]
    assert [beam.score for beam in beams] == pytest.approx([score for _, score in expected], rel=1e-5)


@pytest.mark.parametrize("length_penalty", [0, 0.5, 1, 2])
@pytest.mark.parametrize("end", [None, 2])
@pytest.mark.parametrize("seed", range(4))
def test_a_beam_wide_enough_finds_what_an_exhaustive_search_finds(
    seed: int, end: int | None, length_penalty: float
) -> None:
    vocab, most = 3, 4
    logits = random_logits(seed, vocab)
    everything = [
        tokens
        for length in range(1, most + 1)
        for tokens in itertools.product(range(vocab), repeat=length)
        if end not in tokens[:-1] and (length == most or tokens[-1] == end)
    ]
    assert sum(math.exp(log_probability(logits, tokens)) for tokens in everything) == pytest.approx(1)
    ranked = [(tokens, log_probability(logits, tokens) / len(tokens) ** length_penalty) for tokens in everything]
    ranked.sort(key=lambda beam: -beam[1])
    beams, _ = search(logits, width=vocab**most, max_new_tokens=most, length_penalty=length_penalty, end=end)
    assert_same(beams, ranked)
    for beam in beams:
        assert beam.log_probability == pytest.approx(log_probability(logits, beam.tokens), rel=1e-5)


@pytest.mark.parametrize("length_penalty", [0, 0.3, 1, 2])
@pytest.mark.parametrize("width", [1, 2, 3, 6])
def test_early_stopping_loses_no_beam(width: int, length_penalty: float) -> None:
    for seed in range(30):
        logits = random_logits(seed, vocab=4, scale=2.0)
        options = {"max_new_tokens": 7, "length_penalty": length_penalty, "end": seed % 4}
        beams, _ = search(logits, width=width, **options)
        assert_same(beams, without_early_stop(logits, width=width, **options))


@pytest.mark.parametrize(("length_penalty", "reads"), [(0, 0), (0.5, 1), (1, 5), (2, 9)])
def test_it_stops_as_soon_as_no_beam_can_become_better(length_penalty: float, reads: int) -> None:
    # Each step ends with 0.6 (-0.51 nats) and goes on with 0.4 (-0.92): the first end is beaten by none of 10 tokens as
    # soon as 0.92 times the length, over 10 to the power of the penalty, is more than 0.51.
    beams, read = search(
        lambda tokens: torch.tensor([0.4, 0.6]).log(), width=1, max_new_tokens=10, length_penalty=length_penalty, end=1
    )
    assert read.reads == reads
    assert len(beams[0].tokens) == (10 if length_penalty == 2 else 1)


@pytest.mark.parametrize("seed", range(5))
def test_a_beam_of_width_1_is_greedy(seed: int) -> None:
    logits, tokens = random_logits(seed, vocab=7), []
    for _ in range(9):
        tokens.append(int(logits(tuple(tokens)).argmax()))
    (beam,), read = search(logits, width=1, max_new_tokens=9)
    assert beam.tokens == tuple(tokens)
    assert beam.score == pytest.approx(beam.log_probability / 9)
    assert read.reads == 8, "the last token is never read"


@pytest.mark.parametrize("end", [None, 0])
def test_a_vocabulary_smaller_than_the_beam_serves(end: int | None) -> None:
    for seed, width, vocab in itertools.product(range(5), (5, 9), (1, 2, 3)):
        options = {"max_new_tokens": 5, "length_penalty": 1, "end": end}
        logits = random_logits(seed, vocab)
        beams, _ = search(logits, width=width, **options)
        assert_same(beams, without_early_stop(logits, width=width, **options))
        assert len({beam.tokens for beam in beams}) == len(beams)


def test_a_sequence_that_cannot_be_is_never_found() -> None:
    def logits(tokens: tuple[int, ...]) -> Tensor:
        # Never the same token twice in a row, and no end before the third.
        values = torch.tensor([0.3, 0.2, 0.1, 0.0])
        values[[*tokens[-1:], *([3] if len(tokens) < 2 else [])]] = -torch.inf
        return values

    for width in (1, 3, 8, 50):
        beams, _ = search(logits, width=width, max_new_tokens=3, end=3)
        assert len(beams) == min(width, 3 * 2 * 3)
        assert all(math.isfinite(beam.log_probability) for beam in beams)


def test_of_equal_beams_those_found_first_come_first() -> None:
    beams, _ = search(lambda tokens: torch.zeros(2), width=3, max_new_tokens=3, length_penalty=1, end=0)
    assert [len(beam.tokens) for beam in beams] == [1, 2, 3]
    assert [beam.score for beam in beams] == pytest.approx([math.log(0.5)] * 3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_end_the_search_with_a_probability_of_nan(bad: float) -> None:
    sound = random_logits(0, 4)
    for length in range(3):
        beams, _ = search(
            lambda tokens, length=length: sound(tokens) * (bad if len(tokens) >= length else 1.0),
            width=3,
            max_new_tokens=5,
            end=0,
        )
        assert [math.isnan(beam.log_probability) for beam in beams] == [True]


def test_one_beam_whose_logits_are_not_finite_ends_the_search() -> None:
    sound = random_logits(0, 4)
    beams, _ = search(
        lambda tokens: sound(tokens) * (math.nan if tokens[-1:] == (2,) else 1.0), width=6, max_new_tokens=2
    )
    assert [math.isnan(beam.log_probability) for beam in beams] == [True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width and max_new_tokens must be at least 1, got 0 and 2"),
        ({"max_new_tokens": 0}, "width and max_new_tokens must be at least 1, got 1 and 0"),
        ({"length_penalty": -0.1}, "length_penalty must be at least 0 and at most 10, got -0.1"),
        ({"length_penalty": math.nan}, "length_penalty must be at least 0 and at most 10, got nan"),
        ({"length_penalty": math.inf}, "length_penalty must be at least 0 and at most 10, got inf"),
    ],
)
def test_options_out_of_range_are_errors(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        search(random_logits(0, 3), **{"width": 1, "max_new_tokens": 2, **options})
