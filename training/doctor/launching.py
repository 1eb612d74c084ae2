"""A launch file against this machine: `accelerate launch` is really called with it, on a script that only looks."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from training.config.plain_yaml import load_yaml
from training.doctor.environment import TELLING, environment
from training.doctor.findings import Finding
from training.runtime.errors import InputError
from training.runtime.gpus import idle_gpus_warning
from training.runtime.launch_settings import check_launch, ignored_settings
from training.storage.reading import FileError, read_text

SECONDS = 40.0
"""For a launcher and what it starts; it imports torch, which a cold disk makes slow."""
OURS = "take --config_file accelerate_config.yaml"


class Launched(NamedTuple):
    """What came of a launch.

    Attributes:
        processes: The variables of each process that was started.
        refusal: What the launcher said where it failed; empty where it did not.
    """

    processes: Sequence[Mapping[str, str]]
    refusal: str = ""


def default_file() -> Path | None:
    """The user's own Accelerate configuration, which `accelerate launch` takes where it is given no file; if any."""
    from accelerate.commands.config import default_config_file

    return Path(default_config_file) if Path(default_config_file).is_file() else None


def look_at_environment() -> Iterator[Finding]:
    """Findings on variables that another launch, or a hand, has left: all that is started here gets them."""
    check_launch()
    ignored = ignored_settings()
    yield from (Finding("environment", "warning", *line.split(": ", 1)) for line in ignored)
    if not ignored:
        yield Finding("environment", "good", "no variable of a launch changes what a run does")


def look_at_launch_file(name: str, file: Path, num_processes: int | None) -> Iterator[Finding]:
    """Findings on what a launch file starts here.

    Args:
        name: What the findings are called.
        file: Of `accelerate launch --config_file`.
        num_processes: How many are to run on this machine; None for what the file says.
    """
    try:
        settings = load_yaml(read_text(file))
        if not isinstance(settings, dict):
            raise InputError(f"{file}: it is made of lines such as num_processes: 1")
    except FileError as error:
        raise InputError(str(error)) from error
    except yaml.YAMLError as error:
        raise InputError(f"{file} is not plain YAML: {' '.join(str(error).split())}") from error
    shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
    machines, in_all = (_whole(settings.get(key)) for key in ("num_machines", "num_processes"))
    machines = machines or 1
    if not num_processes and in_all and in_all % machines:
        todo = "num_processes counts those of all machines together"
        yield Finding(name, "fault", f"{shown}: {in_all} processes do not divide by {machines} machines", todo)
        return
    # A launch over several machines would wait for the others: here it is of this one alone.
    here = num_processes or (in_all // machines if machines > 1 and in_all else None)
    yield from judge(name, shown, here or in_all, launch(file, here))
    if machines > 1:
        todo = "their ways to each other are first tried when all of them start"
        yield Finding(name, "not checked", f"{shown} is for {machines} machines, of which this is one", todo)


def _whole(value: Any) -> int | None:
    """A number of a launch file; None where it says none, as with Accelerate's own -1."""
    return value if isinstance(value, int) and value > 0 else None


def launch(file: Path, num_processes: int | None, seconds: float = SECONDS) -> Launched:
    """Call `accelerate launch` with a file on this machine alone, and end whatever has not ended in time."""
    counted = ["--num_processes", str(num_processes)] if num_processes else []
    words = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file), "--num_machines", "1"]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [*words, *counted, str(Path(__file__).with_name("launched.py")), folder, *TELLING],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            said = process.communicate(timeout=seconds)[1]
            refusal = _reason(said) if process.returncode else ""
        except subprocess.TimeoutExpired:
            refusal = f"it had not ended after {seconds:g} s"
        finally:
            _end(process)
        return Launched([json.loads(file.read_text()) for file in Path(folder).glob("*.json")], refusal)


def _end(process: "subprocess.Popen[str]") -> None:
    """End a launcher and all that it has started, which is in its session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _reason(said: str) -> str:
    """The last error that Python's traceback names, or else the last line."""
    errors = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception): .*", said, re.MULTILINE)
    return (errors or said.strip().splitlines() or ["it failed without a word"])[-1][:300]


def judge(name: str, file: Path, asked: int | None, launched: Launched) -> Iterator[Finding]:
    """Findings on what a launch has started, against what was asked for and what this machine has."""
    started = len(launched.processes)
    if launched.refusal or not started:
        reason = launched.refusal or "it starts nothing"
        yield Finding(name, "fault", f"{file}: accelerate launch fails: {reason}", OURS)
        return
    with environment({**launched.processes[0], "LOCAL_WORLD_SIZE": str(started)}):
        try:
            check_launch()
        except InputError as error:
            yield Finding(name, "fault", f"{file}: {error}")
            return
        yield _counted(name, file, asked, started)
        yield from (Finding(name, "warning", *line.split(": ", 1)) for line in ignored_settings())


def _counted(name: str, file: Path, asked: int | None, started: int) -> Finding:
    """A finding on the number of processes that a launch has started."""
    on_cpu, cards = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1"), torch.cuda.device_count()
    measured = f"{file} starts {started} {'process' if started == 1 else 'processes'}"
    if asked and asked != started:
        todo = "say distributed_type: MULTI_GPU, which means several processes of any kind (on a CPU, too)"
        return Finding(name, "fault", f"{measured}, {asked} were asked for", f"{todo}, or {OURS}")
    if cards and not on_cpu and started > cards:
        todo = f"--num_processes {cards}, or look at CUDA_VISIBLE_DEVICES and gpu_ids"
        return Finding(name, "fault", f"{measured}, and torch sees {cards} GPUs", todo)
    if cards and on_cpu:
        return Finding(name, "warning", f"{measured}, on the CPU: {cards} GPUs stand idle", "say use_cpu: false")
    if idle := idle_gpus_warning(started):
        return Finding(name, "warning", *f"{measured}, {idle}".rsplit("; ", 1))
    return Finding(name, "good", measured)
