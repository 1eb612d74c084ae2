"""What the benchmark can be asked about a GPT, and what of it does not go together; no torch."""

from dataclasses import fields
from pathlib import Path
from typing import get_args

from jsonargparse import Namespace

from decoding.choices import Mode, Precision
from gpt.config import GPTConfig
from training.config.command_line import StrictParser
from training.plots import check_output
from training.runtime.errors import InputError

MODES = [mode for mode in get_args(Mode) if mode != "auto"]


def parse_benchmark() -> tuple[Namespace, GPTConfig | None]:
    """The options of `launch/bench_kv_cache.py`, and the configuration among them, which a checkpoint brings itself."""
    parser = StrictParser(
        prog="bench_kv_cache.py",
        description="Seconds to write 100, 200, 300 and 500 tokens without and with the key-value cache, and tokens "
        "per second of each way to decode, for a model with random weights (--config, and --model.* to change it) or a "
        "trained one (--checkpoint). With those of an encoder-decoder there are other options: "
        "bench_kv_cache.py --config FILE --help.",
    )
    parser.add_argument("--config", action="config", help="YAML file of an experiment; its model is timed.")
    parser.add_argument("--checkpoint", type=str, help="A run (its best checkpoint) or one checkpoint.")
    parser.add_argument("--repeats", type=int, default=3, help="Passes of each, of which the median is shown.")
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=get_args(Precision),
        help="Numbers to decode in; the table is measured in the first. Default: fp32, and bf16 and int8 where "
        "there is another mode than eager.",
    )
    parser.add_argument(
        "--mode",
        nargs="+",
        choices=MODES,
        help="Ways to read a token. Default: eager, and native on a CPU with a compiler, or compiled on a GPU.",
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16], help="Numbers of streams to decode at once.")
    parser.add_argument(
        "--uncached", choices=["yes", "no"], default="yes", help="Whether to measure the table without the cache."
    )
    parser.add_argument(
        "--peer", choices=["transformers"], help="Also time this library, with the same weights (rotary positions)."
    )
    parser.add_argument("--peer_uncached", action="store_true", help="Also time it without its cache.")
    parser.add_argument("--json", type=str, help="Write the figures to this file, a .json.")
    parser.add_argument("--plot", type=str, help="Draw the curves into this file: a .png, .svg or .pdf.")
    parser.add_class_arguments(GPTConfig)
    options = parser.parse_args()
    if (options.checkpoint is None) == (not options.config):
        raise InputError("give either --config FILE or --checkpoint DIR")
    if options.repeats < 1:
        raise InputError(f"repeats must be at least 1, got {options.repeats}")
    if min(options.batch) < 1:
        raise InputError(f"batch must be at least 1, got {min(options.batch)}")
    if options.plot and options.uncached == "no":
        raise InputError("--plot draws the table: leave --uncached no out")
    config = None if options.checkpoint else parser.build(GPTConfig, options)
    defaults = parser.get_defaults()
    if config is None and any(options[field.name] != defaults[field.name] for field in fields(GPTConfig)):
        raise InputError("--checkpoint brings its own configuration: leave the options of a configuration out")
    if options.json:
        check_output(Path(options.json), (".json",))
    if options.plot:
        check_output(Path(options.plot))
    return options, config
