"""Sample text from a trained GPT: `python launch/evaluate.py --checkpoint DIR --prompt TEXT`."""

import argparse
import sys
import time
from pathlib import Path

import torch

from gpt.generation import check_sampling
from gpt.trainer import load_gpt, sample_text
from training.device import set_cpu_threads
from training.errors import InputError, exit_code


def main() -> None:
    """Parse, load, and stream text to the terminal."""
    parser = argparse.ArgumentParser(prog="evaluate.py", description="Continue a text with a trained GPT.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run (its best checkpoint) or one checkpoint")
    parser.add_argument("--prompt", default="\n", help="text to continue (default: a line break)")
    parser.add_argument("--max_new_tokens", type=int, default=300, help="characters to write (default: 300)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest character (default: 0.8)")
    parser.add_argument("--top_k", type=int, help="draw from so many likeliest characters only (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same text (default: 0)")
    arguments = parser.parse_args()
    check_sampling(arguments.max_new_tokens, arguments.temperature, arguments.top_k)
    if not arguments.prompt:
        raise InputError("--prompt is empty: give at least one character to continue")
    set_cpu_threads()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load_gpt(arguments.checkpoint, device)
    pieces = sample_text(
        loaded.model,
        loaded.tokenizer,
        arguments.prompt,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        seed=arguments.seed,
    )
    first = next(pieces)
    print(arguments.prompt + first, end="", flush=True)
    start = time.perf_counter()
    for piece in pieces:
        print(piece, end="", flush=True)
    seconds = time.perf_counter() - start
    print()
    if arguments.max_new_tokens > 1:
        rate = (arguments.max_new_tokens - 1) / seconds
        print(f"{arguments.max_new_tokens} tokens, {rate:,.0f} tokens/s after the first, on {device}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(exit_code(main))
