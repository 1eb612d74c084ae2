"""What a run will take, before it is begun: `python launch/plan.py --config FILE [--gpu NAME --gpus N] …`."""

import json
import os
import sys
from importlib import import_module
from pathlib import Path

from decoding.model_type import asked_model_type
from gpt.config import GPTConfig
from gpt.initial_config import completed
from seq2seq.config import Seq2SeqConfig
from training.config.command_line import Namespace, StrictParser, given_options
from training.planning.links import find_link
from training.plots import check_output
from training.runtime.errors import InputError, exit_code
from training.runtime.hardware import CARDS, find_card


def parse(of_pairs: bool) -> tuple[Namespace, GPTConfig | Seq2SeqConfig]:
    """The options, with the full name of the card, and the configuration among them.

    Raises:
        InputError: An option is out of range, or nothing is known of the card or the link.
    """
    config_class: type[GPTConfig | Seq2SeqConfig] = Seq2SeqConfig if of_pairs else GPTConfig
    parser = _parser()
    parser.add_class_arguments(config_class)
    options = parser.parse_args()
    for name in ("gpus", "check"):
        if options[name] is not None and options[name] < 1:
            raise InputError(f"{name} must be at least 1, got {options[name]}")
    if not 0 < options.efficiency <= 1:
        raise InputError(f"efficiency must be above 0 and at most 1, got {options.efficiency:g}")
    if options.gpu is not None:
        options.gpu = find_card(options.gpu)
    if options.check is not None and (options.gpu is not None or options.gpus > 1):
        raise InputError("check: it trains on the one device that is here: leave --gpu and --gpus out")
    if options.link is not None:
        find_link(options.link, CARDS.get(options.gpu or ""))
    if options.json:
        check_output(Path(options.json), (".json",))
    config = parser.build(config_class, options)
    if isinstance(config, GPTConfig):
        config, _ = completed(config, given_options(sys.argv[1:]))
    return options, config


def _parser() -> StrictParser:
    parser = StrictParser(
        prog="plan.py",
        description="Parameters, arithmetic, memory, time and energy of a run, and whether several cards are faster: "
        "of a card by its name, else of the device that is here, by a few steps. Options after --config change what "
        "it says.",
    )
    add = parser.add_argument
    add("--config", action="config", required=True, help="YAML file of an experiment, of either model.")
    add("--gpu", type=str, metavar="NAME", help="A card, such as 'RTX 4090': by its maker's figures, without a probe.")
    add("--gpus", type=int, default=1, help="How many of them.")
    link = "What joins cards: pcie4-x8, nvlink, ethernet-10 (Gbit/s), or the GB/s of an all-reduce that was measured."
    add(
        "--link",
        type=str,
        metavar="LINK",
        help=f"{link} Default: NVLink, else 8 lanes of a card's PCIe.",
    )
    add("--efficiency", type=float, default=0.35, help="The share of its maker's figure that a card of --gpu does.")
    check = "Then train so many steps, and print what happened beside the plan."
    add("--check", type=int, metavar="STEPS", help=check)
    add("--json", type=str, help="Write the figures to this file, a .json.")
    return parser


def main() -> None:
    """Parse, and only then load torch and what the model is made of."""
    model_type = asked_model_type(sys.argv[1:]) or "gpt"
    options, config = parse(model_type == "seq2seq")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError("plan.py runs in one process: start it with python, and say --gpus")
    from training.planning.check import check
    from training.planning.plan import Asked, plan
    from training.planning.report import show

    task = import_module(f"{model_type}.task")
    task_class = task.Seq2SeqTask if model_type == "seq2seq" else task.GPTTask
    asked = Asked(gpu=options.gpu, gpus=options.gpus, link=options.link, efficiency=options.efficiency)
    if options.check is None:
        figures = plan(lambda: task_class(config), config, asked)
    else:
        figures = check(lambda: task_class(config), config, options.check)
    figures = {"source": options.config[0]} | figures
    show(figures)
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")
        print(options.json)


if __name__ == "__main__":
    sys.exit(exit_code(main))
