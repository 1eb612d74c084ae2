"""Sample text from a trained GPT, or measure its loss: `python launch/evaluate.py --checkpoint DIR [--split val]`."""

import sys
import time
from pathlib import Path

from jsonargparse import Namespace

from gpt.config import DataConfig
from gpt.data import decode_text, read_text
from gpt.generation import Sampling, check_length_and_seed
from gpt.trainer import (
    DEFAULT_TEMPERATURE,
    SAMPLE_LENGTH,
    LoadedGPT,
    default_prompt,
    load_gpt,
    measure_split,
    sample_text,
    text_metrics,
)
from training.command_line import StrictParser
from training.device import inference_device, make_accelerator, set_cpu_threads
from training.errors import InputError, exit_code


def parse() -> Namespace:
    """The options of the command line."""
    parser = StrictParser(
        prog="evaluate.py",
        description="Continue a text with a trained GPT; with --split, measure its loss instead.",
    )
    parser.add_argument("--checkpoint", type=str, required=True, help="A run (its best checkpoint) or one checkpoint.")
    parser.add_argument(
        "--weights", choices=["ema", "raw"], help="The weights' average or themselves. Default: ema where there is one."
    )
    parser.add_argument("--prompt", type=str, help="Text to continue. Default: a line break.")
    parser.add_argument(
        "--prompt_file",
        type=str,
        help="File with the text to continue, without the line break at its end; - for standard input.",
    )
    parser.add_argument("--max_new_tokens", type=int, default=SAMPLE_LENGTH, help="Characters to write.")
    parser.add_argument("--num_samples", type=int, default=1, help="Texts to write, with seeds that count up.")
    parser.add_argument(
        "--temperature", type=float, default=DEFAULT_TEMPERATURE, help="0 takes the likeliest character."
    )
    parser.add_argument("--top_k", type=int, help="Draw from so many likeliest characters only. Default: all.")
    parser.add_argument(
        "--top_p", type=float, help="Draw from the likeliest characters of this probability together. Default: all."
    )
    parser.add_argument("--seed", type=int, default=0, help="The same seed gives the same text.")
    parser.add_argument(
        "--split", choices=["train", "val"], help="Measure loss, perplexity and bits per character on this split."
    )
    parser.add_argument(
        "--precision",
        choices=["auto", "bf16", "fp16", "fp32", "fp64"],
        help="With --split: numbers to compute in. Default: those of the run.",
    )
    parser.add_argument(
        "--data.source",
        type=str,
        help="With --split: another text than that of the run, as for train_gpt.py; val is its last 10 % too, "
        "unless it has a validation split.",
    )
    for name in ("column", "revision", "subset"):
        parser.add_argument(f"--data.{name}", type=str, help=f"With --data.source hub:OWNER/NAME: its {name}.")
    return parser.parse_args()


def main() -> None:
    """Parse, load, and stream text or print measures."""
    options = parse()
    check_length_and_seed(options.max_new_tokens, options.seed)
    if options.num_samples < 1:
        raise InputError(f"num_samples must be at least 1, got {options.num_samples}")
    sampling = Sampling(temperature=options.temperature, top_k=options.top_k, top_p=options.top_p)
    if options.split is None:
        if options.precision is not None or any(value is not None for value in vars(options.data).values()):
            raise InputError("--precision and --data.* are for --split: to continue a text use --prompt")
        sample(options, sampling)
    else:
        if options.prompt is not None or options.prompt_file is not None:
            raise InputError("--split measures a loss and takes no prompt: give one or the other")
        measure(options)


def read_prompt(options: Namespace, loaded: LoadedGPT) -> str:
    """The text to continue.

    Raises:
        InputError: It is empty, cannot be read, or was given twice.
    """
    if options.prompt is not None and options.prompt_file is not None:
        raise InputError("--prompt and --prompt_file both give a text to continue: choose one")
    if options.prompt_file is not None:
        stdin = options.prompt_file == "-"
        text = decode_text(sys.stdin.buffer.read(), "standard input") if stdin else read_text(Path(options.prompt_file))
        return text.removesuffix("\n") or text
    if options.prompt == "":
        raise InputError("--prompt is empty: give at least one character to continue")
    return default_prompt(loaded.tokenizer) if options.prompt is None else str(options.prompt)


def sample(options: Namespace, sampling: Sampling) -> None:
    """Stream texts to standard output, and their speed to standard error."""
    set_cpu_threads()
    device = inference_device()
    loaded = load_gpt(Path(options.checkpoint), device, weights=options.weights)
    prompt = read_prompt(options, loaded)
    seconds = 0.0
    for index in range(options.num_samples):
        seed = options.seed + index
        pieces = sample_text(
            loaded.model,
            loaded.tokenizer,
            prompt,
            max_new_tokens=options.max_new_tokens,
            sampling=sampling,
            seed=seed,
        )
        if options.num_samples > 1:
            print(f"--- {index + 1} of {options.num_samples}, seed {seed} ---")
        print(prompt + next(pieces), end="", flush=True)
        start = time.perf_counter()
        for piece in pieces:
            print(piece, end="", flush=True)
        seconds += time.perf_counter() - start
        print()
    if options.max_new_tokens > 1:
        rate = options.num_samples * (options.max_new_tokens - 1) / seconds
        texts = f"{options.num_samples} x " if options.num_samples > 1 else ""
        print(
            f"{texts}{options.max_new_tokens} tokens, {rate:,.0f} tokens/s after the first, on {device.type}",
            file=sys.stderr,
        )


def measure(options: Namespace) -> None:
    """Print the loss over every target of a split, in the precision of the run."""
    loaded = load_gpt(Path(options.checkpoint), weights=options.weights)
    setup = make_accelerator(options.precision or loaded.config.training.precision)
    if setup.precision == "fp64":
        loaded.model.double()
    given = {name: value for name, value in vars(options.data).items() if value is not None}
    measured = measure_split(setup.accelerator, loaded, options.split, DataConfig(**given) if given else None)
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
