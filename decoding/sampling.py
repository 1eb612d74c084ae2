"""How the next token is chosen from the logits.

Everything happens on the device of the logits, and nothing waits for it.

Shapes: B sequences, V vocabulary, A alternatives.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from training.runtime.errors import InputError

NOISE_BLOCK = 256
"""Random numbers that are drawn at once for a sequence."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is chosen from the logits.

    A token is drawn that passes all filters; they apply in the order in which they stand here.

    Attributes:
        repetition_penalty: Divides positive logits of tokens that stand in the text already, and multiplies negative
            ones (Keskar et al. 2019, "CTRL", section 4.1); 1 for no penalty.
        temperature: Divides the logits: below 1 is safer, above 1 wilder, 0 takes the likeliest token.
        top_k: Draw from exactly so many likeliest tokens (of equal ones, the first in the vocabulary); None for all.
        top_p: Draw from the fewest likeliest tokens that have this probability together (Holtzman et al. 2020, "The
            Curious Case of Neural Text Degeneration"); None for all.
        min_p: Draw from tokens that have at least this part of the likeliest one's probability (Nguyen et al. 2024,
            "Turning Up the Heat: Min-p Sampling"); None for all.

    Raises:
        InputError: A value is out of range.
    """

    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.repetition_penalty < float("inf"):
            raise InputError(f"repetition_penalty must be above 0, got {self.repetition_penalty}")
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature must be at least 0, got {self.temperature}")
        if self.top_k is not None and not self.top_k >= 1:
            raise InputError(f"top_k must be null or at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be null, or above 0 and at most 1, got {self.top_p}")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise InputError(f"min_p must be null, or at least 0 and at most 1, got {self.min_p}")

    @classmethod
    def of(cls, options: Any) -> "Sampling":
        """What parsed options say."""
        return cls(**{field.name: getattr(options, field.name) for field in fields(cls)})


GREEDY = Sampling(temperature=0)


def penalise(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Make tokens that were seen less likely; see `Sampling.repetition_penalty`."""
    # However large the penalty, what was a number stays one.
    penalised_BV = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty).nan_to_num()
    return torch.where(seen_BV & (logits_BV > -torch.inf), penalised_BV, logits_BV)


def filtered_probabilities(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """What a token is drawn from: zero for those that a filter takes out; `temperature` must be above 0.

    Returns:
        Probabilities of shape (B, V), in fp64 where the device has it, not scaled to a sum of 1.
    """
    precise = torch.float32 if logits_BV.device.type == "mps" else torch.float64
    logits_BV = logits_BV.to(precise)
    # Subtracting the largest first keeps tiny temperatures from overflowing.
    probabilities_BV = ((logits_BV - logits_BV.amax(-1, keepdim=True)) / sampling.temperature).softmax(-1)
    kept_BV = torch.ones_like(probabilities_BV, dtype=torch.bool)
    if sampling.top_k is not None or sampling.top_p is not None:
        order_BV = logits_BV.argsort(dim=-1, descending=True, stable=True)
        falling_BV = probabilities_BV.gather(-1, order_BV)
        kept_ranks_BV = torch.ones_like(kept_BV)
        if sampling.top_k is not None:
            kept_ranks_BV[:, sampling.top_k :] = False
            falling_BV = falling_BV * kept_ranks_BV
            falling_BV = falling_BV / falling_BV.sum(-1, keepdim=True)
        if sampling.top_p is not None and sampling.top_p < 1:
            before_BV = falling_BV.cumsum(-1) - falling_BV
            before_BV[:, 0] = 0.0  # The likeliest one always stays.
            kept_ranks_BV &= before_BV < sampling.top_p
        kept_BV.scatter_(-1, order_BV, kept_ranks_BV)
    if sampling.min_p is not None:
        kept_BV &= probabilities_BV >= sampling.min_p * probabilities_BV.amax(-1, keepdim=True)
    return probabilities_BV * kept_BV


class Chosen(NamedTuple):
    """One token of each sequence, on the device of the logits.

    Attributes:
        tokens_B: The tokens.
        log_probabilities_B: What the model gave them, in nats, before temperature and filters; NaN where its logits
            hold a NaN or +inf, so that whoever looks at the tokens can tell. The tokens are valid ones even then.
        alternatives_BA: The likeliest tokens.
        alternative_log_probabilities_BA: What the model gave those.
    """

    tokens_B: Tensor
    log_probabilities_B: Tensor
    alternatives_BA: Tensor
    alternative_log_probabilities_BA: Tensor


class Sampler:
    """Chooses tokens of several sequences, step by step.

    A token depends on its sequence's logits and noise alone: not on other sequences, nor on their number.

    Args:
        sampling: How to choose.
        noise: `noise(b, n)` gives the n-th `NOISE_BLOCK` random numbers of sequence b, from 0 to below 1.
        seen_BV: Which tokens stand in each text already; for a repetition penalty.
        alternatives: How many likeliest tokens to report.
    """

    def __init__(
        self,
        sampling: Sampling,
        noise: Callable[[int, int], Tensor],
        seen_BV: Tensor,
        alternatives: int = 0,
    ) -> None:
        self._sampling = sampling
        self._noise = noise
        self._seen_BV = seen_BV.clone()
        self._alternatives = alternatives
        self._block_BN: Tensor | None = None
        self._drawn = 0

    def choose(self, logits_BV: Tensor) -> Chosen:
        """Choose the next token of each sequence."""
        log_probabilities_BV = logits_BV.float().log_softmax(-1)
        penalised_BV = logits_BV.float()
        if self._sampling.repetition_penalty != 1:
            penalised_BV = penalise(penalised_BV, self._seen_BV, self._sampling.repetition_penalty)
        if self._sampling.temperature == 0:
            tokens_B1 = penalised_BV.argmax(-1, keepdim=True)
        else:
            sums_BV = filtered_probabilities(penalised_BV, self._sampling).cumsum(-1)
            noise_B1 = self._next_noise(sums_BV)
            # The first token whose sum exceeds the noise: never one of probability 0, whose sum is that before it.
            tokens_B1 = torch.searchsorted(sums_BV, noise_B1 * sums_BV[:, -1:], right=True)
            tokens_B1 = tokens_B1.clamp_(max=sums_BV.size(-1) - 1)  # Where the sums are NaN it is none.
        if self._sampling.repetition_penalty != 1:
            self._seen_BV.scatter_(-1, tokens_B1, True)
        likeliest = log_probabilities_BV.topk(min(self._alternatives, logits_BV.size(-1)), -1)
        chosen_B1 = log_probabilities_BV.gather(-1, tokens_B1)
        return Chosen(tokens_B1[:, 0], chosen_B1[:, 0], likeliest.indices, likeliest.values)

    def _next_noise(self, like_BV: Tensor) -> Tensor:
        column = self._drawn % NOISE_BLOCK
        if self._block_BN is None or column == 0:
            blocks = [self._noise(row, self._drawn // NOISE_BLOCK) for row in range(len(like_BV))]
            below_1 = 1 - torch.finfo(like_BV.dtype).eps / 2
            self._block_BN = torch.stack(blocks).to(like_BV).clamp(max=below_1)
        self._drawn += 1
        return self._block_BN[:, column : column + 1]


def seen_tokens(texts: Sequence[Sequence[int]], vocab_size: int, device: torch.device | str = "cpu") -> Tensor:
    """Which tokens stand in each text, of shape (B, V)."""
    seen_BV = torch.zeros(len(texts), vocab_size, dtype=torch.bool)
    for row_V, text in zip(seen_BV, texts, strict=True):
        row_V[list(text)] = True
    return seen_BV.to(device)
