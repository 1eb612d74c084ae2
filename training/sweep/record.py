"""What is known of a sweep, in its `sweep.json`: whatever happens, it goes on from there."""

import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from training.runtime.errors import InputError
from training.storage.files import replace_text
from training.storage.reading import Amount, Count, built, read_json
from training.storage.run_folder import RunFolder
from training.sweep.grid import Setting, run_name

FILE, BASE = "sweep.json", "base.yaml"
Metric = Literal["val_loss", "bits_per_byte"]
RunState = Literal["waiting", "done", "ended early", "diverged", "stopped", "failed"]
FINISHED = ("done", "ended early", "diverged")
"""States of runs that are not run again."""


@dataclass
class SweepRun:
    """One run of a sweep.

    Attributes:
        name: Its folder in the sweep's.
        setting: Its options from the grid.
        seed: Its seed.
        state: How it ended: done, ended early (as hopeless), diverged (its loss was not finite), stopped (by a signal)
            or failed; or waiting.
        fault: What it said as it failed or diverged.
        loss: The lowest of the sweep's metric, and its step; None where none was measured.
        steps, seconds, tokens: How far it has come.
    """

    name: str
    setting: dict[str, str]
    seed: Count
    state: RunState = "waiting"
    fault: str | None = None
    loss: float | None = None
    loss_step: Count | None = None
    steps: Count = 0
    seconds: Amount = 0.0
    tokens: Count = 0

    def measure(self, folder: Path, metric: Metric) -> None:
        """Take the figures of its `metrics.jsonl`.

        Raises:
            FileError: The file cannot be read.
        """
        self.loss = self.loss_step = None  # Of lines that it has gone back behind.
        for line in RunFolder(folder).iterate_metrics():
            self.steps, self.seconds = int(line["step"]), line.get("seconds", self.seconds)
            self.tokens = int(line.get("tokens", self.tokens))
            loss = line.get(metric)
            if loss is not None and (self.loss is None or loss < self.loss):
                self.loss, self.loss_step = loss, int(line["step"])


@dataclass
class Summary:
    """What came out of a setting.

    Attributes:
        setting: Its options.
        runs: Those that came to their end, of how many.
        mean: Of their losses; None where there is none.
        deviation: The standard deviation over seeds (of a sample: n - 1); None of fewer than two.
        lowest: Of their losses.
        seconds: Of training, of one run on average.
    """

    setting: Setting
    done: int
    of: int
    mean: float | None
    deviation: float | None
    lowest: float | None
    seconds: float | None
    states: dict[str, int]


@dataclass
class Sweep:
    """A sweep.

    Attributes:
        model: Which model it trains: gpt or seq2seq.
        metric: What its runs are compared by; lower is better.
        early_stop: Whether hopeless runs are ended early.
        runs: All of them, in the order in which they are run.
    """

    model: Literal["gpt", "seq2seq"]
    metric: Metric
    early_stop: bool
    runs: list[SweepRun] = field(default_factory=list)

    def summaries(self) -> list[Summary]:
        """The settings, the lowest mean first."""
        found = [_summary(runs) for runs in self._by_setting()]
        return sorted(found, key=lambda each: float("inf") if each.mean is None else each.mean)

    def _by_setting(self) -> Iterator[list[SweepRun]]:
        groups: dict[tuple[tuple[str, str], ...], list[SweepRun]] = {}
        for run in self.runs:
            groups.setdefault(tuple(run.setting.items()), []).append(run)
        yield from groups.values()

    def add(self, run: SweepRun) -> None:
        """Add a run, unless there is one of its setting and seed; one whose name is taken gets a longer one."""
        alike = [known for known in self.runs if known.setting == run.setting]
        if run.seed in {known.seed for known in alike}:
            return
        if alike and list(alike[0].setting) != list(run.setting):  # The order makes no other setting.
            run.setting = alike[0].setting
            run.name = run_name(run.setting, run.seed)
        if run.name in {known.name for known in self.runs}:
            run.name = run_name(run.setting, run.seed, in_full=True)
        self.runs.append(run)

    def write(self, folder: Path) -> None:
        """Write `sweep.json` in one move."""
        values = asdict(self) | {"settings": [asdict(summary) for summary in self.summaries()]}
        replace_text(folder / FILE, json.dumps(values, indent=1) + "\n")


def read_sweep(folder: Path) -> Sweep:
    """Read `sweep.json` back.

    Raises:
        InputError: There is none, or it is not what it should be.
    """
    if not (folder / FILE).exists():
        raise InputError(f"{folder} holds no sweep: there is no {FILE} in it")
    sweep: Sweep = built(Sweep, read_json(folder / FILE), folder / FILE)
    return sweep


def _summary(runs: list[SweepRun]) -> Summary:
    done = [run for run in runs if run.state == "done"]
    losses = [run.loss for run in done if run.loss is not None]
    states: dict[Any, int] = {}
    for run in runs:
        states[run.state] = states.get(run.state, 0) + 1
    return Summary(
        setting=runs[0].setting,
        done=len(done),
        of=len(runs),
        mean=statistics.fmean(losses) if losses else None,
        deviation=statistics.stdev(losses) if len(losses) > 1 else None,
        lowest=min(losses) if losses else None,
        seconds=statistics.fmean(run.seconds for run in done) if done else None,
        states=states,
    )
