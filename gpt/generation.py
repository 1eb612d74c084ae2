"""Text from a GPT, token by token, with a key-value cache.

Shapes: B batch (here 1), T tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gpt.model import GPT
from training.errors import InputError


def check_sampling(max_new_tokens: int, temperature: float, top_k: int | None, seed: int) -> None:
    """Raise an `InputError` for a sampling option that is out of range."""
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if not 0 <= temperature < float("inf"):
        raise InputError(f"temperature must be at least 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise InputError(f"top_k must be null or at least 1, got {top_k}")
    if not 0 <= seed < 2**63:
        raise InputError(f"seed must be at least 0 and below 2^63, got {seed}")


def choose_token(
    logits_V: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None = None
) -> int:
    """Draw a token from `softmax(logits / temperature)`, cut to the `top_k` likeliest; temperature 0 takes the best."""
    logits_V = logits_V.float().cpu()
    if temperature == 0:
        return int(logits_V.argmax())
    if top_k is not None and top_k < len(logits_V):
        logits_V = logits_V.masked_fill(logits_V < logits_V.topk(top_k).values[-1], -torch.inf)
    # Subtracting the largest first keeps tiny temperatures from overflowing.
    probabilities_V = ((logits_V - logits_V.max()) / temperature).softmax(-1)
    return int(torch.multinomial(probabilities_V, 1, generator=generator))


@torch.inference_mode()
def generate(
    model: GPT,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
) -> Iterator[int]:
    """Continue a prompt, yielding each token as it is drawn.

    Each token costs one pass over one token. When the context is full, the newer half of it is kept and read anew, so
    that text can go on without end: the model then sees between half a context and a whole one.

    Args:
        model: The model; it must be in evaluation mode.
        prompt: Token ids, at least one. Of a longer one than the context, the end counts.
        max_new_tokens: How many tokens to draw.
        temperature: Divides the logits: below 1 is safer, above 1 wilder, 0 takes the likeliest token.
        top_k: Draw from so many likeliest tokens only; None for all.
        seed: The same seed, prompt and weights give the same text on the same device.

    Raises:
        InputError: An option is out of range, or the prompt is empty.
    """
    check_sampling(max_new_tokens, temperature, top_k, seed)
    if len(prompt) == 0:
        raise InputError("the prompt is empty: give at least one character to continue")
    context, device = model.config.max_len, model.embedding.weight.device
    generator = torch.Generator().manual_seed(seed)
    cache = model.new_cache()
    tokens = list(prompt)
    unread = tokens[-context:]
    for _ in range(max_new_tokens):
        if cache.length + len(unread) > context:
            cache.reset()
            unread = tokens[-max(context // 2, 1) :]
        logits_BTV = model(torch.tensor([unread], device=device), cache)
        token = choose_token(logits_BTV[0, -1], temperature, top_k, generator)
        tokens.append(token)
        unread = [token]
        yield token
