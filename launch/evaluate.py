"""Write text with a trained GPT, or measure its loss: `python launch/evaluate.py --checkpoint DIR [--split val]`.

With the checkpoint of an encoder-decoder: `--source TEXT`, or `--split test`.
"""

import sys

import gpt.options
import seq2seq.options
from seq2seq.kind import is_seq2seq
from training.runtime.errors import exit_code


def main() -> None:
    """Parse, and only then load torch and what the model's package does with the options."""
    if is_seq2seq(sys.argv[1:]):
        options = seq2seq.options.parse_evaluation()
        from seq2seq.evaluate import evaluate
    else:
        options = gpt.options.parse_evaluation()
        from gpt.evaluate import evaluate
    evaluate(options)


if __name__ == "__main__":
    sys.exit(exit_code(main))
