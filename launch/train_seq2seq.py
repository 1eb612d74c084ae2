"""Train an encoder-decoder: `accelerate launch launch/train_seq2seq.py [--config FILE] [--section.key value …]`."""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import seq2seq
from decoding.model_type import check_model_type
from training.runtime.errors import exit_code
from training.train_command import evaluate_commands, show_losses, show_next, train_command

if TYPE_CHECKING:
    from training.run import Result

DEFAULT_CONFIG = Path(__file__).parents[1] / "configs/seq2seq/copy.yaml"
EVALUATE = Path(__file__).with_name("evaluate.py")


def main(task: "type[seq2seq.Seq2SeqTask] | None" = None) -> None:
    """Parse, train, and show what came out.

    Args:
        task: What to train, for a script of one's own; None for a `Seq2SeqTask`.
    """
    check_model_type(sys.argv[1:], "seq2seq")
    train_command(
        "train_seq2seq.py",
        "Train an encoder-decoder on pairs of texts.",
        DEFAULT_CONFIG,
        seq2seq.Seq2SeqConfig,
        lambda config, run: (task or seq2seq.Seq2SeqTask)(config),
        partial(show, task),
    )


def show(task: "type[seq2seq.Seq2SeqTask] | None", result: "Result", config: seq2seq.Seq2SeqConfig) -> None:
    """Print the losses, the accuracy, the best checkpoint, and what to type next."""
    run = result.run
    show_losses(result, "token")
    newest = (run.read_metrics() or [{}])[-1]
    for name, unit in (("exact_match", "of the validation pairs, decoded greedily"), ("token_accuracy", "")):
        if name in newest:
            print(f"{name.replace('_', ' '):<15}  {newest[name]:.4f} {unit}".rstrip())
    print("\nWhat next:")
    example = config.data.symbols[: min(8, config.data.max_length)]
    options = {} if config.data.task == "pairs" else {"try it": ("--source", example)}
    model_class = (task or seq2seq.Seq2SeqTask).model_class
    options["measure it"] = ("--split", "test")
    print("\n".join(evaluate_commands(EVALUATE, run.path, model_class, "seq2seq", options)))
    show_next(result, config)


if __name__ == "__main__":
    sys.exit(exit_code(main))
