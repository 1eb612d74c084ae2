"""What the caches save an encoder-decoder: many sources in one batch, with and without them, and by another library.

All arms write the same number of tokens, greedily, and take turns pass by pass; the sources are read within the time.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from data.pair_batches import frame_source, padded
from data.vocabulary import END, PAD, SPECIAL, START
from decoding.native import NativeError
from decoding.targets import decode_steps, native_step
from seq2seq.model import EncoderDecoder
from training.runtime.errors import InputError, require_finite
from training.seeds import generator

Sources = Sequence[Sequence[int]]
Say = Callable[[str], None]


@dataclass(kw_only=True)
class Arm:
    """One way to decode.

    Attributes:
        mode: Its name, which begins with the precision.
        decode: Writes so many tokens for each source.
        parameters: Of the model.
        seconds: Of each pass.
    """

    mode: str
    decode: Callable[[Sources, int], Any]
    parameters: int
    seconds: list[float] = field(default_factory=list)


def our_arms(model: EncoderDecoder) -> list[Arm]:
    """Without the caches, and with them: eager, and native where that can be had."""

    def arm(name: str, **options: Any) -> Arm:
        def decode(sources: Sources, new_tokens: int) -> None:
            for chosen in decode_steps(model, sources, max_new_tokens=new_tokens, **options):
                chosen.tokens_B.tolist()
            require_finite(chosen.log_probabilities_B.tolist())

        return Arm(mode=f"fp32 {name}", decode=decode, parameters=sum(p.numel() for p in model.parameters()))

    arms = [arm("eager, without cache", use_cache=False), arm("eager, with cache", mode="eager")]
    with suppress(NativeError):
        native_step(model)
        arms.append(arm("native, with cache", mode="native"))
    return arms


def bart_arm(model: EncoderDecoder) -> Arm:
    """transformers' `BartForConditionalGeneration` of the same size, with random weights, by its `generate`.

    Its feed-forward layers have two matrices in place of three, and are so much wider.

    Raises:
        InputError: transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise InputError("--peer transformers needs the package transformers: pip install transformers") from error
    shape = model.config
    of_both = {"layers": shape.num_layers, "attention_heads": shape.num_heads, "ffn_dim": shape.d_ff * 3 // 2}
    sizes: dict[str, Any] = {f"{part}_{name}": n for part in ("encoder", "decoder") for name, n in of_both.items()}
    config = transformers.BartConfig(
        vocab_size=model.vocab_size,
        d_model=shape.d_model,
        max_position_embeddings=shape.max_len,
        **sizes,
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=END,
        decoder_start_token_id=START,
        forced_eos_token_id=None,
    )
    theirs: Any = transformers.BartForConditionalGeneration(config)
    theirs.to(model.embedding.weight.device).eval()

    @torch.inference_mode()
    def decode(sources: Sources, new_tokens: int) -> None:
        source_BS = padded([frame_source(source) for source in sources], PAD).to(theirs.device)
        asked = transformers.GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            decoder_start_token_id=START,
            pad_token_id=PAD,
            eos_token_id=END,
        )
        theirs.generate(source_BS, attention_mask=(source_BS != PAD).long(), generation_config=asked).tolist()

    parameters = sum(parameter.numel() for parameter in theirs.parameters())
    return Arm(mode=f"fp32 transformers {transformers.__version__}, BART", decode=decode, parameters=parameters)


def random_sources(vocab_size: int, count: int, length: int) -> list[list[int]]:
    """Sources that anybody can draw again."""
    drawn: list[list[int]] = torch.randint(
        SPECIAL, vocab_size, (count, length), generator=generator(0, "sources")
    ).tolist()
    return drawn


def measure(arms: Sequence[Arm], sources: Sources, new_tokens: int, repeats: int, say: Say = lambda text: None) -> None:
    """Time all arms in turn, into their `seconds`, after one pass of each that does not count.

    Args:
        arms: Whom.
        sources: What to read.
        new_tokens: Tokens to write for each.
        repeats: Passes of each.
        say: Called with a line after each pass.
    """
    for arm in arms:
        arm.decode(sources, new_tokens)
    for repeat in range(repeats):
        for arm in arms if repeat % 2 == 0 else reversed(arms):
            start = time.perf_counter()
            arm.decode(sources, new_tokens)
            arm.seconds.append(time.perf_counter() - start)
            say(f"pass {repeat + 1} of {repeats} {arm.mode}: {arm.seconds[-1]:.3f} s")


def rows_of(arms: Sequence[Arm], batch: int, new_tokens: int) -> list[dict[str, Any]]:
    """What the JSON file and the table hold of each arm."""
    return [
        {
            "mode": arm.mode,
            "batch": batch,
            "new_tokens": new_tokens,
            "seconds": statistics.median(arm.seconds),
            "fastest": min(arm.seconds),
            "slowest": max(arm.seconds),
            "tokens_per_second": batch * new_tokens / statistics.median(arm.seconds),
            "parameters": arm.parameters,
        }
        for arm in arms
    ]
