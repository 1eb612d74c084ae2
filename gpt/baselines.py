"""What is timed of a GPT: its own ways to write, and another library with the same weights."""

import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from decoding.baselines import transformers_variants
from decoding.benchmark import Benchmark, Prompts, Seconds, Variant, random_tokens, timed
from decoding.choices import ROWS, Mode, Precision
from decoding.decoder import COMPILED_STEPS, Decoder, convert
from decoding.generation import context_used, generate
from decoding.machine import PROMPT_TOKENS, costs, describe, with_random_weights
from decoding.models import LanguageModel
from decoding.native import FLAGS, SOURCE
from decoding.sampling import GREEDY, Chosen, Sampler, seen_tokens
from gpt.config import GPTConfig
from gpt.formats.to_transformers import to_transformers
from gpt.model import GPT
from gpt.task import load_gpt
from layers.native.build import build, find_compiler
from training.config.command_line import Namespace
from training.runtime.device import inference_device
from training.runtime.errors import require_finite

VOCAB_SIZE = 65
LONG_PROMPT = 400
Forward = Callable[[Tensor], Tensor]
BASELINE_PRECISIONS: Sequence[Precision] = ("fp32", "bf16")


def prepare(options: Namespace, config: GPTConfig | None) -> Benchmark:
    """What `launch/bench_kv_cache.py` measures of a GPT, whose weights are random unless it comes from a checkpoint.

    Raises:
        InputError: A mode cannot be had, or a baseline has no such model.
    """
    device, source = inference_device(), options.checkpoint
    if config is None:
        model = load_gpt(Path(source), device, trust_code=options.trust_code).model
    else:
        model = with_random_weights(GPT(config.model, VOCAB_SIZE), config.seed, device)
        source = f"{options.config[0]}, random weights"
    uncached = options.uncached == "yes"
    fastest = Decoder(model, steps=COMPILED_STEPS).mode
    modes = list(dict.fromkeys(options.mode or ["eager", fastest]))
    precisions = options.precision or ["fp32", *(("bf16", "int8") if modes != ["eager"] else ())]
    models = {precision: convert(deepcopy(model), precision) for precision in precisions}
    about = describe(model, source) | {"precision": precisions[0], "prompt_tokens": PROMPT_TOKENS}
    decoders = decoders_of(models, modes, uncached=uncached)
    rounded = {precision: other for precision, other in models.items() if precision != "fp32"}
    about["greedy_agreement"] = agreement(model, rounded, ROWS[-1]) if rounded else {}
    if "native" in modes:
        about["native_build_seconds"] = _native_build_seconds()
    return Benchmark(
        about=about | {"task": f"after a prompt of {PROMPT_TOKENS} tokens"},
        variants=variants(decoders, options.batch, ("eager", "compiled") if uncached else ()),
        baselines=_baselines(model, options, compiled="compiled" in modes) if options.peer else [],
        prompts=lambda streams: random_prompts(model.vocab_size, streams),
        rows=ROWS,
        long_prompt=random_tokens(model.vocab_size, min(LONG_PROMPT, model.config.max_len), "prompt", 1),
        device=device,
    )


def random_prompts(vocab_size: int, streams: int) -> list[list[int]]:
    """Short ones, that anybody can draw again."""
    return [random_tokens(vocab_size, PROMPT_TOKENS, "prompt", number) for number in range(streams)]


def decoders_of(
    models: Mapping[Precision, GPT], modes: Sequence[Mode], *, uncached: bool
) -> list[tuple[Precision, Decoder]]:
    """Each precision in each mode, int8 only where the mode reads it as it is; the first one eager, too, if `uncached`.

    So the table compares something with and without the cache, whatever was asked for.
    """
    found = []
    for number, (precision, model) in enumerate(models.items()):
        if number == 0 and uncached:
            wanted: Sequence[Mode] = ["eager", *modes]
        else:
            wanted = [mode for mode in modes if (precision, mode) != ("int8", "eager") or len(modes) == 1]
        found += [(precision, Decoder(model, mode)) for mode in dict.fromkeys(wanted)]
    return found


def variants(
    decoders: Sequence[tuple[Precision, Decoder]], streams: Sequence[int], uncached: Collection[Mode]
) -> list[Variant]:
    """What decoders write; in some modes, the first precision and number of streams also without the cache."""
    found = []
    for precision, decoder in decoders:
        model, mode = decoder.model, decoder.mode
        variant, write = partial(Variant, precision=precision, mode=mode), partial(_write, decoder)
        if mode in uncached and precision == decoders[0][0]:
            forward = torch.compile(model, dynamic=True) if mode == "compiled" else model
            plain = partial(write_without_cache, model, forward)
            found.append(variant(streams=streams[0], use_cache=False, write=plain))
        found += [variant(streams=count, write=write, costs=costs(model, count)) for count in streams]
    return found


def _write(decoder: Decoder, prompts: Prompts, new_tokens: int) -> Seconds:
    options: dict[str, Any] = {"sampling": GREEDY, "seeds": [0] * len(prompts), "when_full": "slide"}
    return timed(generate(decoder, prompts, max_new_tokens=new_tokens, **options))


def write_without_cache(
    model: LanguageModel, forward: Forward, prompts: Prompts, new_tokens: int, known: Sequence[int] = ()
) -> Seconds:
    """Continue prompts of one length greedily, with a pass over all that is seen of the text for each token.

    Args:
        model, forward: The model, and what reads a text: itself, or what it was compiled to.
        prompts: Their tokens.
        new_tokens: How many to write.
        known: Tokens that a single text goes on with, whatever is chosen.
    """
    context, device = model.config.max_len, model.embedding.weight.device
    sampler = Sampler(GREEDY, lambda row, block: torch.empty(0), seen_tokens(prompts, model.vocab_size, device))
    texts = [list(prompt[-context:]) for prompt in prompts]

    @torch.inference_mode()
    def steps() -> Iterator[Chosen]:
        for n in range(new_tokens):
            used = context_used(len(texts[0]), context)
            chosen = sampler.choose(forward(torch.tensor([text[-used:] for text in texts], device=device))[:, -1])
            yield chosen
            for text, token in zip(texts, known[n : n + 1] or chosen.tokens_B.tolist(), strict=True):
                text.append(token)

    return timed(steps())


def _baselines(model: GPT, options: Namespace, *, compiled: bool) -> list[Variant]:
    """transformers with the same weights; on a GPU also with its static cache, for which it compiles itself."""
    device, found = model.embedding.weight.device, []

    def inputs(prompts: Prompts) -> dict[str, Tensor]:
        prompt_BT = torch.tensor(prompts, device=device)
        return {"inputs": prompt_BT, "attention_mask": torch.ones_like(prompt_BT)}

    ways: dict[str, dict[str, Any]] = {"": {}}
    if compiled and device.type == "cuda":
        ways[", compiled"] = {"cache_implementation": "static", "max_cache_len": model.config.max_len}
    for precision in BASELINE_PRECISIONS:
        converted = convert(deepcopy(model), precision, merge=False)  # They know the weights by their names.
        theirs, of_model = to_transformers(converted), partial(costs, converted)
        found += transformers_variants(theirs, precision, inputs, ways, options, of_model)
    return found


def agreement(model: GPT, rounded: Mapping[Precision, GPT], tokens: int) -> dict[str, float]:
    """How often the likeliest token of others is that of `model`, after each beginning of its greedy text."""
    prompt = random_tokens(model.vocab_size, PROMPT_TOKENS, "prompt", 0)
    limit = min(tokens, model.config.max_len - len(prompt))
    chosen = list(generate(Decoder(model, "eager"), [prompt], max_new_tokens=limit, sampling=GREEDY))
    require_finite([float(chosen[-1].log_probabilities_B)])
    text_BT = torch.tensor([prompt + [int(step.tokens_B) for step in chosen]], device=model.embedding.weight.device)
    with torch.inference_mode():
        likeliest = {name: other(text_BT)[0, PROMPT_TOKENS - 1 :].argmax(-1) for name, other in rounded.items()}
        expected_T = model(text_BT)[0, PROMPT_TOKENS - 1 :].argmax(-1)
    return {name: float((tokens_T == expected_T).float().mean()) for name, tokens_T in likeliest.items()}


def _native_build_seconds() -> float:
    """How long the native step takes to build, once for a machine."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        build(find_compiler(), SOURCE, FLAGS, Path(folder, "native.so"))
        return time.perf_counter() - start
