"""A GPT beside compressors, on the text that it is validated on: `python launch/compare_compression.py`."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from training.config.command_line import Namespace, StrictParser
from training.plots import check_output
from training.runtime.errors import exit_code


def parse() -> Namespace:
    """The options of the command line."""
    parser = StrictParser(
        prog="compare_compression.py",
        description="Measure the bits per byte of a GPT's validation text: those of the model, and those that xz -9 "
        "and zstd -19 take, for each document by itself and for all of them in one file.",
    )
    parser.add_argument("--checkpoint", type=str, required=True, help="A run, or one of its checkpoints.")
    parser.add_argument(
        "--trust_code",
        action="store_true",
        help="Import the class that made the model, where the run names one of one's own: that runs its code.",
    )
    parser.add_argument("--json", type=str, help="Write the figures to this file, a .json.")
    options = parser.parse_args()
    if options.json:
        check_output(Path(options.json), [".json"])
    return options


def main() -> None:
    """Parse, measure, and print and write the figures."""
    options = parse()
    from data.cache.tokens import held_out_documents
    from data.compressors import bits_per_byte
    from data.text import load_source
    from gpt.task import load_gpt, measure_split
    from training.runtime.device import inference_device, make_accelerator
    from training.runtime.machine import describe_machine
    from training.runtime.tables import print_table

    loaded = load_gpt(Path(options.checkpoint), trust_code=options.trust_code)
    runtime = make_accelerator(loaded.config.training.precision)
    measured = measure_split(runtime.accelerator, loaded, "val")
    model = measured.metrics["bits_per_byte"]
    compressed = bits_per_byte(held_out_documents(load_source(loaded.config.data), loaded.config.data))
    print(f"text  {measured.description}\n")
    print_table(list(_rows(model, compressed)))
    figures = describe_machine(inference_device()) | {
        "text": measured.description,
        "text_sha256": loaded.data_sha256,
        "bits_per_byte": {"model": model} | compressed,
    }
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")


def _rows(model: float, compressed: dict[str, dict[str, float]]) -> Iterable[dict[str, Any]]:
    yield {"": "the model", "bits per byte": f"{model:.4f}", "all in one file": ""}
    for name, bits in compressed.items():
        yield {"": name, "bits per byte": f"{bits['each']:.4f}", "all in one file": f"{bits['joined']:.4f}"}


if __name__ == "__main__":
    sys.exit(exit_code(main))
