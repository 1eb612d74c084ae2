"""Train a GPT: `accelerate launch launch/train_gpt.py [--config FILE] [--section.key value …]`."""

import sys
from pathlib import Path

from gpt.config import GPTConfig
from gpt.trainer import default_prompt, load_gpt, sample_text, train_gpt
from training.command_line import StrictParser
from training.errors import exit_code
from training.run import Result
from training.run_folder import python_command

DEFAULT_CONFIG = Path(__file__).parents[1] / "configs/gpt/quick.yaml"


def main() -> None:
    """Parse, train, and show what came out."""
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
    result = train_gpt(config, output_dir=output_dir, resume=values.resume)
    if result.is_main_process:
        show(result, config)


def show(result: Result, config: GPTConfig) -> None:
    """Print the losses, the best checkpoint, a sample from it, and what to type next."""
    counters, run = result.counters, result.run.path
    best = load_gpt(run)
    print(f"\ntrained {counters.step:,} steps on {counters.tokens:,} characters in {counters.seconds:.0f} s")
    print(f"validation loss  {counters.val_loss:.4f} nats per character, over the whole validation split")
    print(f"best checkpoint  {run / 'checkpoints/best'} (step {counters.best_step}, {counters.best_val_loss:.4f})\n")
    for piece in sample_text(best.model, best.tokenizer, default_prompt(best.tokenizer)):
        print(piece, end="", flush=True)
    evaluate = python_command(Path(sys.argv[0]).with_name("evaluate.py"), "--checkpoint", run)
    prompt = ' --prompt "ROMEO:"' if set("ROMEO:") <= set(best.tokenizer.characters) else ""
    longer = f"--training.max_steps {2 * counters.step}"
    if config.training.max_steps is None and config.training.epochs is not None:
        longer = f"--training.epochs {2 * config.training.epochs:g}"
    print(
        f"\n\nWhat next:\n"
        f"  sample:      {evaluate}{prompt}\n"
        f"  see curves:  {python_command('-m', 'tensorboard.main', '--logdir', run.parent)}\n"
        f"  train on:    {result.run.resume_command} {longer}\n"
    )


if __name__ == "__main__":
    sys.exit(exit_code(main))
