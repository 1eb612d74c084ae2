"""What the training commands share: options, the start of a run, and what to type next."""

import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from training.config.command_line import Namespace, StrictParser, given_options
from training.config.sections import RunConfig
from training.runtime.surroundings import outlive_output
from training.storage.own_class import cannot_be_imported, class_record, end_if_imported
from training.storage.run_folder import RunFolder, begun_run, python_command
from training.storage.state import Counters

if TYPE_CHECKING:
    from training.run import Result
    from training.task import Task

Config = TypeVar("Config", bound=RunConfig)
Complete = Callable[[Config, Collection[str], RunFolder | None, bool], tuple[Config, tuple[str, ...]]]


def train_command(
    script: str,
    description: str,
    default_config: Path,
    config_class: type[Config],
    make_task: "Callable[[Config, RunFolder | None], Task]",
    show: "Callable[[Result, Config], None]",
    complete: "Complete[Config] | None" = None,
) -> None:
    """Parse, train, and show what came out.

    Args:
        script: Name of the script.
        description: What it does.
        default_config: The configuration without --config.
        config_class: What a configuration is.
        make_task: Builds model and data of a configuration, for the run that goes on, or for None that starts.
        show: Prints what came out, in the main process.
        complete: Makes the configuration that is trained of the one that is asked for, of the names of the options that
            were given, of the run that goes on, and of whether to go on with one where there is one, with notes for
            people; None for no change.
    """
    end_if_imported()
    parser = _parser(script, description, default_config, config_class)
    values = _parse(parser, sys.argv[1:], default_config)
    outlive_output()
    config = parser.build(config_class, values)
    output_dir = None if values.output_dir is None else Path(values.output_dir)
    run = begun_run(config.name, output_dir) if values.resume else None
    config, notes = complete(config, given_options(sys.argv[1:]), run, values.resume) if complete else (config, ())
    from training.run import train  # With torch: what is wrong with the options was said before.

    result = train(lambda: make_task(config, run), config, output_dir=output_dir, resume=values.resume, notes=notes)
    if result.is_main_process:
        show(result, config)


def _parser(script: str, description: str, default_config: Path, config_class: type[RunConfig]) -> StrictParser:
    parser = StrictParser(
        prog=script,
        description=f"{description} Options override the configuration file. The defaults below are what it says; "
        "--config FILE --help shows those of another one.",
    )
    parser.add_argument(
        "--config",
        action="config",
        help="YAML file of the experiment; options after it change what it says. Default: "
        f"{'/'.join(default_config.parts[-3:])}; with --resume, that of the run.",
    )
    parser.add_argument("--output_dir", type=str, help="Folder of the run. Default: the next free runs/NAME-N.")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="Go on from the last sound checkpoint in --output_dir (without it, in the newest runs/NAME-N), as the run "
        "was configured but for what is given; start where there is none.",
    )
    parser.add_class_arguments(config_class)
    return parser


def _parse(parser: StrictParser, options: list[str], default_config: Path) -> Namespace:
    """Parse options over the configuration that is asked for, else that of the run to go on with, else the default."""
    if any(option.split("=")[0] == "--config" for option in options):
        return parser.parse_args(options)
    values = parser.parse_only(["--config", str(default_config), *options])
    output_dir = None if values.output_dir is None else Path(values.output_dir)
    run = begun_run(values.name, output_dir) if values.resume else None
    return parser.parse_args(["--config", str(run.config_file if run else default_config), *options])


def show_losses(result: "Result", unit: str) -> None:
    """Print how long the training was, the losses and the best checkpoint; `unit` is what a token is called."""
    counters = result.counters
    print(f"\ntrained {counters.step:,} steps on {counters.tokens:,} {unit}s in {counters.seconds:.0f} s")
    print(f"validation loss  {counters.val_loss:.4f} nats per {unit}, over the whole validation split")
    newest = (result.run.read_metrics() or [{}])[-1]
    if "bits_per_byte" in newest:
        print(f"bits per byte    {newest['bits_per_byte']:.4f}")
    subset = "" if counters.eval_every == 1 else "val_loss_subset "
    print(
        f"best checkpoint  {result.run.path / 'checkpoints/best'} "
        f"(step {counters.best_step}, {subset}{counters.best:.4f})\n"
    )


def show_next(result: "Result", config: RunConfig) -> None:
    """Print the commands for the curves, and for training on."""
    if config.tracking in ("tensorboard", "both"):
        print(f"  see curves:  {python_command('-m', 'tensorboard.main', '--logdir', result.run.path.parent)}")
    options = longer(config, result.counters, result.num_steps)
    print(f"  train on:    {result.run.resume_command} {options}")
    if "restart_step" in options:
        print("               (warms the learning rate up once more, where the schedule has come to its end;")
        print("               --schedule.name constant in its place holds it at --optimizer.learning_rate)")
    print()


def longer(config: RunConfig, counters: Counters, num_steps: int) -> str:
    """The options that let a run of so many steps go on that has ended, without a learning rate that jumps."""
    training = config.training
    lost = 0 < training.patience <= counters.stale_evaluations
    patience = [f"--training.patience {2 * training.patience}"] if lost else []
    if counters.step < num_steps:
        return " ".join(patience)
    restart = "" if config.schedule.name == "constant" else f" --schedule.restart_step {counters.step}"
    if training.max_steps is not None and counters.step >= training.max_steps:
        return " ".join([*patience, f"--training.max_steps {2 * counters.step}"]) + restart
    epochs = [] if training.epochs is None else [f"--training.epochs {2 * training.epochs:g}"]
    tokens = [] if training.max_tokens is None else [f"--training.max_tokens {2 * training.max_tokens}"]
    return " ".join(patience + epochs + tokens) + restart


def script_command(script: Path, *options: Any) -> str:
    """The command line of a script, as short as it can be typed in this folder."""
    return python_command(os.path.relpath(script), *options)


def evaluate_commands(
    script: Path, run: Path, made_by: type, model_type: str, options: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """The lines that say what to do with a model: by a title, the command with these options.

    Where no command can import the class that made it, one line says so instead.
    """
    own = class_record(made_by, model_type).get("model_class")
    if own and (reason := cannot_be_imported(own)):
        yield f"  no command:  {reason}, from where none can import it; in Python: load(…, model_class=…)"
        return
    trust = ("--trust_code",) if own else ()
    for title, given in options.items():
        yield f"  {title + ':':<12} {script_command(script, '--checkpoint', run, *given, *trust)}"
