"""Time how a model trains: `python launch/bench_training.py --config FILE [--section.key value …]`, of either model."""

import os
import sys
from importlib import import_module
from pathlib import Path

from decoding.model_type import asked_model_type
from gpt.config import GPTConfig
from gpt.initial_config import completed
from seq2seq.config import Seq2SeqConfig
from training.config.command_line import Namespace, StrictParser, given_options
from training.plots import check_outputs, write_outputs
from training.runtime.errors import InputError, exit_code


def parse(of_pairs: bool) -> tuple[Namespace, GPTConfig | Seq2SeqConfig]:
    """The options, and the configuration among them.

    Raises:
        InputError: An option is out of range.
    """
    config_class: type[GPTConfig | Seq2SeqConfig] = Seq2SeqConfig if of_pairs else GPTConfig
    parser = _parser()
    parser.add_class_arguments(config_class)
    options = parser.parse_args()
    for name in ("warm_up", "steps", "rounds", "turns"):
        if options[name] < 1:
            raise InputError(f"{name} must be at least 1, got {options[name]}")
    if options.peer_tokens is not None and options.peer_tokens < 1:
        raise InputError(f"peer_tokens must be at least 1, got {options.peer_tokens}")
    if options.until is not None and options["training.eval_tokens"]:
        raise InputError("--until goes by the whole validation split: leave training.eval_tokens at 0")
    check_outputs(options)
    if options.profile:
        Path(options.profile).mkdir(parents=True, exist_ok=True)
    config = parser.build(config_class, options)
    if isinstance(config, GPTConfig):
        config, _ = completed(config, given_options(sys.argv[1:]))
    return options, config


def _parser() -> StrictParser:
    parser = StrictParser(
        prog="bench_training.py",
        description="Tokens per second, the parts of a step, and memory, of any configuration, by training on it for "
        "some rounds of steps; no run is left behind. Options after --config change what it says.",
    )
    add = parser.add_argument
    add("--config", action="config", required=True, help="YAML file of an experiment, of either model.")
    add("--warm_up", type=int, default=20, help="Steps that do not count.")
    add("--steps", type=int, default=20, help="Steps of a round; this and --warm_up are rounded up to fours.")
    add("--rounds", type=int, default=5, help="Rounds, of which the median is shown.")
    add("--until", type=float, help="Then train as configured, from new weights, to this validation loss.")
    add(
        "--peer",
        type=str,
        action="append",
        default=[],
        metavar="[NAME=]COMMAND",
        help="Another trainer, which runs in turn with ours and prints lines that tell its speed; may come again.",
    )
    pattern = "A regular expression that finds <milliseconds> or <tokens_per_second> in such a line, and maybe <loss>."
    add("--peer_pattern", type=str, help=f"{pattern} Default: nanoGPT's lines.")
    add("--peer_tokens", type=int, help="Tokens in a step of the baselines. Default: as many as in ours.")
    add("--turns", type=int, default=2, help="How often all run in turn; without --peer once.")
    profile = "Leave a trace that Perfetto opens in this folder, and print what is expensive."
    add("--profile", type=str, metavar="DIR", help=profile)
    add("--json", type=str, help="Write the figures to this file, a .json.")
    add("--plot", type=str, help="Draw them into this file: a .png, .svg or .pdf.")
    return parser


def main() -> None:
    """Parse, and only then load torch and what trains the model."""
    model_type = asked_model_type(sys.argv[1:]) or "gpt"
    options, config = parse(model_type == "seq2seq")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler would say when it starts and stops.
    from training.benchmark.report import plot, show
    from training.benchmark.turns import benchmark

    task = import_module(f"{model_type}.task")
    task_class = task.Seq2SeqTask if model_type == "seq2seq" else task.GPTTask
    figures = benchmark(lambda: task_class(config), config, options)
    if not figures:  # Not the main process.
        return
    show(figures)
    write_outputs(options, figures, lambda file: plot(figures, file))


if __name__ == "__main__":
    sys.exit(exit_code(main))
