"""Runs that are killed with SIGKILL, again and again, and compared with one that was left alone.

A run prints where it is (`marked_training.py`). A kill waits for a place, a step, an evaluation or a save, then for a
random share of the time that such a place took in the undisturbed run, and strikes all processes at once, or one rank.
Where it struck is read from what the run had printed by then, and from what lies on the disk.
"""

import hashlib
import os
import queue
import random
import re
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import psutil
from forking import python
from helpers import ROOT, ranks, read_metrics, torchrun

from data.config import PairConfig, TextConfig
from gpt.config import GPTConfig, ModelConfig
from seq2seq.config import ModelConfig as Seq2SeqModelConfig
from seq2seq.config import Seq2SeqConfig
from training.config.command_line import config_to_yaml
from training.config.sections import OptimizerConfig, RunConfig, ScheduleConfig, TrainingConfig
from training.storage.checkpoint import CheckpointStore

Place = Literal["start", "step", "evaluation", "save"]
Precision = Literal["fp32", "bf16"]

WALL_CLOCK = {"seconds", "tokens_per_second", "mfu", "gpu_memory_gib"}
STEPS_PER_KILL = 12
ONE_RANK_EVERY = 3
PATIENCE = 120.0
"""Seconds without a word from a run after which it counts as hanging."""

# A thread each: several that wait for a busy core in turn take a hundred times as long.
ENVIRONMENT = {
    "ACCELERATE_USE_CPU": "true",
    "OMP_NUM_THREADS": "1",
    "OMP_THREAD_LIMIT": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONPATH": str(ROOT),
}
TEXT = "".join(f"{i} times {i % 7} is {i * (i % 7)}.\n" for i in range(300))
CONFIG = GPTConfig(
    name="killed",
    tracking="none",
    model=ModelConfig(num_layers=2, d_model=16, num_heads=2, d_ff=32, max_len=16, dropout=0.1),
    data=TextConfig(source="text.txt"),
    training=TrainingConfig(
        batch_size=12,
        accumulation_steps=2,
        ema_decay=0.9,
        max_steps=STEPS_PER_KILL,
        eval_interval=7,
        eval_batch_size=4,
        log_interval=1,
        checkpoint_interval=5,
    ),
    optimizer=OptimizerConfig(name="muon", learning_rate=5e-3),
    schedule=ScheduleConfig(name="linear", warmup_steps=2),
)


SEQ2SEQ_CONFIG = Seq2SeqConfig(
    name="killed",
    tracking="none",
    model=Seq2SeqModelConfig(
        num_layers=1, d_model=16, num_heads=2, d_ff=32, max_len=16, dropout=0.1, random_positions=0.5
    ),
    data=PairConfig(task="reverse", symbols="abcdefgh", max_length=6, val_samples=40),
    training=replace(CONFIG.training, label_smoothing=0.1, eval_batch_size=8),
    optimizer=CONFIG.optimizer,
    schedule=CONFIG.schedule,
)
CONFIGS: dict[str, RunConfig] = {"gpt": CONFIG, "seq2seq": SEQ2SEQ_CONFIG}


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run is: in which place, after which step."""

    place: Place = "start"
    step: int = 0

    def after(self, line: str) -> "Position":
        """Where it is once it has printed `line`; a save that goes on while steps are taken is what it is in."""
        if line.startswith("resuming "):
            return replace(self, step=int(line.split()[-1].replace(",", "")))
        if match := re.match(r"step +(\d+)/", line):
            return Position(place="save" if self.place == "save" else "step", step=int(match[1]))
        words = {"evaluating": "evaluation", "saving": "save", "saved": "step"}
        place: Any = words.get(line.partition(" ")[0].strip(), self.place)
        return replace(self, place=place)


@dataclass(frozen=True, kw_only=True)
class Aim:
    """The first such place after a step, and how far into it; `one_rank` leaves the launcher and the others alive."""

    place: Place
    step: int
    share: float
    one_rank: bool


@dataclass(frozen=True, kw_only=True)
class Kill:
    """A kill that struck.

    Attributes:
        aimed: The place it was meant for.
        place: The place where the main process was.
        step: The last step that was reported.
        rank: Which process alone was killed; None for all, and their launcher.
        after_first_checkpoint: Whether there was anything to resume from.
        unfinished_save: Whether a checkpoint was left half written.
    """

    aimed: Place
    place: Place
    step: int
    rank: int | None
    after_first_checkpoint: bool
    unfinished_save: bool


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a run that was killed many times.

    Attributes:
        model: gpt or seq2seq.
        precision: What it computed in.
        processes: How many processes it had.
        background: Whether it went on while it saved.
        kills: Those that struck.
        same_weights: Whether weights, optimizer and average of the last and best checkpoint equal the whole run's.
        same_metrics: Whether metrics.jsonl does, but for what a clock says, with each step once and in order.
        quarantined: Checkpoints that a resume found damaged.
        seconds: How long all of it took.
    """

    model: str
    precision: Precision
    processes: int
    background: bool
    kills: tuple[Kill, ...]
    same_weights: bool
    same_metrics: bool
    quarantined: int
    seconds: float

    @property
    def equal(self) -> bool:
        """Whether the run ended as if it had been left alone."""
        return self.same_weights and self.same_metrics

    def summary(self) -> dict[str, Any]:
        """The counts, and each kill, for a JSON file."""
        places = Counter(kill.place for kill in self.kills)
        return {
            "model": self.model,
            "precision": self.precision,
            "processes": self.processes,
            "background": self.background,
            "kills": len(self.kills),
            "in_steps": places["step"],
            "in_evaluations": places["evaluation"],
            "in_saves": places["save"],
            "in_starts": places["start"],
            "of_one_rank": sum(kill.rank is not None for kill in self.kills),
            "after_first_checkpoint": sum(kill.after_first_checkpoint for kill in self.kills),
            "unfinished_saves": sum(kill.unfinished_save for kill in self.kills),
            "checkpoints_found_damaged": self.quarantined,
            "same_weights": self.same_weights,
            "same_metrics": self.same_metrics,
            "equal": self.equal,
            "seconds": self.seconds,
            "each": [asdict(kill) for kill in self.kills],
        }


class Launch:
    """One start of the command in a folder with config.yaml; as a context it leaves no process behind."""

    def __init__(self, folder: Path, processes: int) -> None:
        launcher = torchrun(processes) if processes > 1 else []
        script = [str(Path(__file__).with_name("marked_training.py")), "--config", "config.yaml"]
        self._folder, self._several = folder, processes > 1
        self._errors = (folder / "errors.txt").open("a+")
        self._process = subprocess.Popen(
            [*python(), *launcher, *script, "--output_dir", "run", "--resume"],
            cwd=folder,
            env=os.environ | ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.position = Position()
        self.history: list[tuple[float, Position]] = []
        self.quarantined = 0
        self._ranks: dict[int, psutil.Process] = {}
        self._lines: queue.Queue[tuple[float, str] | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "Launch":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._find_ranks()
        self._kill_all()
        self._process.wait(PATIENCE)
        self._errors.close()

    def reaches(self, aim: Aim) -> bool:
        """Read until the run is where `aim` wants it; False if it ended before."""
        while self._follow(wait=True):
            if self.position.place == aim.place and self.position.step >= aim.step:
                return True
        return False

    def ends(self) -> int:
        """Read to the end, and return the exit code."""
        while self._follow(wait=True):
            pass
        return self._process.wait(PATIENCE)

    def terminate(self) -> None:
        """Send SIGTERM to what was started: the run, or its launcher."""
        self._process.terminate()

    def kill(self, rank: int | None) -> Position:
        """Kill all processes, or one, and wait for the end of all; return where the run was."""
        if rank is None:
            self._kill_all()
        else:
            while self._follow(wait=False):
                pass
            self._ranks[rank].kill()
        position = self.position
        self.ends()
        # What killed processes had printed, they had printed before; others speak on after the death of one.
        return self.position if rank in (None, 0) else position

    def errors(self) -> str:
        """What all launches in this folder wrote to standard error."""
        self._errors.seek(0)
        return self._errors.read()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put((time.perf_counter(), line))
        self._lines.put(None)

    def _follow(self, *, wait: bool) -> bool:
        """Take in one more line; False where there is none (yet)."""
        try:
            item = self._lines.get(block=wait, timeout=PATIENCE)
        except queue.Empty:
            if wait:
                raise TimeoutError(f"the run says nothing after {self.position}: {self.errors()[-2000:]}") from None
            return False
        if item is None:
            return False
        seconds, line = item
        self.quarantined += "it is quarantined" in line
        position = self.position.after(line)
        if position != self.position:
            if (self.position.place, position.place) != ("save", "save"):
                self.history.append((seconds, position))
            self.position = position
        if self._several and not self._ranks and position.step:
            self._find_ranks()
        return True

    def _find_ranks(self) -> None:
        """Note the processes early: looking for them takes longer than a save."""
        self._ranks = ranks(self._folder)

    def _kill_all(self) -> None:
        """The launcher first, so that it cannot end the others in its own way."""
        self._process.kill()
        for process in self._ranks.values():
            if process.is_running():
                process.kill()


def write_inputs(folder: Path, config: RunConfig) -> None:
    """Make a folder to launch in."""
    folder.mkdir(parents=True)
    (folder / "text.txt").write_text(TEXT)
    (folder / "config.yaml").write_text(config_to_yaml(config))


def run_to_the_end(folder: Path, processes: int) -> Launch:
    """Start or resume the run, and leave it alone."""
    with Launch(folder, processes) as launch:
        code = launch.ends()
        if code != 0:
            raise RuntimeError(f"the run ended with code {code}: {launch.errors()[-2000:]}")
    return launch


def place_seconds(launch: Launch) -> dict[Place, float]:
    """The median time that a run spent in one step, evaluation and save."""
    spent: dict[Place, list[float]] = {}
    for (begin, position), (end, _) in pairwise(launch.history):
        spent.setdefault(position.place, []).append(end - begin)
    return {place: statistics.median(seconds) for place, seconds in spent.items()}


def random_aims(count: int, processes: int, seed: str) -> list[Aim]:
    """Kills spread over a run: as many in steps, evaluations and saves, in random order, at random times."""
    dice = random.Random(seed)
    thirds: tuple[Place, ...] = ("step", "evaluation", "save")
    places = [thirds[number % 3] for number in range(count)]
    dice.shuffle(places)
    return [
        Aim(
            place=place,
            step=dice.randrange(number * STEPS_PER_KILL, (number + 1) * STEPS_PER_KILL),
            share=dice.random(),
            one_rank=processes > 1 and number % ONE_RANK_EVERY == 1,
        )
        for number, place in enumerate(places)
    ]


def strike(folder: Path, processes: int, aim: Aim, seconds: dict[Place, float]) -> tuple[Kill | None, int]:
    """Start or resume the run, and kill it; return the kill, and how many checkpoints were quarantined at the start."""
    with Launch(folder, processes) as launch:
        if not launch.reaches(aim):
            return None, launch.quarantined
        time.sleep(aim.share * seconds[aim.place])
        rank = int(aim.share * 1000) % processes if aim.one_rank else None
        position = launch.kill(rank)
    store = CheckpointStore(folder / "run/checkpoints")
    kill = Kill(
        aimed=aim.place,
        place=position.place,
        step=position.step,
        rank=rank,
        after_first_checkpoint=bool(store.steps()),
        unfinished_save=any(store.folder.glob(".step-*.new")),
    )
    return kill, launch.quarantined


def tensor_digests(run: Path) -> dict[str, str]:
    """SHA-256 of all weights, optimizer tensors and averages of the last and the best checkpoint."""
    files = sorted(file for name in ("last", "best") for file in (run / "checkpoints" / name).glob("*.safetensors"))
    return {f"{file.parent.name}/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def clockless_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on a clock."""
    return [{key: value for key, value in line.items() if key not in WALL_CLOCK} for line in read_metrics(run)]


@dataclass(frozen=True, kw_only=True)
class Ordeal:
    """A run to kill.

    Attributes:
        precision: What it computes in.
        processes: How many processes it has.
        kills: How often it is killed; it gets 12 steps for each, and 12 more.
        model: Which one: gpt or seq2seq.
        background: Whether it goes on while it saves.
        seed: Places and times follow from it.
        watch: Is told of each kill.
    """

    precision: Precision
    processes: int
    kills: int
    model: str = "gpt"
    background: bool = False
    seed: int = 1
    watch: Callable[[Kill], object] = field(default=lambda kill: None)

    def endure(self, folder: Path) -> Outcome:
        """Run it whole, then killed and resumed until it ends, and compare."""
        begin = time.perf_counter()
        steps = STEPS_PER_KILL * (self.kills + 1)
        config = CONFIGS[self.model]
        training = replace(config.training, precision=self.precision, max_steps=steps)
        training = replace(training, background_saves=self.background)
        for name in ("whole", "killed"):
            write_inputs(folder / name, replace(config, training=training))
        seconds = place_seconds(run_to_the_end(folder / "whole", self.processes))
        kills, quarantined = self._kill_repeatedly(folder / "killed", seconds)
        quarantined += run_to_the_end(folder / "killed", self.processes).quarantined
        whole, killed = clockless_metrics(folder / "whole/run"), clockless_metrics(folder / "killed/run")
        digests = tensor_digests(folder / "whole/run")
        assert len(digests) == 6, "model, optimizer and average, of the last and the best checkpoint"
        return Outcome(
            model=self.model,
            precision=self.precision,
            processes=self.processes,
            background=self.background,
            kills=tuple(kills),
            same_weights=digests == tensor_digests(folder / "killed/run"),
            same_metrics=whole == killed and [line["step"] for line in killed] == list(range(1, steps + 1)),
            quarantined=quarantined,
            seconds=time.perf_counter() - begin,
        )

    def _kill_repeatedly(self, folder: Path, seconds: dict[Place, float]) -> tuple[list[Kill], int]:
        kills, total = [], 0
        for aim in random_aims(self.kills, self.processes, f"{self.seed} {self.precision} {self.processes}"):
            kill, quarantined = strike(folder, self.processes, aim, seconds)
            total += quarantined
            if kill is not None:
                kills.append(kill)
                self.watch(kill)
        return kills, total
