"""Copy and reverse beyond the trained lengths, by each recipe: `python launch/length_generalisation.py`."""

import sys
from itertools import product
from pathlib import Path
from typing import get_args

from data.pairs.strings import Task
from seq2seq.choices import RECIPES
from training.config.command_line import Namespace, StrictParser
from training.plots import check_outputs, write_outputs
from training.runtime.errors import InputError, exit_code

ROOT = Path(__file__).parents[1]


def parse() -> Namespace:
    """The options of the command line."""
    parser = StrictParser(
        prog="length_generalisation.py",
        description="Train copy and reverse by each way to know positions, and measure exact match by length, up to "
        "twice the trained one. Trainings that have ended are taken from --runs.",
    )
    parser.add_argument(
        "--tasks", nargs="+", choices=get_args(Task), default=list(get_args(Task)), help="What to learn."
    )
    parser.add_argument(
        "--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES), help="Ways to know positions."
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="A training of each for each seed.")
    parser.add_argument("--max_steps", type=int, help="Optimizer steps. Default: as the configurations say.")
    parser.add_argument("--longest", type=int, default=40, help="Longest strings to try.")
    parser.add_argument("--runs", type=str, default="runs/lengths", help="Where the trainings go.")
    parser.add_argument("--json", type=str, help="Write the figures to this file, a .json.")
    parser.add_argument(
        "--plot", type=str, help="Draw exact match against length into this file: a .png, .svg or .pdf."
    )
    options = parser.parse_args()
    if not 21 <= options.longest <= 62:
        raise InputError(f"longest must be at least 21 and at most 62, got {options.longest}: training goes up to 20")
    check_outputs(options)
    return options


def main() -> None:
    """Parse, train, measure, and print, write and draw the figures."""
    options = parse()
    from seq2seq.length_generalisation import Trial, measure_trial, plot, table, train_trial
    from training.runtime.device import inference_device
    from training.runtime.machine import describe_machine
    from training.runtime.progress import Progress
    from training.runtime.threads import set_cpu_threads

    set_cpu_threads()
    extra = [] if options.max_steps is None else ["--training.max_steps", str(options.max_steps)]
    trials = [Trial(task=t, recipe=r, seed=s) for t, r, s in product(options.tasks, options.recipes, options.seeds)]
    rows = []
    progress = Progress(0, len(trials), visible=True, unit="training")
    try:
        for trial in trials:
            progress.doing(trial.folder_name)
            config = ROOT / f"configs/seq2seq/{trial.task}.yaml"
            run = train_trial(trial, Path(__file__).with_name("train_seq2seq.py"), config, Path(options.runs), extra)
            rows.append(measure_trial(trial, run, options.longest))
            progress.advance()
            progress.say(table(rows[-1:]).splitlines()[1])
    finally:
        progress.close()
    print(f"\n{table(rows)}")
    figures = describe_machine(inference_device()) | {"rows": rows}
    write_outputs(options, figures, lambda file: plot(rows, file))


if __name__ == "__main__":
    sys.exit(exit_code(main))
