"""Runs over a grid of options and several seeds: `python launch/sweep.py --config FILE --grid OPTION=VALUE,VALUE …`."""

import os
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import get_args

from decoding.model_type import asked_model_type
from gpt.config import GPTConfig
from seq2seq.config import Seq2SeqConfig
from training.config.command_line import Namespace, StrictParser
from training.config.fields import options_of
from training.config.sections import RunConfig
from training.runtime.errors import InputError, exit_code
from training.storage.run_folder import RUNS
from training.sweep.command import carry_out, check_distinct, command_of, free_folder, prepare, show_plan
from training.sweep.grid import Setting, parse_grid, settings, words_of
from training.sweep.record import BASE, Metric, read_sweep
from training.sweep.wandb_file import read_words


def main() -> None:
    """Parse, run what is left to do, and show what came out.

    Raises:
        CommandError: A run failed.
        StoppedBySignal: A signal stopped the sweep.
    """
    words = _all_words(sys.argv[1:])
    model = asked_model_type(words) or "gpt"
    options, config, chosen = parse(words, Seq2SeqConfig if model == "seq2seq" else GPTConfig)
    folder = Path(options.output_dir) if options.output_dir else free_folder(config.name)
    sweep = prepare(folder, model, options, config, chosen)
    command = partial(command_of, Path(__file__).with_name(f"train_{model}.py"), folder / BASE)
    if options.dry_run:
        show_plan(sweep, folder, command)
    else:
        carry_out(sweep, folder, command, options, config)


def _all_words(words: list[str]) -> list[str]:
    """The command line, with what a sweep file of W&B and the folder of a sweep to go on with say before it."""
    early = ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--sweep", "--output_dir"):
        early.add_argument(option)
    early.add_argument("--resume", action="store_true")
    asked, _ = early.parse_known_args(words)
    if asked.resume:
        if asked.output_dir is None or asked.sweep is not None:
            raise InputError("--resume goes on with the sweep in --output_dir: name that, and no --sweep")
        return ["--config", str(Path(asked.output_dir) / BASE), *words]
    return [*(read_words(Path(asked.sweep)) if asked.sweep else []), *words]


def parse(
    words: Sequence[str], config_class: type[GPTConfig | Seq2SeqConfig]
) -> tuple[Namespace, RunConfig, list[tuple[Setting, int]]]:
    """The options, the configuration that all runs have in common, and the setting and seed of each run.

    Raises:
        InputError: An option is wrong, of a single run too.
    """
    parser = _parser()
    parser.add_class_arguments(config_class)
    options = parser.parse_args(words)
    for name in ("seeds", "jobs"):
        if options[name] is not None and options[name] < 1:
            raise InputError(f"{name} must be at least 1, got {options[name]}")
    if "RANK" in os.environ:
        raise InputError("this command starts its runs itself: start it with python, not with a launcher")
    config = parser.build(config_class, options)
    grid = parse_grid(options.grid)
    seeds = range(config.seed, config.seed + (options.seeds or 1))
    own = {name for name, value in vars(options).items() if not isinstance(value, Namespace)}
    if foreign := own & grid.keys() - {option.name for option in options_of(config_class)}:
        raise InputError(f"grid: {min(foreign)} is an option of the sweep, not of a run")
    chosen = [(setting, seed) for setting in settings(grid) for seed in seeds]
    runs = read_sweep(Path(options.output_dir)).runs if options.resume and grid else []
    check_distinct(
        lambda setting, seed: parser.build(config_class, parser.parse_only([*words, *words_of(setting, seed)])),
        [(run.setting, run.seed) for run in runs],
        chosen,
    )
    return options, config, chosen


def _parser() -> StrictParser:
    parser = StrictParser(
        prog="sweep.py",
        description="Train a configuration with all combinations of some options' values, each with several seeds: one "
        "after the other, or one on each card. A run that fails is a line of the table. Options after --config change "
        "what it says, for all runs.",
    )
    add = parser.add_argument
    add("--config", action="config", required=True, help="YAML file of an experiment, of either model.")
    values = "Values of an option, with commas between; may come again for other options."
    add("--grid", action="append", type=str, default=[], metavar="OPTION=VALUES", help=values)
    add("--seeds", type=int | None, metavar="N", help="Seeds for each setting, counted up from --seed. Default: 1.")
    add("--output_dir", type=str | None, help=f"Folder of the sweep. Default: the next free {RUNS}/sweeps/NAME-N.")
    resume = (
        "Go on with the sweep in --output_dir, with its configuration: what has ended is not run again. With --grid "
    )
    add("--resume", action="store_true", help=f"{resume}those runs are added, with --seeds alone more seeds.")
    add("--jobs", type=int | None, help="Runs at once. Default: one on each card that is visible, or one on a CPU.")
    add("--metric", choices=get_args(Metric), help="What runs are compared by; lower is better. Default: val_loss.")
    early = "End a run whose lowest loss is above the median of the others' at the same step."
    add("--early_stop", action="store_true", help=early)
    add("--sweep", type=str | None, metavar="FILE", help="A sweep file of Weights & Biases, of the method grid.")
    add("--dry_run", action="store_true", help="Show the runs, and start none.")
    return parser


if __name__ == "__main__":
    sys.exit(exit_code(main))
