"""The runs of a folder: `python launch/runs.py list`, `show RUN`, `prune …` or `copy RUN DEST`."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from training.config.command_line import StrictParser
from training.runs.commands import copy, list_runs, prune, show
from training.runtime.errors import exit_code


def main() -> None:
    """Do what the first word says."""
    here = Path(__file__).parent
    show_run, copy_run = partial(show, scripts=here), partial(copy, scripts=here)
    commands: dict[str, Callable[[Sequence[str]], None]] = {
        "list": list_runs,
        "show": show_run,
        "prune": prune,
        "copy": copy_run,
    }
    if len(sys.argv) > 1 and sys.argv[1] in commands:
        commands[sys.argv[1]](sys.argv[2:])
        return
    parser = StrictParser(
        prog="runs.py",
        description="list: the runs of a folder, with state, losses, size and age. show: one of them. prune: remove "
        "runs, or checkpoints of runs. copy: a checkpoint or a run, to where it serves as well. Each has a --help.",
    )
    parser.add_argument("command", choices=list(commands), help="What to do.")
    parser.parse_args(sys.argv[1:2])


if __name__ == "__main__":
    sys.exit(exit_code(main))
