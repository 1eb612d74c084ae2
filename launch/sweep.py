"""Runs over a grid of options and several seeds: `python launch/sweep.py --config FILE --grid OPTION=VALUE,VALUE …`."""

import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

from decoding.model_type import ModelType, asked_model_type
from gpt.config import GPTConfig
from seq2seq.config import Seq2SeqConfig
from training.config.command_line import Namespace, StrictParser, config_to_yaml, parse_config_text
from training.config.sections import RunConfig
from training.runtime.errors import CommandError, InputError, StoppedBySignal, exit_code
from training.runtime.packages import needed_package
from training.storage.files import replace_text
from training.storage.reading import read_text
from training.storage.run_folder import RUNS, RunFolder, python_command
from training.sweep.early_stop import check_comparable
from training.sweep.grid import Setting, parse_grid, run_name, settings, words_of
from training.sweep.record import BASE, FILE, FINISHED, Metric, Sweep, SweepRun, read_sweep
from training.sweep.wandb_file import read_words

HERE = Path(__file__)
PLOT = "sweep.png"


def main() -> None:
    """Parse, run what is left to do, and show what came out.

    Raises:
        CommandError: A run failed.
        StoppedBySignal: A signal stopped the sweep.
    """
    words = _all_words(sys.argv[1:])
    model = asked_model_type(words) or "gpt"
    options, config, chosen = parse(words, Seq2SeqConfig if model == "seq2seq" else GPTConfig)
    folder = Path(options.output_dir) if options.output_dir else _free_folder(config.name)
    sweep = _sweep(folder, model, options, config, chosen)
    command = partial(_command, model, folder / BASE)
    if options.dry_run:
        _show_plan(sweep, folder, command)
        return
    needed_package("matplotlib", f"drawing {PLOT}")
    claim = RunFolder(folder)
    claim.claim()
    try:
        if not options.resume:
            replace_text(folder / BASE, config_to_yaml(config))
        sweep.write(folder)
        _run(sweep, folder, command, options, config)
    finally:
        claim.release()


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
    chosen = [(setting, seed) for setting in settings(grid) for seed in seeds]
    for setting, seed in chosen:
        parser.build(config_class, parser.parse_only([*words, *words_of(setting, seed)]))
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
    add("--resume", action="store_true", help=f"{resume}or --seeds those runs are added.")
    add("--jobs", type=int | None, help="Runs at once. Default: one on each card that is visible, or one on a CPU.")
    add("--metric", choices=get_args(Metric), default="val_loss", help="What runs are compared by; lower is better.")
    early = "End a run whose lowest loss is above the median of the others' at the same step."
    add("--early_stop", action="store_true", help=early)
    add("--sweep", type=str | None, metavar="FILE", help="A sweep file of Weights & Biases, of the method grid.")
    add("--dry_run", action="store_true", help="Show the runs, and start none.")
    return parser


def _free_folder(name: str) -> Path:
    """The next free runs/sweeps/NAME-N."""
    number = 1
    while os.path.lexists(folder := RUNS / "sweeps" / f"{name}-{number}"):
        number += 1
    return folder


def _sweep(
    folder: Path, model: ModelType, options: Namespace, config: RunConfig, chosen: Sequence[tuple[Setting, int]]
) -> Sweep:
    """The sweep of a folder with its runs, or a new one.

    Raises:
        InputError: The folder is in use, or its sweep has another configuration.
    """
    if options.resume:
        sweep = read_sweep(folder)
        if config != parse_config_text(type(config), read_text(folder / BASE)):
            raise InputError(f"{folder} is a sweep of another configuration: leave --config and its options out")
        sweep.early_stop = sweep.early_stop or options.early_stop
    elif os.path.lexists(folder / FILE) or RunFolder(folder).in_use:
        raise InputError(f"{folder} is in use: go on with its sweep by --resume, or choose another --output_dir")
    else:
        sweep = Sweep(model, options.metric, options.early_stop)
    for setting, seed in chosen if options.grid or options.seeds or not options.resume else ():
        sweep.add(SweepRun(run_name(setting, seed), setting, seed))
    if sweep.early_stop:
        check_comparable(name for run in sweep.runs for name in run.setting)
    return sweep


def _command(model: ModelType, base: Path, run: SweepRun, place: Path) -> list[str]:
    """Python's arguments for a run: it goes on where it was."""
    script = HERE.with_name(f"train_{model}.py")
    return [
        str(script),
        "--config",
        str(base),
        *words_of(run.setting, run.seed),
        "--output_dir",
        str(place),
        "--resume",
    ]


def _show_plan(sweep: Sweep, folder: Path, command: Callable[[SweepRun, Path], list[str]]) -> None:
    for run in sweep.runs:
        done = f"{run.state:<11} " if run.state in FINISHED else "to run      "
        print(f"{done} {python_command(*command(run, folder / run.name))}")
    print(f"{len(sweep.runs)} runs in {folder}, none started (--dry_run)")


def _run(
    sweep: Sweep,
    folder: Path,
    command: Callable[[SweepRun, Path], list[str]],
    options: Namespace,
    config: RunConfig,
) -> None:
    """Run what is left, and show and draw all."""
    from training.sweep.report import plot, show
    from training.sweep.running import Runner, make_slots

    slots = make_slots(options.jobs)
    left = sum(run.state not in FINISHED for run in sweep.runs)
    print(f"sweep       {folder}, {left} of {len(sweep.runs)} runs to do, {len(slots)} at once", flush=True)
    runner = Runner(sweep, folder, command, slots, steps=config.training.max_steps, say=partial(print, flush=True))
    jobs = ["--jobs", options.jobs] if options.jobs else []
    resume = python_command(sys.argv[0], "--output_dir", folder, "--resume", *jobs)
    try:
        runner.run_all()
    except StoppedBySignal as stopped:
        raise StoppedBySignal(f"{stopped}; go on with: {resume}") from stopped
    finally:
        sweep.write(folder)
    print()
    show(sweep)
    plot(sweep, folder, folder / PLOT)
    print(f"{folder / FILE}\n{folder / PLOT}")
    if lost := sum(run.state not in FINISHED for run in sweep.runs):
        raise CommandError(
            f"{lost} of {len(sweep.runs)} runs did not come to their end, {folder}/logs says why; to try these again: "
            f"{resume}"
        )


if __name__ == "__main__":
    sys.exit(exit_code(main))
