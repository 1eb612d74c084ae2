"""What is timed of an encoder-decoder: its own ways to write, and another library's model of the same size."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from data.config import FRAME, PairConfig, bpe_size
from data.pairs.batches import frame_source, padded
from data.tokenizers.vocabulary import END, PAD, SPECIAL, START, Vocabulary
from decoding.baselines import transformers_variants
from decoding.benchmark import Benchmark, Prompts, Seconds, Variant, random_tokens, timed
from decoding.choices import TargetMode
from decoding.machine import count_parameters, describe, with_random_weights
from decoding.merging import merge_products
from decoding.native import NativeError
from decoding.targets import decode_steps, native_step
from seq2seq.config import Seq2SeqConfig
from seq2seq.model import EncoderDecoder
from seq2seq.task import load_seq2seq
from training.config.command_line import Namespace
from training.runtime.device import inference_device
from training.runtime.errors import InputError

ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def prepare(options: Namespace, config: Seq2SeqConfig | None) -> Benchmark:
    """What `launch/bench_kv_cache.py` measures of an encoder-decoder; sources are read within the time.

    Raises:
        InputError: The sources are longer than the model's context, or a mode cannot be had.
    """
    device, source, length = inference_device(), options.checkpoint, options.length
    if config is None:
        model = load_seq2seq(Path(source), device, trust_code=options.trust_code).model
    else:
        fresh = EncoderDecoder(config.model, vocabulary_size(config.data))
        model, source = with_random_weights(fresh, config.seed, device), f"{options.config[0]}, random weights"
    merge_products(model)
    room = model.config.max_len - FRAME
    if length > room:
        raise InputError(f"length must be at most model.max_len minus {FRAME} ({room}), got {length}")
    modes = options.mode or ["eager"]
    if options.mode is None:
        with suppress(NativeError):
            native_step(model)
            modes.append("native")
    return Benchmark(
        about=describe(model, source) | {"precision": "fp32", "task": f"for sources of {length} symbols, read anew"},
        variants=variants(model, modes, options.batch, uncached=options.uncached == "yes"),
        baselines=_bart(model, options) if options.peer else [],
        prompts=lambda n: [random_tokens(model.vocab_size, length, "source", i, lowest=SPECIAL) for i in range(n)],
        rows=[length + 1],
    )


def vocabulary_size(data: PairConfig) -> int:
    """How many tokens a model knows that has learnt nothing yet; characters and words are as many as letters then."""
    size = bpe_size(data.tokenizer)
    if size is not None:
        return SPECIAL + size
    name = "characters" if data.tokenizer == "words" else data.tokenizer
    return len(Vocabulary.learnt(name, ALPHABET if data.task == "pairs" else data.symbols))


def variants(
    model: EncoderDecoder, modes: Sequence[TargetMode], streams: Sequence[int], *, uncached: bool
) -> list[Variant]:
    """Each mode with the caches; with `uncached`, eager whatever the modes, and for the first number also without."""
    ways = [("eager", False, streams[:1])] if uncached else []
    ways += [(mode, True, streams) for mode in dict.fromkeys(["eager", *modes] if uncached else modes)]
    return [
        Variant(
            precision="fp32",
            mode=mode,
            use_cache=use_cache,
            streams=count,
            write=partial(_write, model, {"mode": mode, "use_cache": use_cache}),
            parameters=count_parameters(model),
        )
        for mode, use_cache, counts in ways
        for count in counts
    ]


def _write(model: EncoderDecoder, options: dict[str, Any], sources: Prompts, new_tokens: int) -> Seconds:
    return timed(decode_steps(model, sources, max_new_tokens=new_tokens, **options))


def _bart(model: EncoderDecoder, options: Namespace) -> list[Variant]:
    """transformers' `BartForConditionalGeneration` of the same size, with random weights.

    Its feed-forward layers have two matrices; where ours have three, they are so much wider.

    Raises:
        InputError: transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise InputError("--peer transformers needs the package transformers: pip install transformers") from error
    shape, device = model.config, model.embedding.weight.device
    hidden = shape.d_ff * 3 // 2 if shape.activation == "swiglu" else shape.d_ff
    of_both = {"layers": shape.num_layers, "attention_heads": shape.num_heads, "ffn_dim": hidden}
    sizes: dict[str, Any] = {f"{part}_{name}": n for part in ("encoder", "decoder") for name, n in of_both.items()}
    special: dict[str, Any] = {"pad_token_id": PAD, "eos_token_id": END, "decoder_start_token_id": START}
    config = transformers.BartConfig(
        vocab_size=model.vocab_size,
        d_model=shape.d_model,
        max_position_embeddings=shape.max_len,
        bos_token_id=START,
        forced_eos_token_id=None,
        **sizes,
        **special,
    )
    theirs: Any = transformers.BartForConditionalGeneration(config)

    def inputs(sources: Prompts) -> dict[str, Tensor]:
        source_BS = padded([frame_source(source) for source in sources], PAD).to(device)
        return {"inputs": source_BS, "attention_mask": (source_BS != PAD).long()}

    return transformers_variants(theirs.to(device).eval(), "fp32", inputs, {", BART": special}, options)
