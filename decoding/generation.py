"""Tokens from a GPT, step by step, for one text or for many at once.

Shapes: B sequences, T tokens, V vocabulary.
"""

from collections import deque
from collections.abc import Generator, Sequence
from itertools import count
from typing import get_args

import torch
from torch import Tensor

from decoding.beam_search import Beam, beam_search
from decoding.choices import WhenFull
from decoding.decoder import MAX_TOKENS, Decoder
from decoding.sampling import GREEDY, NOISE_BLOCK, Chosen, Sampler, Sampling, seen_tokens
from layers import KVCache
from training.runtime.errors import InputError, require_finite
from training.seeds import noise_blocks

LOOKUP_LENGTH = 3
"""Tokens that must stand in the text before what prompt lookup proposes."""
LOOKUP_WINDOW = 1024
"""Tokens among which it looks for them."""


def check_length_and_seed(max_new_tokens: int, seed: int) -> None:
    """Raise an `InputError` for one that is out of range."""
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if not 0 <= seed < 2**63:
        raise InputError(f"seed must be at least 0 and below 2^63, got {seed}")


def new_token_limit(context: int, prompt: Sequence[int], max_new_tokens: int, when_full: WhenFull) -> int:
    """How many tokens can follow a prompt.

    Raises:
        InputError: An option is out of range, or the prompt is empty or longer than the context.
    """
    check_length_and_seed(max_new_tokens, 0)
    if when_full not in get_args(WhenFull):
        raise InputError(f"when_full must be stop or slide, got {when_full}")
    if len(prompt) == 0:
        raise InputError("the prompt is empty: give at least one character to continue")
    if when_full == "slide":
        return max_new_tokens
    if len(prompt) > context:
        raise InputError(
            f"the prompt has {len(prompt):,} tokens, and the model's context {context:,}: shorten it, or let its "
            f"beginning go with when_full slide"
        )
    # The last token is never read.
    return min(max_new_tokens, context - len(prompt) + 1)


def context_used(tokens: int, context: int) -> int:
    """How many tokens of a text are seen: from a full context the older half goes, again and again."""
    if tokens <= context:
        return tokens
    half = max(context // 2, 1)
    return half + (tokens - context - 1) % (context - half + 1)


@torch.inference_mode()
def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    seeds: Sequence[int] = (0,),
    when_full: WhenFull = "stop",
    alternatives: int = 0,
) -> Generator[Chosen, None, None]:
    """Continue texts, a token of each at a time; closing the iterator ends the work.

    The tokens stay on the model's device, and nothing waits for them here.

    Args:
        decoder: The model.
        prompts: Token ids of each text; or of one n-th as many, each of which n texts begin with. Each is read once.
        max_new_tokens: Steps; see `new_token_limit` for each text's own.
        sampling: How to choose a token; None for draws from all of them.
        seeds: Of the texts; the same seed gives the same text, whatever stands beside it, unless rounding decides.
        when_full: When a text fills the context: `stop`, or `slide`, which keeps the newer half of the context, reads
            it anew at positions from 0 on, and goes on. Steps after a text's end mean nothing for it.
        alternatives: How many likeliest tokens to report at each step.

    Raises:
        InputError: An option is out of range, or a prompt is empty or too long.
    """
    if not prompts or not seeds or len(seeds) % len(prompts):
        raise InputError(f"expected as many texts of each prompt, got {len(prompts)} prompts, {len(seeds)} seeds")
    for seed in seeds:
        check_length_and_seed(max_new_tokens, seed)
    context = decoder.model.config.max_len
    texts = [text for text in prompts for _ in range(len(seeds) // len(prompts))]
    limits = [new_token_limit(context, text, max_new_tokens, when_full) for text in texts]
    windows = [list(text[-context:]) for text in prompts]
    cache = decoder.take_cache(len(texts), min(context, max(map(len, windows)) + max(limits) - 1))
    try:
        logits_BV = _read_prompts(decoder, windows, cache)
        seen_BV = seen_tokens(texts, decoder.model.vocab_size, logits_BV.device)
        sampler = Sampler(sampling or Sampling(), noise_blocks(seeds, NOISE_BLOCK), seen_BV, alternatives)
        written: deque[Tensor] = deque(maxlen=context)
        for step in count(1):
            chosen = sampler.choose(logits_BV)
            yield chosen
            if step == max(limits):
                return
            written.append(chosen.tokens_B)
            logits_BV = _read_chosen(decoder, texts, written, cache, [step < limit for limit in limits])
    finally:
        decoder.give_back(cache)


def _read_prompts(decoder: Decoder, windows: Sequence[Sequence[int]], cache: KVCache) -> Tensor:
    """Logits after each prompt, (B, V)."""
    tokens_BT = _padded(windows, cache.lengths_B.device)
    counts = [len(window) for window in windows]
    if len(windows) == cache.batch_size:
        return decoder.prefill(tokens_BT, cache, counts)
    once = decoder.model.new_cache(len(windows), max(counts))
    logits_BV = decoder.prefill(tokens_BT, once, counts)
    cache.fill_from(once)
    return logits_BV.repeat_interleave(cache.batch_size // len(windows), 0)


def _read_chosen(
    decoder: Decoder, texts: Sequence[Sequence[int]], written: deque[Tensor], cache: KVCache, live: Sequence[bool]
) -> Tensor:
    """Read the token chosen last of each text that is `live`; logits of the next one, (B, V)."""
    full = [b for b, length in enumerate(cache.lengths) if live[b] and length == cache.max_len]
    if full:
        return _slide(decoder, texts, written, cache, full)
    chosen_B1 = written[-1][:, None]
    if all(live):
        return decoder.decode_step(chosen_B1, cache)[:, -1]
    return decoder.prefill(chosen_B1, cache, [int(goes_on) for goes_on in live])


def _slide(
    decoder: Decoder, prompts: Sequence[Sequence[int]], written: deque[Tensor], cache: KVCache, full: Sequence[int]
) -> Tensor:
    """Let full sequences read the newer half of their context anew, and all others their last token."""
    half = max(cache.max_len // 2, 1)
    written_BT = torch.stack(list(written), 1)[:, -half:].tolist()
    windows = [new[-1:] for new in written_BT]
    for row in full:
        windows[row] = [*prompts[row], *written_BT[row]][-half:]
    cache.reset(full)
    return decoder.prefill(_padded(windows, cache.lengths_B.device), cache, [len(window) for window in windows])


def _padded(texts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    longest = max(map(len, texts))
    return torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=device)


@torch.inference_mode()
def generate_with_lookup(
    decoder: Decoder,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    draft: int = 8,
    when_full: WhenFull = "stop",
    alternatives: int = 0,
) -> Generator[Chosen, None, None]:
    """The greedy text, several tokens at a time where it repeats itself (Saxena 2023, "Prompt Lookup Decoding").

    What followed the last tokens where they stand earlier in the text is proposed and read at once; the model keeps
    what it would have written itself. With the native step that is the greedy text to the last bit of its logits;
    elsewhere, rounding may decide between two tokens that are as likely as each other.

    Args:
        decoder, prompt, max_new_tokens, when_full, alternatives: As in `generate`, for one text.
        draft: Tokens to propose at most.

    Raises:
        InputError: An option is out of range, or the prompt is empty or too long.
    """
    if not 1 <= draft < MAX_TOKENS:
        raise InputError(f"lookup must be at least 1 and at most {MAX_TOKENS - 1}, got {draft}")
    context = decoder.model.config.max_len
    limit = new_token_limit(context, prompt, max_new_tokens, when_full)
    text, device = list(prompt), decoder.model.embedding.weight.device
    cache = decoder.take_cache(1, min(context, len(prompt) + limit - 1))
    sampler = Sampler(GREEDY, lambda row, block: torch.empty(0), torch.empty(0), alternatives)
    try:
        chosen = sampler.choose(decoder.prefill(_padded([text[-context:]], device), cache))
        proposed: list[int] = []
        while True:
            # Row i follows the i-th proposed token: it counts as long as all before it were proposed rightly.
            right = _count_equal(proposed, tokens := chosen.tokens_B.tolist())
            cache.rewind(len(proposed) - right)
            for row in range(right + 1):
                text.append(tokens[row])
                yield Chosen(*(values[row : row + 1] for values in chosen))
            if (left := limit - (len(text) - len(prompt))) == 0:
                return
            if cache.lengths[0] == cache.max_len:
                cache.reset()
                window, proposed = text[-max(cache.max_len // 2, 1) :], []
                chosen = sampler.choose(decoder.prefill(_padded([window], device), cache))
                continue
            proposed = _look_up(text, min(draft, left - 1, cache.max_len - cache.lengths[0] - 1))
            chosen = sampler.choose(decoder.decode_step(_padded([[text[-1], *proposed]], device), cache)[0])
    finally:
        decoder.give_back(cache)


def _count_equal(proposed: Sequence[int], tokens: Sequence[int]) -> int:
    """How many of the first tokens of `proposed` are those of `tokens`, which is longer."""
    return next((i for i, (a, b) in enumerate(zip(proposed, tokens, strict=False)) if a != b), len(proposed))


def _look_up(text: Sequence[int], max_tokens: int) -> list[int]:
    """What followed the last tokens where they stood before, most recently; again and again if that is little."""
    text = list(text[-LOOKUP_WINDOW:])
    last = text[-LOOKUP_LENGTH:]
    for start in range(len(text) - LOOKUP_LENGTH - 1, -1, -1):
        if text[start : start + LOOKUP_LENGTH] == last:
            following = text[start + LOOKUP_LENGTH :]
            return [following[n % len(following)] for n in range(max_tokens)]
    return []


@torch.inference_mode()
def search(
    decoder: Decoder,
    prompt: Sequence[int],
    *,
    width: int,
    max_new_tokens: int,
    length_penalty: float = 1.0,
    end: int | None = None,
) -> list[Beam]:
    """The likeliest continuations that a beam search finds, up to an `end`; see `decoding.beam_search`.

    Raises:
        InputError: An option is out of range, or the prompt is empty or too long.
        NonFiniteError: The model's logits are not finite.
    """
    context = decoder.model.config.max_len
    limit = new_token_limit(context, prompt, max_new_tokens, "stop")
    if not 1 <= width <= 1024:
        raise InputError(f"beams must be at least 1 and at most 1024, got {width}")
    if not 0 <= length_penalty <= 10:
        raise InputError(f"length_penalty must be at least 0 and at most 10, got {length_penalty}")
    cache = decoder.take_cache(width, min(context, len(prompt) + limit - 1))

    def read(tokens: Sequence[int], origins: Sequence[int]) -> Tensor:
        cache.reorder(origins)
        return decoder.decode_step(torch.tensor(tokens, device=cache.lengths_B.device)[:, None], cache)[:, -1]

    try:
        logits_BV = _read_prompts(decoder, [prompt], cache)
        found = beam_search(
            logits_BV[0], read, width=width, max_new_tokens=limit, length_penalty=length_penalty, end=end
        )
        require_finite(beam.log_probability for beam in found)
        return found
    finally:
        decoder.give_back(cache)
