"""Beam search: the likeliest sequences rather than the likeliest next tokens.

Shapes: W beams, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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
        length_penalty: A beam's score is its log-probability divided by its length to this power (Wu et al. 2016,
            "Google's Neural Machine Translation System", in the simpler form that most libraries have): 0 compares
            sums, which favours short ones, 1 compares means.
        end: The token that ends a sequence; None where there is none.

    Returns:
        Up to W beams, the best first. Of equal ones, the one found first. Where logits hold a NaN or +inf, one beam
        whose log-probability is NaN.

    Raises:
        ValueError: An option is out of range.
    """
    if width < 1 or max_new_tokens < 1:
        raise ValueError(f"width and max_new_tokens must be at least 1, got {width} and {max_new_tokens}")
    if not 0 <= length_penalty <= 10:
        raise ValueError(f"length_penalty must be at least 0 and at most 10, got {length_penalty}")
    finished: list[Beam] = []
    alive: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    logits_WV = logits_V[None]
    for length in range(1, max_new_tokens + 1):
        sums_WV = logits_WV.float().log_softmax(-1).cpu().double()
        sums_WV = sums_WV + torch.tensor([total for _, total in alive], dtype=torch.float64)[:, None]
        # Of 2 W candidates at most W end here, so that W go on.
        best = sums_WV.flatten().topk(min(2 * width, sums_WV.numel()))
        if best.values[0].isnan():  # NaN comes before all numbers.
            return [Beam(tokens=alive[0][0], log_probability=torch.nan, score=torch.nan)]
        origins: list[int] = []
        going_on: list[tuple[tuple[int, ...], float]] = []
        for rank, (total, index) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            if total == -torch.inf:
                break
            origin, token = divmod(index, sums_WV.size(1))
            tokens = (*alive[origin][0], token)
            if token == end:
                # One that is not among the W best must not win by its shortness alone.
                if rank < width:
                    finished.append(Beam(tokens=tokens, log_probability=total, score=total / length**length_penalty))
            elif len(going_on) < width:
                origins.append(origin)
                going_on.append((tokens, total))
        alive = going_on
        finished = sorted(finished, key=lambda beam: -beam.score)[:width]
        # No sum grows; the longest length gives the best score that a sum can still come to.
        if not alive or (len(finished) == width and alive[0][1] / max_new_tokens**length_penalty <= finished[-1].score):
            break
        if length < max_new_tokens:
            missing = width - len(alive)  # A small vocabulary gives fewer beams at first; the rest repeat the last one.
            tokens_W = [tokens[-1] for tokens, _ in alive] + [alive[-1][0][-1]] * missing
            logits_WV = read(tokens_W, origins + origins[-1:] * missing)[: len(alive)]
    else:
        finished += [Beam(tokens=t, log_probability=p, score=p / len(t) ** length_penalty) for t, p in alive]
    return sorted(finished, key=lambda beam: -beam.score)[:width]
