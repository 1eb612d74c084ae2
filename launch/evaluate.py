"""Write text with a trained GPT, or measure its loss: `python launch/evaluate.py --checkpoint DIR [--split val]`.

With the checkpoint of an encoder-decoder: `--source TEXT`, or `--split test`; `seq2seq/evaluate.py` does the rest.
"""

import math
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import get_args

from jsonargparse import Namespace

import seq2seq.evaluate
from gpt.config import DataConfig, Unknown
from gpt.decoding import Decoder, Mode, Precision, convert
from gpt.generation import WhenFull, search
from gpt.trainer import (
    DEFAULT_TEMPERATURE,
    SAMPLE_LENGTH,
    LoadedGPT,
    default_prompt,
    load_gpt,
    measure_split,
    text_metrics,
)
from gpt.writing import Piece, write
from layers import Sampling
from seq2seq.kind import is_seq2seq
from training.command_line import StrictParser, refuse
from training.device import inference_device, make_accelerator, set_cpu_threads
from training.errors import InputError, exit_code
from training.text_files import decode_text, read_text

MEASURED_IN = ("auto", "bf16", "fp16", "fp32", "fp64", "int8")


FOR_DRAWING = (
    *("repetition_penalty", "top_k", "top_p", "min_p", "seed", "num_samples", "stop", "when_full", "alternatives"),
    *("lookup", "interactive"),
)
FOR_TEXT = (*FOR_DRAWING, "temperature", "max_new_tokens", "beams", "length_penalty", "mode")


def parser_of_options() -> StrictParser:
    """The options of the command line."""
    parser = StrictParser(
        prog="evaluate.py",
        description="Continue a text with a trained GPT; with --split, measure its loss instead. With a "
        "checkpoint of an encoder-decoder there are other options: evaluate.py --checkpoint DIR --help.",
    )
    parser.add_argument("--checkpoint", type=str, required=True, help="A run (its best checkpoint) or one checkpoint.")
    parser.add_argument(
        "--weights", choices=["ema", "raw"], help="The weights' average or themselves. Default: ema where there is one."
    )
    _add_prompts(parser)
    _add_sampling(parser)
    parser.add_argument(
        "--mode",
        choices=get_args(Mode),
        default="auto",
        help="How a token is read: eager; compiled, by torch.compile, on a GPU as a CUDA graph; native, on a CPU by a "
        "kernel in C++ that is built once; auto for native where it can be had, else eager.",
    )
    parser.add_argument(
        "--precision",
        choices=MEASURED_IN,
        help="Numbers to compute in: fp32, bf16, fp16, or int8 for weights of one byte, the rest in bf16 (default: "
        "fp32); with --split also auto and fp64 (default: those of the run).",
    )
    parser.add_argument(
        "--split", choices=["train", "val"], help="Measure loss, perplexity and bits per character on this split."
    )
    parser.add_argument(
        "--data.source",
        type=str,
        help="With --split: another text than that of the run, as for train_gpt.py; val is its last 10 % too, "
        "unless it has a validation split.",
    )
    for name in ("column", "revision", "subset"):
        parser.add_argument(f"--data.{name}", type=str, help=f"With --data.source hub:OWNER/NAME: its {name}.")
    parser.add_argument(
        "--data.unknown",
        choices=get_args(Unknown),
        help="With --split: what to do with characters unknown to the model, error or skip. Default: the run's.",
    )
    return parser


def _add_prompts(parser: StrictParser) -> None:
    parser.add_argument(
        "--prompt",
        type=str,
        nargs="+",
        help="Text to continue, or several, which are written in one batch. Default: a line break.",
    )
    parser.add_argument(
        "--prompt_file",
        type=str,
        help="File with the text to continue, without the line break at its end; - for standard input.",
    )
    parser.add_argument(
        "--interactive", action="store_true", help="Ask for prompts until the input ends; Ctrl-C ends a text."
    )
    parser.add_argument("--max_new_tokens", type=int, default=SAMPLE_LENGTH, help="Characters to write.")
    parser.add_argument(
        "--when_full",
        choices=get_args(WhenFull),
        default="stop",
        help="Where the context is full: stop, or slide: keep its newer half, read it anew and go on.",
    )
    parser.add_argument("--num_samples", type=int, default=1, help="Texts for each prompt, with seeds that count up.")
    parser.add_argument("--seed", type=int, default=0, help="The same seed gives the same text.")
    parser.add_argument("--stop", type=str, nargs="+", help="Strings before which a text ends.")


def _add_sampling(parser: StrictParser) -> None:
    parser.add_argument(
        "--temperature", type=float, default=DEFAULT_TEMPERATURE, help="0 takes the likeliest character."
    )
    parser.add_argument("--top_k", type=int, help="Draw from so many likeliest characters only. Default: all.")
    parser.add_argument(
        "--top_p", type=float, help="Draw from the likeliest characters of this probability together. Default: all."
    )
    parser.add_argument(
        "--min_p", type=float, help="Draw from characters with this part of the likeliest one's probability or more."
    )
    parser.add_argument(
        "--repetition_penalty", type=float, default=1.0, help="Above 1: make characters less likely that were written."
    )
    parser.add_argument(
        "--alternatives", type=int, default=0, help="Print each character with its probability, and so many likeliest."
    )
    parser.add_argument(
        "--lookup", type=int, default=0, help="With --temperature 0: propose so many characters from the text so far."
    )
    parser.add_argument(
        "--beams", type=int, default=0, help="Search for the likeliest texts with so many beams, instead of drawing."
    )
    parser.add_argument(
        "--length_penalty",
        type=float,
        default=1.0,
        help="With --beams: 0 ranks texts by their probability, 1 by that per character.",
    )


def main() -> None:
    """Parse, load, and stream text or print measures."""
    if is_seq2seq(sys.argv[1:]):
        seq2seq.evaluate.main()
        return
    parser = parser_of_options()
    options = parser.parse_args()
    data = any(value is not None for value in vars(options.data).values())
    prompts = [name for name in ("prompt", "prompt_file") if options[name] is not None]
    prompts += ["interactive"] * options.interactive
    if len(prompts) > 1:
        raise InputError(f"--{prompts[0]} and --{prompts[1]} both say what to continue: choose one")
    if options.split is None:
        if data or options.precision not in (None, *get_args(Precision)):
            raise InputError("--precision auto or fp64 and --data.* are for --split: to continue a text use --prompt")
        if options.beams:
            # Temperature 0 is what a search does, in a way.
            drawn = (*FOR_DRAWING, *(["temperature"] if options.temperature else []))
            refuse(options, parser, drawn, "texts that are drawn: leave out --beams")
        else:
            refuse(options, parser, ("length_penalty",), "--beams")
        compose(options)
        return
    if prompts:
        raise InputError("--split measures a loss and takes no prompt: give one or the other")
    refuse(options, parser, FOR_TEXT, "texts: leave out --split")
    measure(options)


def sampling_of(options: Namespace) -> Sampling:
    """How to choose a character.

    Raises:
        InputError: An option is out of range.
    """
    names = ("repetition_penalty", "temperature", "top_k", "top_p", "min_p")
    try:
        return Sampling(**{name: options[name] for name in names})
    except ValueError as error:
        raise InputError(str(error)) from error


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
        return [text.removesuffix("\n") or text]
    if options.prompt is None:
        return [default_prompt(loaded.tokenizer)]
    if "" in options.prompt:
        raise InputError("--prompt is empty: give at least one character to continue")
    return list(options.prompt)


def compose(options: Namespace) -> None:
    """Write texts, as the options ask for it."""
    sampling_of(options)
    set_cpu_threads()
    loaded = load_gpt(Path(options.checkpoint), inference_device(), weights=options.weights)
    convert(loaded.model, options.precision or "fp32")
    decoder = Decoder(loaded.model, options.mode)
    if options.interactive:
        converse(options, decoder, loaded)
    elif options.beams:
        show_beams(options, decoder, loaded)
    else:
        stream(options, decoder, loaded, read_prompts(options, loaded))


def pieces_of(
    options: Namespace, decoder: Decoder, loaded: LoadedGPT, prompts: Sequence[str]
) -> Generator[Piece, None, None]:
    """What is written."""
    return write(
        decoder,
        loaded.tokenizer,
        prompts,
        max_new_tokens=options.max_new_tokens,
        sampling=sampling_of(options),
        seed=options.seed,
        num_samples=options.num_samples,
        stop=options.stop or (),
        when_full=options.when_full,
        alternatives=options.alternatives,
        lookup=options.lookup,
    )


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
    first_at, characters, ends = 0.0, 0, set()

    def begin(number: int) -> None:
        prompt, seed = texts[number]
        if len(texts) > 1:
            print(f"--- {number + 1} of {len(texts)}, seed {seed} ---")
        print(prompt, end="\n" if options.alternatives else "", flush=True)

    with closing(pieces_of(options, decoder, loaded, prompts)) as pieces:
        for piece in pieces:
            if interrupted():
                raise KeyboardInterrupt
            if not first_at:
                first_at = time.perf_counter()
                begin(0)
            characters += len(piece.text)
            ends.add(piece.end)
            if piece.sample == 0:
                show(piece, options.alternatives)
            else:
                waiting[piece.sample].append(piece)
    seconds = time.perf_counter() - first_at
    print()
    for number in range(1, len(texts)):
        begin(number)
        for piece in waiting[number]:
            show(piece, options.alternatives)
        print()
    rate = (characters - len(texts)) / seconds
    speed = f", {rate:,.0f} tokens/s after the first" if characters > len(texts) else ""
    several = f"{len(texts)} texts, " if len(texts) > 1 else ""
    where = f"{inference_device().type}, {options.precision or 'fp32'}, {decoder.mode}"
    print(f"{several}{characters:,} tokens{speed}, on {where}", file=sys.stderr)
    if "context" in ends:
        context = loaded.config.model.max_len
        print(f"the context of {context} tokens is full: --when_full slide goes on", file=sys.stderr)


def show(piece: Piece, alternatives: int) -> None:
    """Print what came."""
    if not alternatives:
        print(piece.text, end="", flush=True)
    elif piece.text:
        others = "  ".join(f"{text!r} {math.exp(likely):.3f}" for text, likely in piece.alternatives)
        print(f"{piece.text!r:6} {math.exp(piece.log_probability):.3f}   likeliest: {others}", flush=True)


def show_beams(options: Namespace, decoder: Decoder, loaded: LoadedGPT) -> None:
    """Search, and print what was found."""
    for prompt in read_prompts(options, loaded):
        beams = search(
            decoder,
            loaded.tokenizer.encode_prompt(prompt),
            width=options.beams,
            max_new_tokens=options.max_new_tokens,
            length_penalty=options.length_penalty,
        )
        for number, beam in enumerate(beams, start=1):
            print(f"--- {number} of {len(beams)}, log-probability {beam.log_probability:.3f} ---")
            print(prompt + loaded.tokenizer.decode(list(beam.tokens)))
        if len(beams[0].tokens) < options.max_new_tokens:
            print(f"the context of {loaded.config.model.max_len} tokens is full", file=sys.stderr)


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


def measure(options: Namespace) -> None:
    """Print the loss over every target of a split, in the precision of the run."""
    loaded = load_gpt(Path(options.checkpoint), weights=options.weights)
    int8 = options.precision == "int8"
    if int8:
        convert(loaded.model, "int8")
    setup = make_accelerator("fp32" if int8 else options.precision or loaded.config.training.precision)
    if setup.precision == "fp64":
        loaded.model.double()
    given = {name: value for name, value in vars(options.data).items() if value is not None}
    unknown = given.pop("unknown", None)
    measured = measure_split(setup.accelerator, loaded, options.split, DataConfig(**given) if given else None, unknown)
    metrics = text_metrics(measured.loss)
    setup.accelerator.end_training()
    if not setup.accelerator.is_main_process:
        return
    print(f"device              {setup.description}", file=sys.stderr)
    print(f"text                {measured.description}")
    print(f"weights             {loaded.weights}")
    print(f"loss                {measured.loss:.4f} nats per character")
    print(f"perplexity          {metrics['perplexity']:.4f} per character")
    print(f"bits per character  {metrics['bits_per_character']:.4f}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
