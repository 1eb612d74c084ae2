"""Targets from an encoder-decoder: greedy, sampled, or by beam search; for many sources of different lengths at once.

Shapes: B sources, T tokens, V vocabulary.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from decoding.beam_search import Beam, beam_search
from decoding.choices import TargetMode
from decoding.models import TranslationModel
from decoding.native import NativeError, NativeStep
from decoding.sampling import GREEDY, NOISE_BLOCK, Chosen, Sampler, Sampling, seen_tokens
from layers import KVCache, Memory
from training.runtime.errors import InputError, require_finite
from training.seeds import noise_blocks

MAX_BEAMS = 1024
FEW_TARGETS, NARROW = 32, 256
"""The native step is faster than torch for so many targets, or for any number in a model of such a d_model."""
LOOK_EVERY = 8
"""Steps on a GPU between two looks at whether all targets have ended: a look waits for the device."""


class Decoded(NamedTuple):
    """A target that was decoded.

    Attributes:
        tokens: Without the end token.
        log_probability: Of all of its tokens, the end included, in nats.
        ended: Whether it came to its end, or else to the limit of tokens.
    """

    tokens: tuple[int, ...]
    log_probability: float
    ended: bool


@torch.inference_mode()
def decode_steps(
    model: TranslationModel,
    sources: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | None = None,
    sampling: Sampling = GREEDY,
    seeds: Sequence[int] | None = None,
    alternatives: int = 0,
    use_cache: bool = True,
    mode: TargetMode = "auto",
) -> Generator[Chosen, None, None]:
    """Write targets, a token of each at a time, up to the limit; closing the iterator ends the work.

    What comes after a target's end token means nothing: who reads them closes the iterator when all have ended.

    Args:
        model: In evaluation mode.
        sources: Token ids of each source, without special tokens.
        max_new_tokens: Most tokens of a target, the end included; None for as many as the model's context holds.
        sampling: How to choose a token; greedy unless told otherwise.
        seeds: Of the targets, for sampling; None for 0, 1, 2, …
        alternatives: How many likeliest tokens to report at each step.
        use_cache: Without it every token costs a pass over all before it, for the same logits.
        mode: How a decode step is computed with the cache: eager by the model as it stands, native in C++ on a CPU,
            auto by the faster of them that can be had.

    Raises:
        InputError: An option is out of range, a source is empty or too long, or the mode cannot be had.
    """
    limit = _limit(model, max_new_tokens)
    memory = model.encode_sources(sources)
    read = _stepper(model, memory, model.new_cache(len(sources), limit), mode) if use_cache else None
    device = model.embedding.weight.device
    tokens_BT = torch.full((len(sources), 1), model.start_token, device=device)
    noise = noise_blocks(range(len(sources)) if seeds is None else seeds, NOISE_BLOCK)
    sampler = Sampler(sampling, noise, seen_tokens([[]] * len(sources), model.vocab_size, device), alternatives)
    for step in range(1, limit + 1):
        logits_BV = read(tokens_BT) if read else model.logits(model.hidden_states(tokens_BT, memory)[:, -1:])[:, 0]
        chosen = sampler.choose(_without_start(model, logits_BV))
        yield chosen
        if step < limit:
            new_B1 = chosen.tokens_B[:, None]
            tokens_BT = new_B1 if read else torch.cat((tokens_BT, new_B1), 1)


def native_step(model: TranslationModel) -> NativeStep:
    """The decoder in C++.

    Raises:
        NativeError: It cannot be had; the message says why.
    """
    return NativeStep(model)


def _stepper(model: TranslationModel, memory: Memory, cache: KVCache, mode: TargetMode) -> Callable[[Tensor], Tensor]:
    """What reads one more token of each target, (B, 1), for the logits after it, (B, V)."""
    if mode not in get_args(TargetMode):
        raise InputError(f"mode must be one of {', '.join(get_args(TargetMode))}, got {mode}")
    memory = model.cache_cross_attention(memory)
    native_is_faster = cache.batch_size <= FEW_TARGETS or model.embedding.embedding_dim <= NARROW
    if mode == "native" or (mode == "auto" and native_is_faster):
        try:
            step = native_step(model)
            return lambda tokens_B1: step(tokens_B1, cache, memory)[:, 0]
        except NativeError as error:
            if mode == "native":
                raise InputError(f"there is no native step here: {error}") from error
    return lambda tokens_B1: model.logits(model.hidden_states(tokens_B1, memory, cache))[:, 0]


def decode(
    model: TranslationModel,
    sources: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | None = None,
    sampling: Sampling = GREEDY,
    seeds: Sequence[int] | None = None,
    use_cache: bool = True,
    mode: TargetMode = "auto",
) -> list[Decoded]:
    """Write whole targets; see `decode_steps`.

    Raises:
        InputError: As there.
        NonFiniteError: The model's logits are not finite.
    """
    steps = decode_steps(
        model, sources, max_new_tokens=max_new_tokens, sampling=sampling, seeds=seeds, use_cache=use_cache, mode=mode
    )
    tokens, log_probabilities = [], []
    ended_B: Tensor | bool = False
    look_every = LOOK_EVERY if model.embedding.weight.device.type == "cuda" else 1
    with closing(steps):
        for step, chosen in enumerate(steps, start=1):
            tokens.append(chosen.tokens_B)
            log_probabilities.append(chosen.log_probabilities_B)
            ended_B = ended_B | (chosen.tokens_B == model.end_token)
            if step % look_every == 0 and bool(ended_B.all()):
                break
    pairs = zip(torch.stack(tokens, 1).tolist(), torch.stack(log_probabilities, 1).tolist(), strict=True)
    decoded = [_up_to_end(row, likely, model.end_token) for row, likely in pairs]
    require_finite(target.log_probability for target in decoded)
    return decoded


def _up_to_end(tokens: list[int], log_probabilities: list[float], end: int) -> Decoded:
    ended = end in tokens
    length = tokens.index(end) if ended else len(tokens)
    return Decoded(tuple(tokens[:length]), sum(log_probabilities[: length + 1]), ended)


def _limit(model: TranslationModel, max_new_tokens: int | None) -> int:
    """Most tokens of a target: the decoder reads its start, and never its last token."""
    longest = model.config.max_len
    if max_new_tokens is not None and not 1 <= max_new_tokens <= longest:
        raise InputError(
            f"max_new_tokens must be at least 1 and at most {longest} (model.max_len), got {max_new_tokens}"
        )
    return max_new_tokens or longest


def _without_start(model: TranslationModel, logits_BV: Tensor) -> Tensor:
    """No target goes on with padding or a second start, which training never asked for."""
    logits_BV = logits_BV.clone()
    logits_BV[:, [model.pad_token, model.start_token]] = -torch.inf
    return logits_BV


@torch.inference_mode()
def search(
    model: TranslationModel,
    source: Sequence[int],
    *,
    width: int,
    max_new_tokens: int | None = None,
    length_penalty: float = 1.0,
    mode: TargetMode = "auto",
    on_step: Callable[[tuple[int, ...]], None] = lambda tokens: None,
) -> list[Beam]:
    """The likeliest targets of a source that a beam search finds, with their end tokens; see `decoding.beam_search`.

    A single beam is the greedy target, whatever the penalty, which would let it go on past its end. Before each step
    `on_step` is told the tokens of the best target that has not ended.

    Raises:
        InputError: An option is out of range, or the source is empty or too long.
        NonFiniteError: The model's logits are not finite.
    """
    limit = _limit(model, max_new_tokens)
    if not 1 <= width <= MAX_BEAMS:
        raise InputError(f"beams must be at least 1 and at most {MAX_BEAMS}, got {width}")
    if not 0 <= length_penalty <= 10:
        raise InputError(f"length_penalty must be at least 0 and at most 10, got {length_penalty}")
    cache = model.new_cache(width, limit)
    read_next = _stepper(model, model.encode_sources([source] * width), cache, mode)
    device = model.embedding.weight.device
    beams: list[tuple[int, ...]] = [()] * width

    def read(tokens: Sequence[int], origins: Sequence[int]) -> Tensor:
        nonlocal beams
        beams = [(*beams[origin], token) for token, origin in zip(tokens, origins, strict=True)]
        on_step(beams[0][1:])
        cache.reorder(origins)
        return _without_start(model, read_next(torch.tensor(tokens, device=device)[:, None]))

    first_BV = read([model.start_token] * width, range(width))
    penalty = length_penalty if width > 1 else 0.0
    found = beam_search(
        first_BV[0], read, width=width, max_new_tokens=limit, length_penalty=penalty, end=model.end_token
    )
    require_finite(beam.log_probability for beam in found)
    return found
