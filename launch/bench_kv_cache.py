"""Time text with and without the cache: `python launch/bench_kv_cache.py --config FILE`, or `--checkpoint DIR`."""

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from gpt.benchmark import ROWS, fill_zero_weights, measure, plot, report
from gpt.config import GPTConfig
from gpt.model import GPT
from gpt.trainer import load_gpt
from training.command_line import StrictParser
from training.device import inference_device, set_cpu_threads
from training.errors import InputError, exit_code
from training.plots import check_output
from training.progress import Progress
from training.seeds import generator

VOCAB_SIZE = 65
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def parse() -> tuple[Namespace, GPTConfig | None]:
    """The options of the command line, and the configuration among them, which a checkpoint brings itself."""
    parser = StrictParser(
        prog="bench_kv_cache.py",
        description="Seconds to write 100, 200, 300 and 500 tokens without and with the key-value cache, for a model "
        "with random weights (--config, and --model.* to change it) or a trained one (--checkpoint).",
    )
    parser.add_argument("--config", action="config", help="YAML file of an experiment; its model is timed.")
    parser.add_argument("--checkpoint", type=str, help="A run (its best checkpoint) or one checkpoint.")
    parser.add_argument("--repeats", type=int, default=3, help="Passes of each arm, of which the median is shown.")
    parser.add_argument("--precision", choices=list(DTYPES), default="fp32", help="Numbers of weights and cache.")
    parser.add_argument("--json", type=str, help="Write the figures to this file, a .json.")
    parser.add_argument("--plot", type=str, help="Draw the curves into this file: a .png, .svg or .pdf.")
    parser.add_class_arguments(GPTConfig)
    options = parser.parse_args()
    if (options.checkpoint is None) == (not options.config):
        raise InputError("give either --config FILE or --checkpoint DIR")
    if options.repeats < 1:
        raise InputError(f"repeats must be at least 1, got {options.repeats}")
    if options.checkpoint is None:
        return options, parser.build(GPTConfig, options)
    defaults = parser.get_defaults()
    if any(options[field.name] != defaults[field.name] for field in fields(GPTConfig)):
        raise InputError("--checkpoint brings its own configuration: leave the options of a configuration out")
    return options, None


def build(options: Namespace, config: GPTConfig | None, device: torch.device) -> tuple[GPT, str]:
    """The model, and where it comes from in words."""
    if config is None:
        return load_gpt(Path(options.checkpoint), device).model, str(options.checkpoint)
    model = GPT(config.model, VOCAB_SIZE)
    model.init_weights(generator(config.seed, "weights"))
    fill_zero_weights(model)
    return model.to(device).eval(), f"{options.config[0]}, random weights"


def main() -> None:
    """Parse, measure, and print, write and draw the table."""
    options, config = parse()
    if options.json:
        check_output(Path(options.json), (".json",))
    if options.plot:
        check_output(Path(options.plot))
    set_cpu_threads()
    model, source = build(options, config, inference_device())
    model = model.to(DTYPES[options.precision])
    progress = Progress(0, 2 * options.repeats * ROWS[-1], visible=True, unit="token")
    try:
        measurement = measure(model, repeats=options.repeats, advance=progress.advance, say=progress.say)
    finally:
        progress.close()
    figures = report(measurement, model, source=source, precision=options.precision)
    print()
    show(figures)
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")
        print(options.json)
    if options.plot:
        plot(measurement, Path(options.plot), f"{source} on {figures['device']}, {options.precision}")
        print(options.plot)


def show(figures: dict[str, Any]) -> None:
    """Print the table, and what it depends on."""
    model = figures["model"]
    print(f"device     {figures['device']}, {figures['threads']} threads, {figures['precision']}")
    print(f"versions   torch {figures['torch']}, Python {figures['python']}")
    print(f"model      {model['source']}: {model['parameters']:,} parameters, context {model['max_len']}")
    print(f"measured   median of {figures['repeats']}, after a prompt of {figures['prompt_tokens']} tokens\n")
    print("new tokens   without cache   with cache   speed-up")
    for row in figures["rows"]:
        print(
            f"{row['new_tokens']:>10}   {row['no_cache_seconds']:>11.3f} s   {row['cache_seconds']:>8.3f} s"
            f"   {row['speedup']:>7.2f}x"
        )


if __name__ == "__main__":
    sys.exit(exit_code(main))
