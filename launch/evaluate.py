"""Use a trained model: `python launch/evaluate.py --checkpoint DIR`, which says itself which model's it is.

A GPT continues a `--prompt`, an encoder-decoder writes the target of a `--source`; with `--split` either is measured.
"""

import sys

from decoding.options import parse
from training.runtime.errors import exit_code


def main() -> None:
    """Parse, and only then load torch and what the model's package does with the options."""
    options = parse(sys.argv[1:])
    if options.model_type == "gpt":
        from gpt.evaluate import evaluate
    else:
        from seq2seq.evaluate import evaluate
    evaluate(options)


if __name__ == "__main__":
    sys.exit(exit_code(main))
