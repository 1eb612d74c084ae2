"""Sample text from a trained GPT: `python launch/evaluate.py --checkpoint DIR --prompt TEXT`."""

import sys
import time
from pathlib import Path

import torch

from gpt.generation import check_sampling
from gpt.trainer import SAMPLE_LENGTH, default_prompt, load_gpt, sample_text
from training.command_line import StrictParser
from training.device import set_cpu_threads
from training.errors import InputError, exit_code


def main() -> None:
    """Parse, load, and stream text to the terminal."""
    parser = StrictParser(prog="evaluate.py", description="Continue a text with a trained GPT.")
    parser.add_argument("--checkpoint", type=str, required=True, help="A run (its best checkpoint) or one checkpoint.")
    parser.add_argument("--prompt", type=str, help="Text to continue. Default: a line break.")
    parser.add_argument("--max_new_tokens", type=int, default=SAMPLE_LENGTH, help="Characters to write.")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest character.")
    parser.add_argument("--top_k", type=int, help="Draw from so many likeliest characters only. Default: all.")
    parser.add_argument("--seed", type=int, default=0, help="The same seed gives the same text.")
    options = parser.parse_args()
    check_sampling(options.max_new_tokens, options.temperature, options.top_k, options.seed)
    if options.prompt == "":
        raise InputError("--prompt is empty: give at least one character to continue")
    set_cpu_threads()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load_gpt(Path(options.checkpoint), device)
    prompt = default_prompt(loaded.tokenizer) if options.prompt is None else options.prompt
    pieces = sample_text(
        loaded.model,
        loaded.tokenizer,
        prompt,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        seed=options.seed,
    )
    print(prompt + next(pieces), end="", flush=True)
    start = time.perf_counter()
    for piece in pieces:
        print(piece, end="", flush=True)
    seconds = time.perf_counter() - start
    print()
    if options.max_new_tokens > 1:
        rate = (options.max_new_tokens - 1) / seconds
        print(f"{options.max_new_tokens} tokens, {rate:,.0f} tokens/s after the first, on {device}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(exit_code(main))
