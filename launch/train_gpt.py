"""Train a GPT: `accelerate launch launch/train_gpt.py [--config FILE] [--section.key value …]`."""

import sys
from functools import partial
from pathlib import Path

from gpt.config import GPTConfig
from gpt.model import GPT
from gpt.trainer import GPTTask, default_prompt, load_gpt, sample_text, train_gpt
from training.errors import exit_code
from training.run import Result
from training.train_command import script_command, show_losses, show_next, train_command

DEFAULT_CONFIG = Path(__file__).parents[1] / "configs/gpt/quick.yaml"
EVALUATE = Path(__file__).with_name("evaluate.py")


def main(task: type[GPTTask] = GPTTask) -> None:
    """Parse, train, and show what came out.

    Args:
        task: What to train, for a script of one's own.
    """
    train_command(
        "train_gpt.py",
        "Train a GPT on text.",
        DEFAULT_CONFIG,
        GPTConfig,
        partial(train_gpt, task=task),
        partial(show, task),
    )


def show(task: type[GPTTask], result: Result, config: GPTConfig) -> None:
    """Print the losses, the best checkpoint, a sample from it, and what to type next."""
    run = result.run.path
    best = load_gpt(run, model_class=task.model_class)
    show_losses(result, "character")
    for piece in sample_text(best.model, best.tokenizer, default_prompt(best.tokenizer)):
        print(piece, end="", flush=True)
    print("\n\nWhat next:")
    if task.model_class is GPT:
        prompt = ' --prompt "ROMEO:"' if set("ROMEO:") <= set(best.tokenizer.characters) else ""
        print(f"  sample:      {script_command(EVALUATE, '--checkpoint', run)}{prompt}")
    show_next(result, config)


if __name__ == "__main__":
    sys.exit(exit_code(main))
