"""Time how a text becomes tokens, beside `datasets.map` with `tokenizers`: `python launch/bench_tokenisation.py`."""

import json
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from statistics import median

from data.config import TextConfig
from training.config.command_line import Namespace, StrictParser
from training.plots import check_output
from training.runtime.errors import InputError, exit_code

MADE_BY_US = ("characters", "bytes")


def parse() -> tuple[Namespace, TextConfig]:
    """The options of the command line, and the text among them.

    Raises:
        InputError: An option is out of range.
    """
    parser = StrictParser(
        prog="bench_tokenisation.py",
        description="Time how a text becomes tokens on the disk, in turn with datasets.map and the library tokenizers "
        "alone, by its threads and by as many processes as there are cores. Ours reads the text twice, to know what it "
        "holds and to split it; the others are given its documents as an Arrow file, which takes them one pass more.",
    )
    parser.add_class_arguments(TextConfig, skip={"unknown"})
    parser.set_defaults(tokenizer="bpe:16384")
    parser.add_argument("--repeats", type=int, default=3, help="Passes of each, of which the median is shown.")
    parser.add_argument("--json", type=str, help="Write the figures to this file, a .json.")
    options = parser.parse_args()
    if options.repeats < 1:
        raise InputError(f"repeats must be at least 1, got {options.repeats}")
    if options.tokenizer in MADE_BY_US:
        raise InputError(f"the library tokenizers has no {options.tokenizer}: give bpe:N or a tokenizer.json")
    if options.json:
        check_output(Path(options.json), [".json"])
    names = [field.name for field in fields(TextConfig) if field.name in options]
    return options, TextConfig(**{name: options[name] for name in names})


def main() -> None:
    """Parse, measure, and print and write the figures."""
    options, data = parse()
    import torch

    from data.text import load_source
    from data.tokenisation_speed import prepared
    from training.runtime.machine import describe_machine
    from training.runtime.tables import print_table

    with prepared(load_source(data), data) as (text, ways):
        print(f"text  {text.origin}: {text.documents:,} documents, {text.num_bytes:,} bytes, {data.tokenizer}\n")
        seconds = in_turn(ways, options.repeats)
    speeds = {
        name: {"seconds": each, "seconds_per_gb": median(each) * 1e9 / text.num_bytes,
               "tokens_per_second": text.num_tokens / median(each)}
        for name, each in seconds.items()
    }  # fmt: skip
    print_table(
        [
            {
                "": name,
                "seconds": f"{median(seconds[name]):.2f}",
                "seconds per GB": f"{speed['seconds_per_gb']:,.1f}",
                "tokens/s": f"{speed['tokens_per_second']:,.0f}",
            }
            for name, speed in speeds.items()
        ]
    )
    if options.json:
        figures = describe_machine(torch.device("cpu")) | text._asdict() | {"tokenizer": data.tokenizer, "ways": speeds}
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")


def in_turn(ways: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """The seconds of each pass: what else the machine does meanwhile comes to all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            seconds[name].append(way())
    return seconds


if __name__ == "__main__":
    sys.exit(exit_code(main))
