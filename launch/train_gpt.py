"""Train a GPT: `accelerate launch launch/train_gpt.py [--config FILE] [--section.key value …]`."""

import os
import sys
from pathlib import Path

from gpt.config import GPTConfig
from gpt.model import GPT
from gpt.trainer import GPTTask, default_prompt, load_gpt, sample_text, train_gpt
from training.command_line import StrictParser
from training.errors import exit_code
from training.run import Result
from training.run_folder import python_command
from training.state import Counters

DEFAULT_CONFIG = Path(__file__).parents[1] / "configs/gpt/quick.yaml"


def main(task: type[GPTTask] = GPTTask) -> None:
    """Parse, train, and show what came out.

    Args:
        task: What to train, for a script of one's own.
    """
    parser = StrictParser(
        prog="train_gpt.py",
        description="Train a GPT on text. Options override the configuration file, the file the defaults below.",
    )
    parser.add_argument(
        "--config",
        action="config",
        help="YAML file of the experiment; options after it change what it says. Default: configs/gpt/quick.yaml.",
    )
    parser.add_argument("--output_dir", type=str, help="Folder of the run. Default: the next free runs/NAME-N.")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="Go on from the last sound checkpoint in --output_dir (without it, in the newest runs/NAME-N); "
        "start where there is none.",
    )
    parser.add_class_arguments(GPTConfig)
    arguments = sys.argv[1:]
    if not any(argument.split("=")[0] == "--config" for argument in arguments):
        arguments = ["--config", str(DEFAULT_CONFIG), *arguments]
    values = parser.parse_args(arguments)
    config = parser.build(GPTConfig, values)
    output_dir = None if values.output_dir is None else Path(values.output_dir)
    result = train_gpt(config, task=task, output_dir=output_dir, resume=values.resume)
    if result.is_main_process:
        show(result, config, task)


def show(result: Result, config: GPTConfig, task: type[GPTTask]) -> None:
    """Print the losses, the best checkpoint, a sample from it, and what to type next."""
    counters, run = result.counters, result.run.path
    best = load_gpt(run, model_class=task.model_class)
    print(f"\ntrained {counters.step:,} steps on {counters.tokens:,} characters in {counters.seconds:.0f} s")
    print(f"validation loss  {counters.val_loss:.4f} nats per character, over the whole validation split")
    print(f"best checkpoint  {run / 'checkpoints/best'} (step {counters.best_step}, {counters.best_val_loss:.4f})\n")
    for piece in sample_text(best.model, best.tokenizer, default_prompt(best.tokenizer)):
        print(piece, end="", flush=True)
    print("\n\nWhat next:")
    if task.model_class is GPT:
        evaluate = python_command(os.path.relpath(Path(__file__).with_name("evaluate.py")), "--checkpoint", run)
        prompt = ' --prompt "ROMEO:"' if set("ROMEO:") <= set(best.tokenizer.characters) else ""
        print(f"  sample:      {evaluate}{prompt}")
    if config.tracking in ("tensorboard", "both"):
        print(f"  see curves:  {python_command('-m', 'tensorboard.main', '--logdir', run.parent)}")
    print(f"  train on:    {result.run.resume_command} {longer(config, counters)}\n")


def longer(config: GPTConfig, counters: Counters) -> str:
    """The option that lets a run that has ended go on."""
    training = config.training
    if 0 < training.patience <= counters.stale_evaluations:
        return f"--training.patience {2 * training.patience}"
    if training.epochs is not None and (training.max_steps is None or counters.step < training.max_steps):
        return f"--training.epochs {2 * training.epochs:g}"
    return f"--training.max_steps {2 * counters.step}"


if __name__ == "__main__":
    sys.exit(exit_code(main))
