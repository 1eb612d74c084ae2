"""What `launch/evaluate.py` does with a GPT: text that streams, a conversation, a search, or the loss on a split."""

import math
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from data.config import TextConfig
from data.sources.encodings import decode_text, read_text
from data.sources.row_streams import ROW_FILES
from data.tokenizers.tokenizer import Tokenizer, unit_of
from decoding.decoder import Decoder, convert
from decoding.generation import search
from decoding.sampling import Sampling
from decoding.token_text import TokenText, shown_token
from decoding.writing import Piece, write
from gpt.task import LoadedGPT, default_prompt, load_gpt, measure_split
from training.config.command_line import Namespace
from training.runtime.device import inference_device, make_accelerator
from training.runtime.errors import InputError
from training.runtime.threads import set_cpu_threads


def evaluate(options: Namespace) -> None:
    """Write texts, or measure a loss, as the options of `decoding.options.parse` ask for it."""
    if options.split is None:
        compose(options)
    else:
        measure(options)


def read_prompts(options: Namespace, loaded: LoadedGPT) -> list[str]:
    """The texts to continue.

    Raises:
        InputError: One is empty or cannot be read.
    """
    if options.prompt_file is not None:
        stdin = options.prompt_file == "-"
        path = Path(options.prompt_file)
        text, note = decode_text(sys.stdin.buffer.read(), "standard input") if stdin else read_text(path)
        if note is not None:
            print(f"the prompt is {note}", file=sys.stderr)
        return [re.sub(r"(\r\n|\n|\r)\Z", "", text) or text]
    if options.prompt is None:
        return [default_prompt(loaded.tokenizer)]
    if "" in options.prompt:
        raise InputError("--prompt is empty: give at least one character to continue")
    return list(options.prompt)


def compose(options: Namespace) -> None:
    """Write texts, as the options ask for it."""
    Sampling.of(options)  # What is wrong with it is said before a model is loaded.
    set_cpu_threads()
    loaded = load_gpt(options.checkpoint, inference_device(), weights=options.weights, trust_code=options.trust_code)
    convert(loaded.model, options.precision or "fp32")
    # Those of several texts are read at once, and how long a conversation gets is not known.
    decoder = Decoder(loaded.model, options.mode, 0 if options.interactive else options.max_new_tokens)
    if options.interactive:
        converse(options, decoder, loaded)
    elif options.beams:
        show_beams(options, decoder, loaded)
    else:
        stream(options, decoder, loaded, read_prompts(options, loaded))


def stream(
    options: Namespace,
    decoder: Decoder,
    loaded: LoadedGPT,
    prompts: Sequence[str],
    interrupted: Callable[[], bool] = lambda: False,
) -> None:
    """Stream the first text to standard output, let the others follow, and tell the speed on standard error."""
    texts = [(prompt, options.seed + n) for prompt in prompts for n in range(options.num_samples)]
    waiting: list[list[Piece]] = [[] for _ in texts]
    first_at, written, ends = 0.0, [0] * len(texts), set()

    def begin(number: int) -> None:
        prompt, seed = texts[number]
        if len(texts) > 1:
            print(f"--- {number + 1} of {len(texts)}, seed {seed} ---")
        print(prompt, end="\n" if options.alternatives else "", flush=True)

    names = ("max_new_tokens", "seed", "num_samples", "when_full", "alternatives", "lookup")
    asked = {name: getattr(options, name) for name in names}
    sampling, stop = Sampling.of(options), options.stop or ()
    with closing(write(decoder, loaded.tokenizer, prompts, sampling=sampling, stop=stop, **asked)) as pieces:
        for piece in pieces:
            if interrupted():
                raise KeyboardInterrupt
            if not first_at:
                first_at = time.perf_counter()
                begin(0)
            written[piece.sample] += piece.token is not None
            ends.add(piece.end)
            if piece.sample == 0:
                show(piece, options.alternatives, loaded.tokenizer)
            else:
                waiting[piece.sample].append(piece)
    seconds = time.perf_counter() - first_at
    print()
    for number in range(1, len(texts)):
        begin(number)
        for piece in waiting[number]:
            show(piece, options.alternatives, loaded.tokenizer)
        print()
    rate = (sum(written) - len(texts)) / seconds
    speed = f", {rate:,.0f} tokens/s after the first" if sum(written) > len(texts) else ""
    several = f"{len(texts)} texts, " if len(texts) > 1 else ""
    where = f"{inference_device().type}, {options.precision or 'fp32'}, {decoder.mode}"
    print(f"{several}{sum(written):,} tokens{speed}, on {where}", file=sys.stderr)
    lengths = [len(loaded.tokenizer.encode_prompt(prompt)) for prompt, _ in texts]
    tell_of_context(loaded.config.model.max_len, lengths, written, full="context" in ends)


def tell_of_context(context: int, prompts: Sequence[int], written: Sequence[int], *, full: bool) -> None:
    """Say what the model did not see of texts, given their tokens, and whether they ended as its context was full."""
    longest = max(prompts)
    if longest > context:
        print(f"the prompt has {longest:,} tokens: the model sees the last {context} of them", file=sys.stderr)
    # The last token is never read.
    if any(min(prompt, context) + n - 1 > context for prompt, n in zip(prompts, written, strict=True)):
        slid = f"the context of {context} tokens was full: its newer half was kept (--when_full stop ends)"
        print(slid, file=sys.stderr)
    if full:
        print(f"the context of {context} tokens is full: --when_full slide goes on", file=sys.stderr)


def show(piece: Piece, alternatives: int, tokenizer: Tokenizer) -> None:
    """Print what came; with alternatives also the tokens that are a part of a character."""
    if not alternatives:
        print(piece.text, end="", flush=True)
    elif piece.token is not None:
        others = "  ".join(f"{text!r} {math.exp(likely):.3f}" for text, likely in piece.alternatives)
        shown = piece.text or shown_token(tokenizer, piece.token)
        print(f"{shown!r:6} {math.exp(piece.log_probability):.3f}   likeliest: {others}", flush=True)


def show_beams(options: Namespace, decoder: Decoder, loaded: LoadedGPT) -> None:
    """Search, and print what was found."""
    tokenizer = loaded.tokenizer
    for prompt in read_prompts(options, loaded):
        beams = search(
            decoder,
            tokenizer.encode_prompt(prompt),
            width=options.beams,
            max_new_tokens=options.max_new_tokens,
            length_penalty=options.length_penalty,
            end=tokenizer.end_of_text,
        )
        for number, beam in enumerate(beams, start=1):
            print(f"--- {number} of {len(beams)}, log-probability {beam.log_probability:.3f} ---")
            print(prompt + "".join(map(TokenText(tokenizer).add, beam.tokens)))
        best = beams[0].tokens
        if len(best) < options.max_new_tokens and best[-1] != tokenizer.end_of_text:
            print(f"the context of {loaded.config.model.max_len} tokens is full: there a search ends", file=sys.stderr)


def converse(options: Namespace, decoder: Decoder, loaded: LoadedGPT) -> None:
    """Continue one prompt after the other, until the input ends."""
    print("A text to continue, then Enter. Ctrl-C ends a text, Ctrl-D all.", file=sys.stderr)
    while True:
        try:
            prompt = input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        try:
            with noted_interrupts() as interrupted:
                stream(options, decoder, loaded, [prompt or default_prompt(loaded.tokenizer)], interrupted)
        except KeyboardInterrupt:
            print()
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)


@contextmanager
def noted_interrupts() -> Iterator[Callable[[], bool]]:
    """While entered, Ctrl-C is only noted, for whoever asks: an exception in the middle of anything can get lost."""
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def other_text(run: TextConfig, given: dict[str, Any]) -> TextConfig:
    """The text that options name, and otherwise as the run's: of rows, those with answers where its rows have some."""
    # What a row becomes depends on the tokenizer, and what is held out on the share.
    usual: dict[str, Any] = {name: getattr(run, name) for name in ("tokenizer", "validation_share", "packing")}
    source = str(given.get("source", ""))
    if "column" not in given and (source.endswith(ROW_FILES) or source.startswith("hub:")):
        usual |= run.answer_columns
    return TextConfig(**usual | given)


def measure(options: Namespace) -> None:
    """Print the loss over every target of a split, in the precision of the run."""
    loaded = load_gpt(options.checkpoint, weights=options.weights, trust_code=options.trust_code)
    int8 = options.precision == "int8"
    if int8:
        convert(loaded.model, "int8")
    runtime = make_accelerator("fp32" if int8 else options.precision or loaded.config.training.precision)
    if runtime.precision == "fp64":
        loaded.model.double()
    given = {name: value for name, value in vars(options.data).items() if value is not None}
    unknown = given.pop("unknown", None)
    other = other_text(loaded.config.data, given) if given else None
    measured = measure_split(runtime.accelerator, loaded, options.split, other, unknown)
    metrics, unit = measured.metrics, unit_of(loaded.tokenizer)
    runtime.accelerator.end_training()
    if not runtime.accelerator.is_main_process:
        return
    # What accelerate calls fp32 computes in the dtype of the weights themselves.
    described = (
        runtime.description.rpartition(", ")[0] + ", int8 weights, the rest in bf16" if int8 else runtime.description
    )
    print(f"device              {described}", file=sys.stderr)
    print(f"text                {measured.description}")
    print(f"weights             {loaded.weights}")
    print(f"loss                {measured.loss:.4f} nats per {unit}")
    print(f"perplexity          {metrics['perplexity']:.4f} per {unit}")
    if "bits_per_character" in metrics:
        print(f"bits per character  {metrics['bits_per_character']:.4f}")
    print(f"bits per byte       {metrics['bits_per_byte']:.4f}")
