"""What the training commands share: options, the start of a run, and what to type next."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from training.command_line import StrictParser
from training.config import RunConfig
from training.run import Result
from training.run_folder import python_command
from training.state import Counters
from training.surroundings import outlive_output

Config = TypeVar("Config", bound=RunConfig)


def train_command(
    script: str,
    description: str,
    default_config: Path,
    config_class: type[Config],
    train: Callable[..., Result],
    show: Callable[[Result, Config], None],
) -> None:
    """Parse, train, and show what came out.

    Args:
        script: Name of the script.
        description: What it does.
        default_config: The configuration without --config.
        config_class: What a configuration is.
        train: Trains, given a configuration, `output_dir` and `resume`.
        show: Prints what came out, in the main process.
    """
    parser = StrictParser(
        prog=script,
        description=f"{description} Options override the configuration file, the file the defaults below.",
    )
    parser.add_argument(
        "--config",
        action="config",
        help="YAML file of the experiment; options after it change what it says. Default: "
        f"{'/'.join(default_config.parts[-3:])}.",
    )
    parser.add_argument("--output_dir", type=str, help="Folder of the run. Default: the next free runs/NAME-N.")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="Go on from the last sound checkpoint in --output_dir (without it, in the newest runs/NAME-N); "
        "start where there is none.",
    )
    parser.add_class_arguments(config_class)
    arguments = sys.argv[1:]
    if not any(argument.split("=")[0] == "--config" for argument in arguments):
        arguments = ["--config", str(default_config), *arguments]
    values = parser.parse_args(arguments)
    outlive_output()
    config = parser.build(config_class, values)
    output_dir = None if values.output_dir is None else Path(values.output_dir)
    result = train(config, output_dir=output_dir, resume=values.resume)
    if result.is_main_process:
        show(result, config)


def show_losses(result: Result, unit: str) -> None:
    """Print how long the training was, the losses and the best checkpoint; `unit` is what a token is called."""
    counters = result.counters
    print(f"\ntrained {counters.step:,} steps on {counters.tokens:,} {unit}s in {counters.seconds:.0f} s")
    print(f"validation loss  {counters.val_loss:.4f} nats per {unit}, over the whole validation split")
    print(
        f"best checkpoint  {result.run.path / 'checkpoints/best'} "
        f"(step {counters.best_step}, {counters.best_val_loss:.4f})\n"
    )


def show_next(result: Result, config: RunConfig) -> None:
    """Print the commands for the curves, and for training on."""
    if config.tracking in ("tensorboard", "both"):
        print(f"  see curves:  {python_command('-m', 'tensorboard.main', '--logdir', result.run.path.parent)}")
    print(f"  train on:    {result.run.resume_command} {longer(config, result.counters)}\n")


def longer(config: RunConfig, counters: Counters) -> str:
    """The option that lets a run that has ended go on."""
    training = config.training
    if 0 < training.patience <= counters.stale_evaluations:
        return f"--training.patience {2 * training.patience}"
    if training.epochs is not None and (training.max_steps is None or counters.step < training.max_steps):
        return f"--training.epochs {2 * training.epochs:g}"
    return f"--training.max_steps {2 * counters.step}"


def script_command(script: Path, *options: Any) -> str:
    """The command line of a script, as short as it can be typed in this folder."""
    return python_command(os.path.relpath(script), *options)
