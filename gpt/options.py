"""What the commands can be asked about a trained GPT, and what of it does not go together; no torch."""

from typing import get_args

from data.config import Unknown
from decoding.choices import DEFAULT_TEMPERATURE, SAMPLE_LENGTH, WHEN_FULL, Mode, Precision, WhenFull
from training.config.command_line import Namespace, StrictParser, add_checkpoint_options, refuse
from training.runtime.errors import InputError

MODES = [mode for mode in get_args(Mode) if mode != "auto"]
MEASURED_IN = ("auto", "bf16", "fp16", "fp32", "fp64", "int8")
FOR_DRAWING = (
    *("repetition_penalty", "top_k", "top_p", "min_p", "seed", "num_samples", "stop", "when_full", "alternatives"),
    *("lookup", "interactive"),
)
FOR_TEXT = (*FOR_DRAWING, "temperature", "max_new_tokens", "beams", "length_penalty", "mode")


def parse_evaluation() -> Namespace:
    """The options of `launch/evaluate.py`.

    Raises:
        InputError: Some of them do not go together.
    """
    parser = _evaluation_parser()
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
        return options
    if prompts:
        raise InputError("--split measures a loss and takes no prompt: give one or the other")
    refuse(options, parser, FOR_TEXT, "texts: leave out --split")
    return options


def _evaluation_parser() -> StrictParser:
    parser = StrictParser(
        prog="evaluate.py",
        description="Continue a text with a trained GPT; with --split, measure its loss instead. With a "
        "checkpoint of an encoder-decoder there are other options: evaluate.py --checkpoint DIR --help.",
    )
    add_checkpoint_options(parser)
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
        default=WHEN_FULL,
        help="Where the context is full: slide (keep its newer half, read it anew and go on), or stop.",
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
