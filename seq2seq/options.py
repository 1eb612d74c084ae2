"""What the benchmark can be asked about an encoder-decoder, and what of it does not go together; no torch."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from jsonargparse import Namespace

from seq2seq.config import Seq2SeqConfig
from training.config.command_line import StrictParser
from training.plots import check_output
from training.runtime.errors import InputError


def parse_benchmark(arguments: Sequence[str] | None = None) -> tuple[Namespace, Seq2SeqConfig | None]:
    """The options of `launch/bench_kv_cache.py`, and the configuration among them, which a checkpoint brings itself."""
    parser = StrictParser(
        prog="bench_kv_cache.py",
        description="Seconds to decode many sources in one batch with and without the caches, for an encoder-decoder "
        "with random weights (--config, and --model.* to change it) or a trained one (--checkpoint).",
    )
    parser.add_argument("--config", action="config", help="YAML file of an experiment; its model is timed.")
    parser.add_argument("--checkpoint", type=str, help="A run (its best checkpoint) or one checkpoint.")
    parser.add_argument("--repeats", type=int, default=5, help="Passes of each, of which the median is shown.")
    parser.add_argument("--batch", type=int, default=256, help="Sources to decode at once.")
    parser.add_argument("--length", type=int, default=20, help="Symbols of each source; a target has one token more.")
    parser.add_argument(
        "--peer", choices=["transformers"], help="Also time this library's BART of the same size, with random weights."
    )
    parser.add_argument("--json", type=str, help="Write the figures to this file, a .json.")
    parser.add_class_arguments(Seq2SeqConfig)
    options = parser.parse_args(arguments)
    if (options.checkpoint is None) == (not options.config):
        raise InputError("give either --config FILE or --checkpoint DIR")
    for name in ("repeats", "batch", "length"):
        if options[name] < 1:
            raise InputError(f"{name} must be at least 1, got {options[name]}")
    if options.json:
        check_output(Path(options.json), (".json",))
    if options.checkpoint is None:
        return options, parser.build(Seq2SeqConfig, options)
    defaults = parser.get_defaults()
    if any(options[field.name] != defaults[field.name] for field in fields(Seq2SeqConfig)):
        raise InputError("--checkpoint brings its own configuration: leave the options of a configuration out")
    return options, None
