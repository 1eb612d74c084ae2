"""Time how text is written: `python launch/bench_kv_cache.py --config FILE`, or `--checkpoint DIR`.

With those of an encoder-decoder: how targets are.
"""

import sys
from pathlib import Path

import gpt.options
import seq2seq.options
from decoding.model_type import checkpoint_model_type, config_model_type, value_of
from training.runtime.errors import exit_code


def main() -> None:
    """Parse, and only then load torch and what the model's package does with the options."""
    checkpoint, config = (value_of(option, sys.argv[1:]) for option in ("--checkpoint", "--config"))
    asked = checkpoint_model_type(Path(checkpoint)) if checkpoint else config and config_model_type(Path(config))
    if asked == "seq2seq":
        of_targets = seq2seq.options.parse_benchmark()
        from seq2seq.bench import bench as bench_targets

        bench_targets(*of_targets)
    else:
        of_text = gpt.options.parse_benchmark()
        from gpt.bench import bench as bench_text

        bench_text(*of_text)


if __name__ == "__main__":
    sys.exit(exit_code(main))
