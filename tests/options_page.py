"""The page of all options of a training, from the classes that read them.

`python tests/options_page.py` writes docs/options.md.
"""

from collections.abc import Iterator
from pathlib import Path

from gpt.config import GPTConfig
from seq2seq.config import Seq2SeqConfig
from training.config.fields import Option, options_of, shown

PAGE = Path(__file__).parents[1] / "docs/options.md"
BEGINNING = """\
# Options of a training

`launch/train_gpt.py` and `launch/train_seq2seq.py` take each of these as `--section.option VALUE`, or from the section
of a YAML file: `--config FILE`. What stands later on the command line counts. `--help` lists them with the defaults of
the configuration file, `--print_config` prints a configuration to start a file of one's own from. An option that does
not exist, a value of another type and one out of range are refused in one line.

Besides there are `--config`, `--output_dir`, `--resume`, `--print_config` and `--help`. The other commands have options
of their own: `--help` lists them.

What a changed option does to a run that goes on (`--resume`):

- **same**: its steps are what they would have been without the change.
- **differs**: the steps to come differ, and the run says so.
- **refused**: they would not be the steps of one run any more, so that the run does not go on. So is, whatever the
  options say, another content of the data.

This page is written by `python tests/options_page.py` from the classes that read the options.
"""
SECTIONS = {
    "": "The experiment",
    "model": "model: the shape of the model",
    "data": "data: what to learn from",
    "lora": "lora: an adapter in place of the weights",
    "training": "training: the loop",
    "optimizer": "optimizer: how weights follow their gradients",
    "schedule": "schedule: how the learning rate moves",
}


def row(option: Option) -> str:
    """A line of a table."""
    cells = (f"`--{option.name}`", str(option.kind), f"`{shown(option.default)}`", option.on_resume, option.meaning)
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def tables() -> Iterator[str]:
    """All tables, with a heading for each section; what both models have comes first."""
    for section, title in SECTIONS.items():
        yield f"\n## {title}\n"
        gpt, seq2seq = (
            [row(option) for option in options_of(config) if option.name.rpartition(".")[0] == section]
            for config in (GPTConfig, Seq2SeqConfig)
        )
        of_one = {"GPT": [line for line in gpt if line not in seq2seq]}
        of_one["Encoder-decoder"] = [line for line in seq2seq if line not in gpt]
        for name, rows in {"Both models": [line for line in gpt if line in seq2seq], **of_one}.items():
            if rows:
                yield f"| {name} | values | default | on a resume | meaning |\n| --- | --- | --- | --- | --- |"
                yield from (*rows, "")


def page() -> str:
    """The whole page."""
    return "\n".join([BEGINNING, *tables()]).replace("\n\n\n", "\n\n")


if __name__ == "__main__":
    PAGE.write_text(page())
