"""How long a run takes to end after SIGTERM, wherever it is."""

import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from reliability.killing import CONFIG, Aim, Launch, Place, write_inputs

from training.storage.checkpoint import Checkpoint

PLACES: tuple[Place, ...] = ("step", "evaluation", "save")


def stop_once(folder: Path, processes: int, place: Place, *, background: bool) -> tuple[float, int, int]:
    """Send SIGTERM to a run, or its launcher, in a place after step 6.

    Returns:
        Seconds until all processes had ended, steps done since, and the exit code.
    """
    endless = replace(CONFIG.training, max_steps=100_000, background_saves=background)
    write_inputs(folder, replace(CONFIG, training=endless))
    with Launch(folder, processes) as launch:
        if not launch.reaches(Aim(place=place, step=6, share=0.0, one_rank=False)):
            raise RuntimeError(f"the run ended by itself: {launch.errors()[-2000:]}")
        launch.terminate()
        begin, step = time.perf_counter(), launch.position.step
        code = launch.ends()
    seconds = time.perf_counter() - begin
    return seconds, Checkpoint(folder / "run/checkpoints/last").state["step"] - step, code


def measure_stops(folder: Path, processes: int, repeats: int, *, background: bool) -> list[dict[str, Any]]:
    """Stop runs in each place; a row for each, with the seconds of all."""
    rows = []
    for place in PLACES:
        name = f"{processes}-{'background' if background else 'plain'}-{place}"
        stops = [
            stop_once(folder / f"{name}-{number}", processes, place, background=background) for number in range(repeats)
        ]
        seconds = [each[0] for each in stops]
        rows.append(
            {
                "processes": processes,
                "background": background,
                "place": place,
                "stops": repeats,
                "median_seconds": statistics.median(seconds),
                "max_seconds": max(seconds),
                "most_steps_after": max(each[1] for each in stops),
                "exit_codes": sorted({each[2] for each in stops}),
            }
        )
    return rows
