"""Text from a GPT, token by token, with a key-value cache.

Shapes: B batch (here 1), T tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt.model import GPT
from training.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is chosen from the logits.

    Attributes:
        temperature: Divides the logits: below 1 is safer, above 1 wilder, 0 takes the likeliest token.
        top_k: Draw from so many likeliest tokens only; None for all.
        top_p: Draw from the fewest likeliest tokens that have this probability together (Holtzman et al. 2020, "The
            Curious Case of Neural Text Degeneration"), counted after `temperature` and `top_k`; None for all.

    Raises:
        InputError: A value is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature must be at least 0, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k must be null or at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be null, or above 0 and at most 1, got {self.top_p}")

    def choose(self, logits_V: Tensor, generator: torch.Generator | None = None) -> int:
        """Draw a token."""
        logits_V = logits_V.float().cpu()
        if self.temperature == 0:
            return int(logits_V.argmax())
        if self.top_k is not None and self.top_k < len(logits_V):
            logits_V = logits_V.masked_fill(logits_V < logits_V.topk(self.top_k).values[-1], -torch.inf)
        # Subtracting the largest first keeps tiny temperatures from overflowing.
        probabilities_V = ((logits_V - logits_V.max()) / self.temperature).softmax(-1)
        if self.top_p is not None and self.top_p < 1:
            probabilities_V = _nucleus(probabilities_V, self.top_p)
        return int(torch.multinomial(probabilities_V, 1, generator=generator))


def _nucleus(probabilities_V: Tensor, top_p: float) -> Tensor:
    """Zero all but the likeliest tokens whose sum first reaches `top_p`; the likeliest one always stays."""
    falling_V, order_V = probabilities_V.sort(descending=True)
    likelier_V = falling_V.cumsum(-1) - falling_V
    likelier_V[0] = 0.0
    return probabilities_V.index_fill(0, order_V[likelier_V >= top_p], 0.0)


def check_length_and_seed(max_new_tokens: int, seed: int) -> None:
    """Raise an `InputError` for one that is out of range."""
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if not 0 <= seed < 2**63:
        raise InputError(f"seed must be at least 0 and below 2^63, got {seed}")


@torch.inference_mode()
def generate(
    model: GPT,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> Iterator[int]:
    """Continue a prompt, yielding each token as it is drawn.

    Each token costs one pass over one token. When the context is full, the newer half of it is kept and read anew, so
    that text can go on without end: the model then sees between half a context and a whole one.

    Args:
        model: The model; it must be in evaluation mode.
        prompt: Token ids, at least one. Of a longer one than the context, the end counts.
        max_new_tokens: How many tokens to draw.
        sampling: How to choose a token; None for draws from all of them.
        seed: The same seed, prompt and weights give the same text on the same device.

    Raises:
        InputError: An option is out of range, or the prompt is empty.
    """
    check_length_and_seed(max_new_tokens, seed)
    if len(prompt) == 0:
        raise InputError("the prompt is empty: give at least one character to continue")
    sampling = sampling or Sampling()
    generator = torch.Generator().manual_seed(seed)
    reader = Reader(model)
    logits_V = reader.read(prompt)
    for drawn in range(1, max_new_tokens + 1):
        token = sampling.choose(logits_V, generator)
        yield token
        if drawn < max_new_tokens:
            logits_V = reader.read([token])


class Reader:
    """Reads tokens, and predicts the next one.

    Args:
        model: The model; it must be in evaluation mode.
        use_cache: Whether to keep keys and values. Without them every token costs a pass over all before it, for the
            same logits.
    """

    def __init__(self, model: GPT, *, use_cache: bool = True) -> None:
        self._model = model
        self._cache = model.new_cache() if use_cache else None
        self._window: list[int] = []

    @torch.inference_mode()
    def read(self, tokens: Sequence[int]) -> Tensor:
        """Append tokens to those read before; return the logits of the next one, of shape (V,).

        When the window would outgrow the context, its newer half is kept and read anew.
        """
        context = self._model.config.max_len
        unread = list(tokens)
        self._window += unread
        if len(self._window) > context:
            first = len(self._window) == len(unread)
            self._window = self._window[-(context if first else max(context // 2, 1)) :]
            unread = self._window
            if self._cache is not None:
                self._cache.reset()
        if self._cache is None:
            unread = self._window
        tokens_BT = torch.tensor([unread], device=self._model.embedding.weight.device)
        return self._model(tokens_BT, self._cache)[0, -1]
