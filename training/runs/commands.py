"""What `launch/runs.py` does: list and show runs, prune them after asking, and copy them."""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from training.config.command_line import Namespace, StrictParser
from training.plots import check_output
from training.runs.copying import copy_checkpoint, copy_run, needs
from training.runs.listing import Run, State, age, find_runs, read_run, table_row
from training.runs.pruning import (
    LINK,
    Choice,
    Slimming,
    obstacle,
    remove_checkpoints,
    remove_hidden,
    remove_run,
    slimming,
)
from training.runtime.errors import CommandError, InputError
from training.runtime.sizes import gigabytes
from training.runtime.tables import print_table
from training.storage.checkpoint import Checkpoint, CheckpointStore, checkpoint_name
from training.storage.finding import find_checkpoint
from training.storage.run_folder import RUNS
from training.train_command import script_command


def _parser(command: str, description: str) -> StrictParser:
    return StrictParser(prog=f"runs.py {command}", description=description)


def _add_json(parser: StrictParser) -> None:
    parser.add_argument("--json", type=str | None, metavar="FILE", help="Write it to this .json; - for the terminal.")


def _write_json(file: str, value: Any) -> None:
    text = json.dumps(value, indent=1)
    if file == "-":
        print(text)
        return
    check_output(Path(file), (".json",))
    Path(file).write_text(f"{text}\n")
    print(file)


def list_runs(words: Sequence[str]) -> None:
    """Show the runs of a folder."""
    parser = _parser("list", "The runs of a folder and of the folders in it, the one that was changed last first.")
    parser.add_argument("--runs", type=str, default=str(RUNS), metavar="DIR", help="The folder.")
    parser.add_argument("--state", choices=get_args(State), help="Only those that are it.")
    _add_json(parser)
    options = parser.parse_args(words)
    runs = [run for run in find_runs(Path(options.runs)) if options.state in (None, run.state)]
    if options.json is not None:
        _write_json(options.json, [run.as_json() for run in runs])
        return
    if not runs:
        print(f"there are no runs in {options.runs}" + (f" that are {options.state}" if options.state else ""))
        return
    print_table([table_row(run) for run in runs])
    _say_faults(runs)
    print(f"{len(runs)} runs, {gigabytes(sum(run.size for run in runs))}")


def _say_faults(runs: Sequence[Run]) -> None:
    for run in runs:
        for fault in run.faults:
            print(f"{run.state:<11} {fault}")


def show(words: Sequence[str], scripts: Path) -> None:
    """Show one run, and what goes on with it: a command among the `scripts`.

    Raises:
        CommandError: With `--verify`, a checkpoint is damaged.
    """
    parser = _parser("show", "What is known of a run, and of its checkpoints.")
    parser.add_argument("run", type=str, metavar="RUN", help="Its folder.")
    parser.add_argument("--verify", action="store_true", help="Read every checkpoint to the last byte; 1 if damaged.")
    _add_json(parser)
    options = parser.parse_args(words)
    run = read_run(Path(options.run))
    if options.verify:
        _verify(run)
    if options.json is not None:
        _write_json(options.json, run.as_json())
    else:
        _print_run(run, scripts)
    if options.verify and run.faults:
        raise CommandError(f"{run.path} is damaged: {run.faults[0]}")


def _verify(run: Run) -> None:
    for saved in run.checkpoints:
        path = run.path / "checkpoints" / checkpoint_name(saved.step)
        try:
            Checkpoint(path)
        except InputError as error:
            if saved.fault is None and path.exists():  # A running run removes its older ones.
                saved.fault = str(error)
                run.state, run.faults = "damaged", [*run.faults, saved.fault]


def _print_run(run: Run, scripts: Path) -> None:
    steps = "" if run.steps is None else f" of {run.steps:,}"
    losses = {"newest loss": run.val_loss, "best loss": run.best, "bits per byte": run.bits_per_byte}
    lines = {
        "run": str(run.path),
        "state": run.state,
        "model": run.model,
        "step": f"{run.step:,}{steps}, {run.tokens:,} tokens in {run.seconds:,.0f} s",
        **{name: f"{loss:.4f}" for name, loss in losses.items() if loss is not None},
        "computed on": run.setup.get("device") or ", ".join(f"{name} {value}" for name, value in run.setup.items()),
        "size": f"{gigabytes(run.size)}, changed {age(time.time() - run.changed)} ago",
        "left over": ", ".join(path.name for path in run.left_over),
    }
    print("\n".join(f"{name:<13} {text}" for name, text in lines.items() if text))
    if run.checkpoints:
        print()
        print_table(
            [
                {
                    "checkpoint": checkpoint_name(saved.step),
                    "is": ", ".join(saved.names),
                    "loss": "" if saved.val_loss is None else f"{saved.val_loss:.4f}",
                    "size": gigabytes(saved.size),
                    "state": "sound" if saved.fault is None else "damaged",
                }
                for saved in run.checkpoints
            ]
        )
    _say_faults([run])
    if run.state == "stopped" and run.model is not None:
        script = scripts / f"train_{run.model}.py"
        print(f"to go on: {script_command(script, '--output_dir', _typed(run.path), '--resume')}")


def prune(words: Sequence[str]) -> None:
    """Remove runs, or checkpoints of runs, after asking."""
    options = _prune_options(words)
    for link in (path for path in map(Path, options.names) if path.is_symlink()):
        _leave(link, LINK)
    for hidden in remove_hidden(Path(options.runs), dry_run=options.dry_run):
        print(f"{hidden}: left of a removal that was interrupted; it goes")
    free = _free(_choice(options).of(_all_runs(options)), options)
    if options.checkpoints:
        _prune_checkpoints([plan for run in free if (plan := _plan(run, options.keep or 1)).removed], options)
        return
    if not free:
        print("nothing to remove")
        return
    print_table([table_row(run) for run in free])
    if _agreed(options, f"remove {_counted(len(free))}, {gigabytes(sum(run.size for run in free))}?"):
        for run in _free(free, options):  # An adapter may have begun while the question stood.
            remove_run(run.path, run.size)
            print(f"removed {run.path}")


def _counted(number: int) -> str:
    return "this run" if number == 1 else f"these {number} runs"


def _free(runs: Sequence[Run], options: Namespace) -> list[Run]:
    """Those that may be removed; of the others it is said why not."""
    around = _all_runs(options, around=True)
    reasons = ((run, obstacle(run, around, whole=not options.checkpoints)) for run in runs)
    return [run for run, reason in reasons if reason is None or _leave(run.path, reason)]


def _leave(path: Path, reason: str) -> bool:
    print(f"left alone {path}: {reason}")
    return False


def _all_runs(options: Namespace, *, around: bool = False) -> list[Run]:
    """The runs of the folder, and those that are named, wherever they are.

    Args:
        options: They say the folder, and the names.
        around: Those behind links as well, and those beside the ones that are named: they may need one of these.
    """
    folder, named = Path(options.runs), [path for path in map(Path, options.names) if not path.is_symlink()]
    found = find_runs(folder, links=around) if folder.is_dir() or not options.names else []
    known = {run.path.resolve() for run in found}
    elsewhere = {resolved: path for path in named if (resolved := path.resolve()) not in known}
    found += map(read_run, elsewhere.values())
    for beside in {resolved.parent for resolved in elsewhere} if around else ():
        found += find_runs(beside, depth=1)
    return sorted(found, key=lambda run: -run.changed)


def _plan(run: Run, keep: int) -> Slimming:
    """What is to go of a run; nothing where that cannot be told."""
    try:
        return slimming(run, keep)
    except InputError as error:
        _leave(run.path, str(error))
        return Slimming(run)


def _prune_checkpoints(plans: Sequence[Slimming], options: Namespace) -> None:
    if not plans:
        print("nothing to remove")
        return
    for plan in plans:
        kept, removed = (", ".join(path.name for path in paths) for paths in (plan.kept, plan.removed))
        print(f"{plan.run.path}: remove {removed} ({gigabytes(plan.size)}), keep {kept}")
    if _agreed(options, f"remove these, {gigabytes(sum(plan.size for plan in plans))}?"):
        free = _free([plan.run for plan in plans], options)
        for plan in (plan for plan in plans if plan.run in free):
            remove_checkpoints(plan)
            print(f"removed {len(plan.removed)} of {plan.run.path}")


def _agreed(options: Namespace, question: str) -> bool:
    """Whether to go on, which the user is asked unless it was said; no answer is a no."""
    if options.dry_run:
        print("nothing was removed (--dry_run)")
        return False
    if options.yes:
        return True
    print(f"{question} [y/N] ", end="", flush=True)
    agreed = sys.stdin.readline().strip().lower() in ("y", "yes")
    if not agreed:
        print("nothing was removed")
    return agreed


def _prune_options(words: Sequence[str]) -> Namespace:
    parser = _parser(
        "prune",
        "Remove those runs of which all holds that is given; with --checkpoints, all of their checkpoints but the best "
        "and the newest sound one. It asks first. A running run is left alone, and so is the base of an adapter.",
    )
    add = parser.add_argument
    add("names", nargs="*", type=str, metavar="RUN", help="Folders of runs. Default: all of --runs.")
    add("--runs", type=str, default=str(RUNS), metavar="DIR", help="Where runs are looked for.")
    add("--older_than", type=float | None, metavar="DAYS", help="Their last change is longer ago.")
    add("--worse_than", type=float | None, metavar="LOSS", help="Their best validation loss is above it.")
    add("--state", choices=["done", "stopped", "damaged"], help="What they are.")
    keep = "Leave so many of the newest runs alone; with --checkpoints, so many checkpoints of each run"
    add("--keep", type=int | None, metavar="N", help=f"{keep}, at least 1, besides the best.")
    add("--keep_best", type=int | None, metavar="N", help="Leave those with the lowest losses on a text alone.")
    add("--checkpoints", action="store_true", help="Remove checkpoints, not runs; and what is left of damaged ones.")
    add("--dry_run", action="store_true", help="Show what would be removed.")
    add("--yes", action="store_true", help="Do not ask.")
    options = parser.parse_args(words)
    for name, least in (("keep", int(options.checkpoints)), ("keep_best", 0)):
        if options[name] is not None and options[name] < least:
            raise InputError(f"{name} must be at least {least}, got {options[name]}")
    given = ("older_than", "worse_than", "state", "keep", "keep_best")
    if not (options.names or options.checkpoints or any(options[name] is not None for name in given)):
        raise InputError("say what to remove: RUN, --older_than, --worse_than, --state, --keep, --keep_best")
    return options


def _choice(options: Namespace) -> Choice:
    return Choice(
        names=[Path(name) for name in options.names],
        older_than=options.older_than,
        worse_than=options.worse_than,
        state=options.state,
        keep=0 if options.checkpoints else options.keep or 0,
        keep_best=options.keep_best or 0,
    )


def copy(words: Sequence[str], scripts: Path) -> None:
    """Copy a checkpoint or a run, and say what tries it: a command among the `scripts`."""
    parser = _parser(
        "copy",
        "Copy a run's best checkpoint, or the checkpoint that is named, to a folder that serves anywhere: links are "
        "resolved, every file is compared with the manifest, and the folder is there whole or not at all.",
    )
    parser.add_argument("run", type=str, metavar="RUN", help="A run, a checkpoint of it, or its `best` or `last`.")
    parser.add_argument("destination", type=str, metavar="DEST", help="The folder to be made.")
    parser.add_argument("--whole", action="store_true", help="Copy the whole run, which can go on there.")
    parser.add_argument("--weights_only", action="store_true", help="Leave out what only a resume needs.")
    options = parser.parse_args(words)
    if options.whole and options.weights_only:
        raise InputError("--whole is for a run that goes on, and --weights_only for one that does not: give one")
    source, destination = Path(options.run), Path(os.path.normpath(options.destination))
    if options.whole:
        for line in copy_run(source, destination):
            print(f"left out    {line}")
    else:
        print(f"checkpoint  {copy_checkpoint(source, destination, weights_only=options.weights_only)}")
    print(f"copied to   {destination}")
    if options.whole and not CheckpointStore(destination / "checkpoints").steps():
        return  # It has not come to its first one, and there is nothing to try.
    if (note := needs(find_checkpoint(destination))) is not None:
        print(f"note        {note}")
    print(f"to try it:  {script_command(scripts / 'evaluate.py', '--checkpoint', _typed(destination))}")


def _typed(path: Path) -> str:
    """A path as it is typed, so that it is taken for no option."""
    return f"./{path}" if str(path).startswith("-") else str(path)
