"""Running the runs of a sweep: each a process of its own, one after the other or as many at once as there are slots."""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.runtime.errors import InputError, NonFiniteError, StoppedBySignal
from training.runtime.signals import StopSignals
from training.runtime.threads import available_cores
from training.storage.run_folder import RunFolder
from training.sweep.early_stop import Curve, is_hopeless
from training.sweep.record import FINISHED, Sweep, SweepRun

LOGS = "logs"
STOPPED_CODES = (StoppedBySignal.exit_code, -signal.SIGTERM)
"""Of a run that was stopped; the latter before its first step, or after its last."""
_POLL_SECONDS = 0.1
_LOOK_SECONDS = 2.0
"""Between two looks at the losses of the runs that are under way."""


def make_slots(jobs: int | None) -> list[dict[str, str]]:
    """For each run that may be under way at once, the variables of its environment: its card, or how many threads.

    Args:
        jobs: How many; None for one on each card of this machine that is visible, or one on a CPU.

    Raises:
        InputError: There are fewer cards.
    """
    import torch

    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1")
    count = 0 if on_cpu else torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    cards = [str(card) for card in range(count)] if visible is None else visible.split(",")[:count]
    if cards:
        if jobs is not None and jobs > len(cards):
            raise InputError(f"jobs must be at most {len(cards)}, one for each card, got {jobs}")
        return [{"CUDA_VISIBLE_DEVICES": card.strip()} for card in cards[:jobs]]
    jobs = jobs or 1
    threads = (
        {}
        if jobs == 1 or "OMP_NUM_THREADS" in os.environ
        else {"OMP_NUM_THREADS": str(max(1, available_cores() // jobs))}
    )
    return [threads] * jobs


@dataclass
class _Job:
    run: SweepRun
    process: "subprocess.Popen[bytes]"
    slot: int
    told: bool = False
    hopeless: bool = False

    def stop(self) -> None:
        """Ask it to stop with a checkpoint: once, since a second request would end it at once."""
        if not self.told:
            self.told = True
            self.process.send_signal(signal.SIGTERM)


class Runner:
    """Runs what a sweep has not finished.

    Args:
        sweep: The sweep; its runs and `sweep.json` follow what happens.
        folder: Its folder.
        command: What trains a run: Python's arguments, given its folder.
        slots: For each run that may be under way at once, the variables of its environment.
        steps: How many steps a run takes, where all take as many.
        say: Shows a line.
    """

    def __init__(
        self,
        sweep: Sweep,
        folder: Path,
        command: Callable[[SweepRun, Path], Sequence[str]],
        slots: Sequence[Mapping[str, str]],
        *,
        steps: int | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self._sweep, self._folder, self._command, self._slots = sweep, folder, command, slots
        self._steps, self._say = steps, say
        self._jobs: list[_Job] = []
        self._looked = 0.0

    def run_all(self) -> None:
        """Run them to their ends; one that fails is noted, and the others go on.

        Raises:
            InputError: A run is running already, without this sweep.
            StoppedBySignal: A stop request came: all are stopped, each with a checkpoint.
        """
        waiting = deque(run for run in self._sweep.runs if run.state not in FINISHED)
        for run in waiting:
            if RunFolder(self._folder / run.name).is_running:
                raise InputError(
                    f"{self._folder / run.name} is running without this sweep: stop it, or wait for its end"
                )
        with StopSignals() as signals:
            try:
                self._run_to_their_ends(waiting, signals)
            except BaseException:  # Nothing goes on that this sweep has started and does not see to.
                for job in self._jobs:
                    job.stop()
                for job in self._jobs:
                    job.process.wait()
                raise
        if signals.received is not None and any(run.state not in FINISHED for run in self._sweep.runs):
            done = sum(run.state in FINISHED for run in self._sweep.runs)
            raise StoppedBySignal(f"{done} of {len(self._sweep.runs)} runs are done")

    def _run_to_their_ends(self, waiting: deque[SweepRun], signals: StopSignals) -> None:
        while (waiting and signals.received is None) or self._jobs:
            free = [slot for slot in range(len(self._slots)) if slot not in {job.slot for job in self._jobs}]
            while free and waiting and signals.received is None:
                self._start(waiting.popleft(), free.pop(0))
            if signals.received is not None:
                for job in self._jobs:
                    job.stop()
            elif self._sweep.early_stop:
                self._end_hopeless()
            time.sleep(_POLL_SECONDS)
            self._collect_ended()

    def _start(self, run: SweepRun, slot: int) -> None:
        folder = self._folder / run.name
        log = self._log(run)
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as output:
            # A group of its own: Ctrl-C reaches this process alone, which then stops the runs in order.
            process = subprocess.Popen(
                [sys.executable, *self._command(run, folder)],
                env=os.environ | dict(self._slots[slot]),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._jobs.append(_Job(run, process, slot))
        self._say(f"started     {run.name}")

    def _log(self, run: SweepRun) -> Path:
        return self._folder / LOGS / f"{run.name}.txt"

    def _collect_ended(self) -> None:
        """Note how the runs ended that have."""
        for job in [job for job in self._jobs if job.process.poll() is not None]:
            self._jobs.remove(job)
            self._note_end(job.run, job.process.returncode, hopeless=job.hopeless)
            self._sweep.write(self._folder)
            done = sum(run.state in FINISHED for run in self._sweep.runs)
            self._say(f"{job.run.state:<11} {described(job.run, self._sweep.metric)}  ({done}/{len(self._sweep.runs)})")

    def _note_end(self, run: SweepRun, code: int, *, hopeless: bool) -> None:
        """Take the figures of a run that has ended; what cannot be read of it is its fault."""
        run.state, run.fault = "failed", None
        if code == 0:
            run.state = "done"
        elif code in STOPPED_CODES:
            run.state = "ended early" if hopeless else "stopped"
        elif code == NonFiniteError.exit_code:
            run.state = "diverged"
        if run.state in ("failed", "diverged"):
            run.fault = (
                last_line(self._log(run)).removeprefix("error: ")
                if code > 0
                else f"ended by {signal.Signals(-code).name}"
            )
        try:
            run.measure(self._folder / run.name, self._sweep.metric)
        except (InputError, OSError) as error:
            run.state, run.fault = "failed", str(error)

    def _end_hopeless(self) -> None:
        """Stop the runs that the rule gives up, and look again later."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        curves = {run.name: self.curve(run) for run in self._sweep.runs if (self._folder / run.name).is_dir()}
        given_up = [run.name for run in self._sweep.runs if run.state == "ended early"]
        given_up += [job.run.name for job in self._jobs if job.hopeless]
        for job in self._jobs:
            name = job.run.name
            others = [curve for other, curve in curves.items() if other != name and other not in given_up]
            ended = [curves.get(other, []) for other in given_up]
            if not job.hopeless and is_hopeless(curves.get(name, []), others, ended, self._steps):
                job.hopeless = True
                job.stop()
        self._looked = time.monotonic()

    def curve(self, run: SweepRun) -> Curve:
        """The losses of a run so far, of its evaluations; none where they cannot be read."""
        metric = self._sweep.metric
        try:
            lines = RunFolder(self._folder / run.name).read_metrics()
        except (InputError, OSError):
            return []
        # The end measures the whole split as well, which does not compare with a part of it.
        found = ((int(line["step"]), line.get(f"{metric}_subset", line.get(metric))) for line in lines)
        return [(step, loss) for step, loss in found if loss is not None]


def described(run: SweepRun, metric: str) -> str:
    """A run in a line: what it is called, and how far it came."""
    loss = "" if run.loss is None else f"  {metric} {run.loss:.4f} at step {run.loss_step:,}"
    fault = "" if run.fault is None else f"  {run.fault}"
    return f"{run.name}{loss}, {run.steps:,} steps in {run.seconds:.0f} s{fault}"


def last_line(log: Path) -> str:
    """The last words of a log, without control characters."""
    with log.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
        lines = [line for line in file.read().decode(errors="replace").replace("\r", "\n").split("\n") if line.strip()]
    return "".join(character for character in lines[-1] if character.isprintable())[:300] if lines else ""
