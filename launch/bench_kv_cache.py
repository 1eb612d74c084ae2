"""Time how text is written: `python launch/bench_kv_cache.py --config FILE`, or `--checkpoint DIR`.

With those of an encoder-decoder: how targets are.
"""

import sys

import gpt.options
import seq2seq.options
from decoding.model_type import asked_model_type
from training.runtime.errors import exit_code


def main() -> None:
    """Parse, and only then load torch and what the model's package does with the options."""
    if asked_model_type(sys.argv[1:]) == "seq2seq":
        of_targets = seq2seq.options.parse_benchmark()
        from seq2seq.bench import bench as bench_targets

        bench_targets(*of_targets)
    else:
        of_text = gpt.options.parse_benchmark()
        from gpt.bench import bench as bench_text

        bench_text(*of_text)


if __name__ == "__main__":
    sys.exit(exit_code(main))
