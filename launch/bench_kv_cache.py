"""Time how text is written: `python launch/bench_kv_cache.py --config FILE`, or `--checkpoint DIR`.

With those of an encoder-decoder: how targets are.
"""

import sys
from dataclasses import fields
from importlib import import_module
from typing import get_args

from decoding.choices import Mode, Precision, TargetMode
from decoding.model_type import asked_model_type
from gpt.config import GPTConfig
from gpt.initial_config import completed
from seq2seq.config import Seq2SeqConfig
from training.config.command_line import Namespace, StrictParser, given_options
from training.plots import check_outputs, write_outputs
from training.runtime.errors import InputError, exit_code


def parse(of_pairs: bool) -> tuple[Namespace, GPTConfig | Seq2SeqConfig | None]:
    """The options, and the configuration among them, which a checkpoint brings itself.

    Raises:
        InputError: An option is out of range, or some do not go together.
    """
    config_class: type[GPTConfig | Seq2SeqConfig] = Seq2SeqConfig if of_pairs else GPTConfig
    parser = _parser(of_pairs)
    parser.add_class_arguments(config_class)
    options = parser.parse_args()
    if (options.checkpoint is None) == (not options.config):
        raise InputError("give either --config FILE or --checkpoint DIR")
    smallest = {"repeats": options.repeats, "batch": min(options.batch), "length": getattr(options, "length", 1)}
    for name, value in smallest.items():
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    if options.plot and options.uncached == "no":
        raise InputError("--plot draws the table: leave --uncached no out")
    check_outputs(options)
    if options.trust_code and options.checkpoint is None:
        raise InputError("--trust_code is for --checkpoint")
    if options.checkpoint is None:
        config = parser.build(config_class, options)
        if isinstance(config, GPTConfig):
            config, _ = completed(config, given_options(sys.argv[1:]))
        return options, config
    defaults = parser.get_defaults()
    if any(options[field.name] != defaults[field.name] for field in fields(config_class)):
        raise InputError("--checkpoint brings its own configuration: leave the options of a configuration out")
    return options, None


def _parser(of_pairs: bool) -> StrictParser:
    parser = StrictParser(
        prog="bench_kv_cache.py",
        description="Seconds to write without and with the key-value cache, and tokens per second of each way to "
        "decode, for a model with random weights (--config, and --model.* to change it) or a trained one "
        "(--checkpoint): a GPT continues a prompt, an encoder-decoder reads many sources in one batch. Which of them "
        "it is decides on the options: bench_kv_cache.py --config FILE --help.",
    )
    add = parser.add_argument
    add("--config", action="config", help="YAML file of an experiment; its model is timed.")
    add("--checkpoint", type=str, help="A run (its best checkpoint) or one checkpoint.")
    add(
        "--trust_code",
        action="store_true",
        help="With --checkpoint: import the class that made the model, where the run names one of one's own: that runs "
        "its code.",
    )
    add("--repeats", type=int, default=5 if of_pairs else 3, help="Passes of each, of which the median is shown.")
    modes = [mode for mode in get_args(TargetMode if of_pairs else Mode) if mode != "auto"]
    what = "Default: eager, and native on a CPU with a compiler" + ("." if of_pairs else ", or compiled on a GPU.")
    add("--mode", nargs="+", choices=modes, help=f"How a decode step is computed. {what}")
    if of_pairs:
        add("--batch", type=int, nargs="+", default=[256], help="Sources to decode at once, or several numbers.")
        add("--length", type=int, default=20, help="Symbols of each source; a target has one token more.")
        theirs = "BART of the same size, with random weights"
    else:
        add("--batch", type=int, nargs="+", default=[1, 16], help="Numbers of streams to decode at once.")
        add(
            "--precision",
            nargs="+",
            choices=get_args(Precision),
            help="dtypes to decode in; the table is measured in the first. Default: fp32, and bf16 and int8 where "
            "there is another mode than eager.",
        )
        theirs = "model with the same weights (rotary positions)"
    add(
        "--uncached",
        choices=["yes", "no"],
        default="yes",
        help="Whether to measure without the cache too: the table, for the first number of --batch.",
    )
    add("--peer", choices=["transformers"], help=f"Also time this library's {theirs}.")
    add("--peer_uncached", action="store_true", help="Also time it without its cache.")
    add("--json", type=str, help="Write the figures to this file, a .json.")
    add("--plot", type=str, help="Draw the curves into this file: a .png, .svg or .pdf.")
    return parser


def main() -> None:
    """Parse, and only then load torch and what makes the variants of the model."""
    of_pairs = asked_model_type(sys.argv[1:]) == "seq2seq"
    options, config = parse(of_pairs)
    from decoding.report import plot, show
    from training.runtime.threads import set_cpu_threads

    set_cpu_threads()
    benchmark = import_module(f"{'seq2seq' if of_pairs else 'gpt'}.baselines").prepare(options, config)
    benchmark.run(options.repeats)
    figures = benchmark.figures()
    show(figures)
    write_outputs(options, figures, lambda file: plot(benchmark, file))


if __name__ == "__main__":
    sys.exit(exit_code(main))
