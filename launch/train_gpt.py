"""Train a GPT: `accelerate launch launch/train_gpt.py [--config FILE] [--section.key value …]`."""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import gpt
from decoding.model_type import check_model_type
from gpt.initial_config import completed
from training.runtime.errors import exit_code
from training.storage.run_folder import RunFolder
from training.train_command import evaluate_commands, show_losses, show_next, train_command

if TYPE_CHECKING:
    from training.run import Result

DEFAULT_CONFIG = Path(__file__).parents[1] / "configs/gpt/quick.yaml"
EVALUATE = Path(__file__).with_name("evaluate.py")


def main(task: "type[gpt.GPTTask] | None" = None) -> None:
    """Parse, train, and show what came out.

    Args:
        task: What to train, for a script of one's own; None for a `GPTTask`.
    """
    check_model_type(sys.argv[1:], "gpt")
    train_command(
        "train_gpt.py",
        "Train a GPT on text.",
        DEFAULT_CONFIG,
        gpt.GPTConfig,
        partial(make, task),
        partial(show, task),
        completed,
    )


def make(task: "type[gpt.GPTTask] | None", config: gpt.GPTConfig, run: RunFolder | None) -> "gpt.GPTTask":
    """The task of a run; see `gpt.task.make_task`."""
    from gpt.task import make_task

    return make_task(task or gpt.GPTTask, config, run)


def show(task: "type[gpt.GPTTask] | None", result: "Result", config: gpt.GPTConfig) -> None:
    """Print the losses, the best checkpoint, a sample from it, and what to type next."""
    from data.tokenizers.tokenizer import unit_of
    from gpt.task import can_read, default_prompt, sample_text

    run, model_class = result.run.path, (task or gpt.GPTTask).model_class
    # A task may have made its model by another class than that, which its run names.
    best = gpt.load(run, model_class=None if model_class is gpt.GPT else model_class, trust_code=True)
    show_losses(result, unit_of(best.tokenizer))
    for piece in sample_text(best.model, best.tokenizer, default_prompt(best.tokenizer)):
        print(piece, end="", flush=True)
    print("\n\nWhat next:")
    is_usual = config.data.source in ("auto", "comedies", "hub") and can_read(best.tokenizer, "ROMEO:")
    options = {"sample": ("--prompt", "ROMEO:") if is_usual else ()}
    print("\n".join(evaluate_commands(EVALUATE, run, type(best.model), "gpt", options)))
    show_next(result, config)


if __name__ == "__main__":
    sys.exit(exit_code(main))
