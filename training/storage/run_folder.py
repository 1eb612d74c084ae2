"""The folder of a run: configuration, metrics, samples, curves and checkpoints."""

import json
import math
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any, TextIO

from training.runtime.errors import InputError
from training.storage.checkpoint import checkpoint_steps
from training.storage.files import doing_without, replace_text, sync
from training.storage.manifest import MANIFEST
from training.storage.reading import (
    Count,
    FileError,
    MalformedFileError,
    MissingFileError,
    built,
    open_file,
    read_json_lines,
    read_text,
    regular,
)

RUNS = Path("runs")
OWN = {"config.yaml", "metrics.jsonl", "samples", "checkpoints", "tensorboard", "wandb", ".lock", ".DS_Store"}
"""What may lie in the folder of a run."""
_BESIDE = re.compile(r"[.].*[.]new")
LOOKS, LOOK_SECONDS = 10, 0.01
"""How often a lock is asked for, and how long after each time: who looks whether a run is running holds it shortly."""
PROGRESS = {
    *("step", "epoch", "tokens", "seconds", "learning_rate", "grad_norm", "tokens_per_second", "train_loss"),
    *("mfu", "gpu_memory_gib", "compile_seconds"),
}
"""Keys of a line of metrics that measure the training and not the model."""


class RunFolder:
    """Names inside a run, and the writing of its small files.

    Args:
        path: The folder; `create` makes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.metrics_file = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self._lock: TextIO | None = None
        self._unwritten = b""

    @property
    def in_use(self) -> bool:
        """Whether a run cannot be started here: one was, or there is a file that it would write."""
        return self.config_file.exists() or self.checkpoints.exists() or self.metrics_file.exists()

    @property
    def holds_run(self) -> bool:
        """Whether a run was started here. Others call a file `config.yaml` too, or a folder `checkpoints`."""
        with suppress(InputError, OSError):
            if any(line.startswith("training:") for line in read_text(self.config_file).splitlines()):
                return True
        with suppress(InputError, OSError):  # Its configuration may be damaged, or have been left behind.
            return bool(checkpoint_steps(self.checkpoints)) or next(self.iterate_metrics(), None) is not None
        return False

    def foreign_entries(self) -> list[str]:
        """What lies in the folder that no run writes, by name."""
        return sorted(name for name in os.listdir(self.path) if name not in OWN and not _BESIDE.fullmatch(name))

    @property
    def resume_command(self) -> str:
        """The command line that goes on with this run, on as many processes of this machine as now.

        In a notebook or at Python's prompt there is none: there it says what to call.
        """
        if sys.argv[0] in ("", "-c") or "kernel" in Path(sys.argv[0]).stem:
            return f"the same call with output_dir={str(self.path)!r} and resume=True"
        processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
        if os.environ.get("WORLD_SIZE", processes) != processes:
            return "the same command on every machine, with --resume"
        same_run = [sys.argv[0], "--output_dir", self.path, "--resume"]
        if processes == "1":
            return python_command(*same_run)
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", processes]
        return " ".join([*_launch_settings(), python_command(*launcher, *same_run)])

    def claim(self) -> None:
        """Make the folder, and keep other processes from writing to it until `release`.

        Raises:
            InputError: Another process is writing to it, or it cannot be made.
        """
        # Windows has none: imported above, it would end every command there before it could say so.
        import fcntl

        lock = self.path / ".lock"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = regular(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666), lock, "w")
            with doing_without("locks", self.path):
                for _ in range(LOOKS):
                    with suppress(BlockingIOError):
                        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    time.sleep(LOOK_SECONDS)
                else:
                    raise BlockingIOError
            if not os.path.samestat(os.fstat(self._lock.fileno()), os.stat(lock)):
                raise BlockingIOError  # The folder was removed and made again meanwhile: this is no lock of it.
        except BlockingIOError as error:
            raise InputError(f"another process is writing to {self.path}: wait for its end, or stop it") from error
        except OSError as error:
            raise InputError(f"cannot write to the run's folder {self.path}: {error.strerror}") from error

    def release(self) -> None:
        """Let other processes write to the folder."""
        if self._lock is not None:
            self._lock.close()

    @property
    def is_running(self) -> bool | None:
        """Whether a process is writing to it; None where that cannot be told, because there are no locks."""
        try:
            import fcntl

            with open_file(self.path / ".lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except MissingFileError:
            return False
        except BlockingIOError:
            return True
        except (ImportError, OSError, FileError):
            return None
        return False

    def create(self, config_yaml: str) -> None:
        """Write the resolved configuration; older content stays."""
        (self.path / "samples").mkdir(parents=True, exist_ok=True)
        replace_text(self.config_file, config_yaml)

    def forget_metrics_after(self, step: int) -> None:
        """Drop the lines of `metrics.jsonl` that a resumed run will write again, and a line that was cut short.

        Raises:
            FileError: The file cannot be read, or a line is not what it should be.
        """
        with suppress(MissingFileError):
            lines = read_json_lines(self.metrics_file, self._check_metrics)
            kept = [line for line, metrics in lines if metrics["step"] <= step]
            replace_text(self.metrics_file, "".join(f"{line.decode()}\n" for line in kept))

    def read_metrics(self) -> list[dict[str, float]]:
        """The lines of `metrics.jsonl`, without one at the end that was cut short; none where there is no such file.

        Raises:
            FileError: The file cannot be read, or a line is not what it should be.
        """
        return list(self.iterate_metrics())

    def iterate_metrics(self, *, newest_first: bool = False) -> Iterator[dict[str, float]]:
        """The same one by one; with `newest_first` no more of the file is read than is asked for."""
        with suppress(MissingFileError):
            for _, metrics in read_json_lines(self.metrics_file, self._check_metrics, newest_first=newest_first):
                yield metrics

    def _check_metrics(self, metrics: Any) -> None:
        """Raise a `MalformedFileError` unless this is a line of `metrics.jsonl`."""
        # The quick look first: a long run has hundreds of thousands of lines.
        if type(metrics) is not dict or not {int, float}.issuperset(map(type, metrics.values())):
            built(dict[str, float], metrics, self.metrics_file)
        if "step" not in metrics:
            raise MalformedFileError(self.metrics_file, "step is missing")
        built(Count, metrics["step"], self.metrics_file, "step")

    def metrics_of(self, step: int) -> dict[str, float] | None:
        """The line of `metrics.jsonl` of a step, or None."""
        lines = takewhile(lambda line: line["step"] >= step, self.iterate_metrics(newest_first=True))
        return next((line for line in lines if line["step"] == step), None)

    def append_metrics(self, metrics: Mapping[str, float]) -> None:
        """Add one line to `metrics.jsonl`, without what is not finite, for which JSON has no word.

        Raises:
            OSError: The disk refuses; the line is kept for the next call.
        """
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._unwritten += json.dumps(finite).encode() + b"\n"
        self._write_metrics()

    def sync_metrics(self) -> None:
        """Flush all lines of `metrics.jsonl` to the disk.

        Raises:
            OSError: The disk refuses.
        """
        self._write_metrics()
        sync(self.metrics_file)

    def _write_metrics(self) -> None:
        with self.metrics_file.open("ab", buffering=0) as file:
            try:
                while self._unwritten:
                    self._unwritten = self._unwritten[file.write(self._unwritten) :]
            except OSError as error:
                error.filename = str(self.metrics_file)
                raise

    def write_sample(self, step: int, text: str) -> None:
        """Keep the text that was sampled at a step."""
        self._sample_file(step).write_text(text, encoding="utf-8")

    def read_sample(self, step: int) -> str | None:
        """The text that was sampled at a step, or None."""
        with suppress(MissingFileError, MalformedFileError):  # The latter where a full disk cut it short.
            return read_text(self._sample_file(step))
        return None

    def _sample_file(self, step: int) -> Path:
        return self.path / "samples" / f"step-{step:08d}.txt"


def choose_run_folder(name: str, output_dir: Path | None, *, resume: bool) -> RunFolder:
    """The folder for a run that starts or goes on; a run is never overwritten.

    Args:
        name: Without `output_dir`: the next free runs/NAME-N, or to resume the newest one.
        output_dir: Exactly this folder.
        resume: Whether a run may be inside already.

    Raises:
        InputError: `output_dir` holds a run, and `resume` was not asked for; or it is a checkpoint.
    """
    if output_dir is None:
        return (newest_run(name) if resume else None) or RunFolder(_free_folder(name))
    run = RunFolder(output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"--output_dir {output_dir} is a file, not a folder")
    if (output_dir / MANIFEST).exists():
        raise InputError(f"--output_dir {output_dir} is a checkpoint, not a run's folder: choose another one")
    if run.in_use and not run.holds_run:
        found = next(name for name in ("config.yaml", "checkpoints", "metrics.jsonl") if (output_dir / name).exists())
        raise InputError(f"{output_dir} holds {found}, but no run: choose another --output_dir")
    if run.in_use and not resume:
        raise InputError(
            f"{output_dir} already holds a run: go on with it by adding --resume, or choose another --output_dir"
        )
    return run


def newest_run(name: str) -> RunFolder | None:
    """The newest runs/NAME-N that was started, or None."""
    started = [number for number in _numbers(name) if RunFolder(RUNS / f"{name}-{number}").in_use]
    return RunFolder(RUNS / f"{name}-{max(started)}") if started else None


def begun_run(name: str, output_dir: Path | None) -> RunFolder | None:
    """The run that a resume goes on with: the newest runs/NAME-N, or the one in `output_dir`; None where none began."""
    run = newest_run(name) if output_dir is None else RunFolder(output_dir)
    return run if run is not None and os.path.lexists(run.config_file) else None


def _numbers(name: str) -> list[int]:
    pattern = re.compile(re.escape(name) + r"-(\d+)")
    found = [pattern.fullmatch(path.name) for path in RUNS.iterdir()] if RUNS.is_dir() else []
    return [int(match[1]) for match in found if match]


def _free_folder(name: str) -> Path:
    number = max(_numbers(name), default=0) + 1
    while True:
        # Making the folder is what claims the number, against another run that starts at the same time.
        folder = RUNS / f"{name}-{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


def _launch_settings() -> list[str]:
    """What a launch configuration has said by variables, and torchrun is to be told again: the CPU, or shards."""
    on_cpu, in_shards = (
        os.environ.get(name, "").lower() in ("true", "1") for name in ("ACCELERATE_USE_CPU", "ACCELERATE_USE_FSDP")
    )
    names = ["ACCELERATE_USE_CPU"] * on_cpu
    names += ["ACCELERATE_USE_FSDP", "FSDP_VERSION", "FSDP_RESHARD_AFTER_FORWARD"] * in_shards
    return [f"{name}={shlex.quote(os.environ[name])}" for name in names if name in os.environ]


def python_command(*parts: object) -> str:
    """A command line for this Python, as short as it can be typed in this folder."""
    executable = Path(sys.executable)
    on_path = shutil.which("python")
    if executable.is_relative_to(Path.cwd()):
        python = str(executable.relative_to(Path.cwd()))
    else:
        python = "python" if on_path and Path(on_path) == executable else sys.executable
    return shlex.join([python, *map(str, parts)])
