"""Look for what would stop or spoil a run on this machine: `python launch/doctor.py [--num_processes N] [--json FILE]`.

Exit code 0 where nothing was found that would, 1 where something was.
"""

import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from training.config.command_line import Namespace, StrictParser
from training.plots import check_output
from training.runtime.errors import CommandError, InputError, exit_code
from training.runtime.progress import Progress

OURS = Path(__file__).parents[1] / "accelerate_config.yaml"


def parse() -> Namespace:
    """The options.

    Raises:
        InputError: One is out of range, or names a file that is not there.
    """
    parser = StrictParser(
        prog="doctor.py",
        description="Before a long run: a line for each thing that was measured, with what to do where it is not good. "
        "A minute or less; exit code 1 where something would stop or spoil a run.",
    )
    add = parser.add_argument
    add("--output_dir", type=str, default="runs", help="Where runs and their checkpoints are to go.")
    files = "Of `accelerate launch --config_file`. Default: accelerate_config.yaml, and your own where there is one."
    add("--launch_file", type=str | None, help=files)
    count = "How many processes are to run here; on a CPU they try gloo. Default: what the file says, and all cards."
    add("--num_processes", type=int | None, help=count)
    add("--timeout", type=float, default=15.0, help="Seconds after which an all-reduce counts as hanging.")
    add("--json", type=str | None, metavar="FILE", help="Write a report to this file, a .json; - for the terminal.")
    options = parser.parse_args()
    if options.num_processes is not None and options.num_processes < 1:
        raise InputError(f"num_processes must be at least 1, got {options.num_processes}")
    if not options.timeout > 0:
        raise InputError(f"timeout must be above 0, got {options.timeout}")
    if options.launch_file and not Path(options.launch_file).is_file():
        raise InputError(f"there is no file {options.launch_file}: name one of accelerate launch, or leave it out")
    if options.json and options.json != "-":
        check_output(Path(options.json), (".json",))
    if "LOCAL_RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError("this command runs in one process: start it with python, not with a launcher of several")
    return options


def main() -> None:
    """Parse, and only then load torch and look.

    Raises:
        CommandError: Something was found that would stop or spoil a run.
    """
    options = parse()
    if options.json == "-":
        with redirect_stdout(sys.stderr):
            report = examine_all(options)
        print(json.dumps(report, indent=1))
    else:
        report = examine_all(options)
        if options.json:
            Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
            print(options.json)
    if faults := [finding["name"] for finding in report["findings"] if finding["status"] == "fault"]:
        raise CommandError(f"this would stop or spoil a run: {', '.join(dict.fromkeys(faults))}")


def examine_all(options: Namespace) -> dict[str, Any]:
    """Run all checks, show what each finds, and report it."""
    from training.doctor.checks import checks, report, user_launch_file
    from training.doctor.findings import examine

    files = {"launch file": Path(options.launch_file)} if options.launch_file else {"launch file": OURS}
    if not options.launch_file:
        files |= user_launch_file()
    todo, found = checks(Path(options.output_dir), files, options.num_processes, options.timeout), []
    progress = Progress(0, len(todo), visible=True, unit="check")
    for check in todo:
        progress.doing(check.name)
        for finding in examine(check):
            found.append(finding)
            progress.say(str(finding))
        progress.advance()
    progress.close()
    return report(found)


if __name__ == "__main__":
    sys.exit(exit_code(main))
