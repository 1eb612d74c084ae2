"""What `launch/sweep.py` does with its options: the runs that are to be, their commands, and all of them in turn."""

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from training.config.command_line import Namespace, config_to_yaml, parse_config_text
from training.config.sections import RunConfig
from training.runtime.errors import CommandError, InputError, StoppedBySignal
from training.runtime.packages import needed_package
from training.storage.files import replace_text
from training.storage.reading import read_text
from training.storage.run_folder import RUNS, RunFolder
from training.sweep.early_stop import check_comparable
from training.sweep.grid import Setting, run_name, words_of
from training.sweep.record import BASE, FILE, FINISHED, Sweep, SweepRun, read_sweep
from training.train_command import script_command

PLOT = "sweep.png"


def free_folder(name: str) -> Path:
    """The next free runs/sweeps/NAME-N."""
    number = 1
    while os.path.lexists(folder := RUNS / "sweeps" / f"{name}-{number}"):
        number += 1
    return folder


def check_distinct(
    build: Callable[[Setting, int], RunConfig],
    known: Sequence[tuple[Setting, int]],
    chosen: Sequence[tuple[Setting, int]],
) -> None:
    """Raise an `InputError` where two settings make the same run.

    Args:
        build: The configuration of a setting and a seed.
        known: Settings and seeds of the runs that are there.
        chosen: Those that are to be; one that is there may come again.
    """
    seen = {build(setting, seed): setting for setting, seed in known}
    for setting, seed in chosen:
        other = seen.setdefault(build(setting, seed), setting)
        if other != setting:
            texts = (", ".join(f"{name}={value}" for name, value in each.items()) for each in (other, setting))
            raise InputError(f"grid: {' and '.join(texts)} are the same run")


def prepare(
    folder: Path,
    model: Literal["gpt", "seq2seq"],
    options: Namespace,
    config: RunConfig,
    chosen: Sequence[tuple[Setting, int]],
) -> Sweep:
    """The sweep of a folder with its runs, or a new one.

    Raises:
        InputError: The folder is in use, or its sweep has another configuration.
    """
    if options.resume:
        sweep = read_sweep(folder)
        if config != parse_config_text(type(config), read_text(folder / BASE)):
            raise InputError(f"{folder} is a sweep of another configuration: leave --config and its options out")
        if options.metric not in (None, sweep.metric):
            raise InputError(f"{folder} is a sweep by {sweep.metric}: leave --metric out")
        sweep.early_stop = sweep.early_stop or options.early_stop
    elif os.path.lexists(folder / FILE) or RunFolder(folder).in_use:
        raise InputError(f"{folder} is in use: go on with its sweep by --resume, or choose another --output_dir")
    else:
        sweep = Sweep(model, options.metric or "val_loss", options.early_stop)
    for setting, seed in _added(sweep, options, chosen) if options.resume else chosen:
        sweep.add(SweepRun(run_name(setting, seed), setting, seed))
    if sweep.early_stop:
        check_comparable(name for run in sweep.runs for name in run.setting)
        if sweep.metric == "bits_per_byte" and config.training.eval_tokens:
            raise InputError(
                "early_stop: over a part of the validation split (training.eval_tokens) there are no bits per byte; "
                "compare by val_loss, or evaluate all of it"
            )
    return sweep


def _added(sweep: Sweep, options: Namespace, chosen: Sequence[tuple[Setting, int]]) -> Sequence[tuple[Setting, int]]:
    """The settings and seeds that a sweep that goes on may lack: those of the grid, else its own with more seeds."""
    if options.grid:
        return chosen
    own = [summary.setting for summary in sweep.summaries()]
    return [(setting, seed) for setting in own for _, seed in chosen] if options.seeds else []


def command_of(script: Path, base: Path, run: SweepRun, folder: Path) -> list[str]:
    """Python's arguments for a run: it goes on where it was."""
    setting = words_of(run.setting, run.seed)
    return [str(script), "--config", str(base), *setting, "--output_dir", str(folder), "--resume"]


def show_plan(sweep: Sweep, folder: Path, command: Callable[[SweepRun, Path], list[str]]) -> None:
    """Print the runs with their commands."""
    for run in sweep.runs:
        done = f"{run.state:<11} " if run.state in FINISHED else "to run      "
        script, *words = command(run, folder / run.name)
        print(f"{done} {script_command(Path(script), *words)}")
    print(f"{len(sweep.runs)} runs in {folder}, none started (--dry_run)")


def carry_out(
    sweep: Sweep,
    folder: Path,
    command: Callable[[SweepRun, Path], list[str]],
    options: Namespace,
    config: RunConfig,
) -> None:
    """Run what is left, and show and draw all, while no other process does.

    Raises:
        CommandError: A run did not come to its end.
        StoppedBySignal: A signal stopped the sweep.
    """
    needed_package("matplotlib", f"drawing {PLOT}")
    claim = RunFolder(folder)
    claim.claim()
    try:
        if not options.resume:
            replace_text(folder / BASE, config_to_yaml(config))
        sweep.write(folder)
        _run(sweep, folder, command, options, config)
    finally:
        claim.release()


def _run(
    sweep: Sweep,
    folder: Path,
    command: Callable[[SweepRun, Path], list[str]],
    options: Namespace,
    config: RunConfig,
) -> None:
    from training.sweep.report import plot, show
    from training.sweep.running import Runner, make_slots

    slots = make_slots(options.jobs)
    left = sum(run.state not in FINISHED for run in sweep.runs)
    print(f"sweep       {folder}, {left} of {len(sweep.runs)} runs to do, {len(slots)} at once", flush=True)
    runner = Runner(sweep, folder, command, slots, steps=config.training.max_steps, say=partial(print, flush=True))
    jobs = ["--jobs", options.jobs] if options.jobs else []
    resume = script_command(Path(sys.argv[0]), "--output_dir", folder, "--resume", *jobs)
    try:
        runner.run_all()
    except StoppedBySignal as stopped:
        raise StoppedBySignal(f"{stopped}; go on with: {resume}") from stopped
    finally:
        sweep.write(folder)
    print()
    show(sweep)
    plot(sweep, folder, folder / PLOT)
    print(f"{folder / FILE}\n{folder / PLOT}")
    if lost := sum(run.state not in FINISHED for run in sweep.runs):
        raise CommandError(
            f"{lost} of {len(sweep.runs)} runs did not come to their end, {folder}/logs says why; to try these again: "
            f"{resume}"
        )
