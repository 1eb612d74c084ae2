"""Beam search: the likeliest sequences rather than the likeliest next tokens.

Shapes: W beams, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Scored = tuple[tuple[int, ...], float]
"""The new tokens of a sequence, and their log-probability."""


@dataclass(frozen=True, kw_only=True)
class Beam:
    """A sequence that the search found.

    Attributes:
        tokens: Its new tokens, with the end token where it has one.
        log_probability: Of all of them together, in nats.
        score: What beams are ranked by.
    """

    tokens: tuple[int, ...]
    log_probability: float
    score: float


def beam_search(
    logits_V: Tensor,
    read: Callable[[Sequence[int], Sequence[int]], Tensor],
    *,
    width: int,
    max_new_tokens: int,
    length_penalty: float = 1.0,
    end: int | None = None,
) -> list[Beam]:
    """Search for the most probable continuations of one prompt.

    Args:
        logits_V: Of the first new token.
        read: `read(tokens, origins)` lets beam b continue the former beam `origins[b]` by `tokens[b]`, for W beams, and
            returns the logits after that, (W, V).
        width: Number of beams W.
        max_new_tokens: Where an unfinished beam ends.
        length_penalty: A beam's score is its log-probability divided by its length to this power: 0 compares sums,
            which favours short ones, 1 means (Wu et al. 2016, "Google's Neural Machine Translation System", simpler).
        end: The token that ends a sequence; None where there is none.

    Returns:
        Up to W beams, the best first; of equal ones the one found first. One of NaN where logits hold NaN or +inf.

    Raises:
        ValueError: An option is out of range.
    """
    if width < 1 or max_new_tokens < 1:
        raise ValueError(f"width and max_new_tokens must be at least 1, got {width} and {max_new_tokens}")
    if not 0 <= length_penalty <= 10:
        raise ValueError(f"length_penalty must be at least 0 and at most 10, got {length_penalty}")
    finished: list[Beam] = []
    alive: list[Scored] = [((), 0.0)]
    logits_WV = logits_V[None]
    for length in range(1, max_new_tokens + 1):
        candidates = _candidates(logits_WV, alive, width)
        if math.isnan(candidates[0][0]):  # NaN comes before all numbers.
            return [Beam(tokens=alive[0][0], log_probability=math.nan, score=math.nan)]
        ended, alive, origins = _extend(alive, candidates, width, end)
        finished = sorted(finished + _ranked(ended, length_penalty), key=lambda beam: -beam.score)[:width]
        # No sum grows; the longest length gives the best score that a sum can still come to.
        if not alive or (len(finished) == width and alive[0][1] / max_new_tokens**length_penalty <= finished[-1].score):
            break
        if length < max_new_tokens:
            missing = width - len(alive)  # A small vocabulary gives fewer beams at first; the rest repeat the last one.
            tokens_W = [tokens[-1] for tokens, _ in alive] + [alive[-1][0][-1]] * missing
            logits_WV = read(tokens_W, origins + origins[-1:] * missing)[: len(alive)]
    else:
        finished += _ranked(alive, length_penalty)
    return sorted(finished, key=lambda beam: -beam.score)[:width]


def _candidates(logits_WV: Tensor, alive: Sequence[Scored], width: int) -> list[tuple[float, int, int]]:
    """The best ways to go on: log-probability, beam and token of each."""
    sums_WV = logits_WV.float().log_softmax(-1).cpu().double()
    sums_WV = sums_WV + torch.tensor([total for _, total in alive], dtype=torch.float64)[:, None]
    # Of 2 W candidates at most W end here, so that W go on.
    best = sums_WV.flatten().topk(min(2 * width, sums_WV.numel()))
    found = [divmod(index, sums_WV.size(1)) for index in best.indices.tolist()]
    return [(total, *origin) for total, origin in zip(best.values.tolist(), found, strict=True)]


def _extend(
    alive: Sequence[Scored], candidates: Sequence[tuple[float, int, int]], width: int, end: int | None
) -> tuple[list[Scored], list[Scored], list[int]]:
    """Continue beams by their best candidates.

    Returns:
        What ends here; what goes on, up to `width`; and the beams that this continues.
    """
    ended: list[Scored] = []
    going_on: list[Scored] = []
    origins: list[int] = []
    for rank, (total, origin, token) in enumerate(candidates):
        if total == -torch.inf:
            break
        extended = ((*alive[origin][0], token), total)
        if token == end:
            # One that is not among the W best must not win by its shortness alone.
            if rank < width:
                ended.append(extended)
        elif len(going_on) < width:
            origins.append(origin)
            going_on.append(extended)
    return ended, going_on, origins


def _ranked(sequences: Sequence[Scored], length_penalty: float) -> list[Beam]:
    return [Beam(tokens=t, log_probability=p, score=p / len(t) ** length_penalty) for t, p in sequences]
