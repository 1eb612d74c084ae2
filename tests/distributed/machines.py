"""Machines without a machine: network namespaces whose cable can be cut, slowed and pulled."""

import itertools
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil
from forking import python
from helpers import ROOT

_numbers = itertools.count()
PORT = "29500"
TWO_MACHINES = ROOT / "configs/accelerate/two_machines.yaml"


class NoNamespacesError(Exception):
    """The system lets this user make no network namespaces."""


class Machine(NamedTuple):
    """A network namespace with one network card.

    Attributes:
        name: Of the namespace.
        card: Its name, as `GLOO_SOCKET_IFNAME` takes it.
        address: Of the card.
    """

    name: str
    card: str
    address: str

    def run(self, *command: str) -> str:
        """Run a command of the system there, and return what it prints."""
        return system("ip", "netns", "exec", self.name, *command)

    def set_card(self, state: str) -> None:
        """Pull the cable (`down`), or put it in again (`up`)."""
        system("ip", "-n", self.name, "link", "set", self.card, state)

    def processes(self) -> list[psutil.Process]:
        """All that run there."""
        numbers = self.run("ip", "netns", "pids", self.name).split()
        return [psutil.Process(int(number)) for number in numbers if psutil.pid_exists(int(number))]

    def kill(self) -> None:
        """Kill all that runs there at once."""
        for process in self.processes():
            with suppress(psutil.Error):
                process.kill()


def system(*command: str) -> str:
    """Run a command of the system; what it prints.

    Raises:
        NoNamespacesError: It is missing, or refuses.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError as error:
        raise NoNamespacesError(f"no {command[0]} here (Debian's package iproute2 has it)") from error
    if done.returncode:
        raise NoNamespacesError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Two machines joined by a cable; whatever runs there in the end is killed.

    Raises:
        NoNamespacesError: They cannot be made here.
    """
    name, net = f"tfs{os.getpid()}-{next(_numbers)}", os.getpid() % 250
    machines = tuple(Machine(f"{name}-{n}", f"card{n}", f"10.{net}.7.{n + 1}") for n in range(2))
    with ExitStack() as stack:
        for machine in machines:
            system("ip", "netns", "add", machine.name)
            stack.callback(system, "ip", "netns", "delete", machine.name)
            stack.callback(machine.kill)
        first, second = machines
        peer = ("peer", "name", second.card, "netns", second.name)
        system("ip", "link", "add", first.card, "netns", first.name, "type", "veth", *peer)
        for machine in machines:
            system("ip", "-n", machine.name, "address", "add", f"{machine.address}/24", "dev", machine.card)
            for card in (machine.card, "lo"):
                system("ip", "-n", machine.name, "link", "set", card, "up")
        yield first, second


def environment(machine: Machine, scratch: Path) -> dict[str, str]:
    """What a launcher is told: to compute on the CPU, over this card, with forks for Python."""
    shim = scratch / "python"
    if not shim.exists():
        words = " ".join(f"'{word}'" for word in python())
        shim.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        shim.chmod(0o755)
    own = {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": machine.card, "PYTHON_EXEC": str(shim)}
    threads = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return os.environ | {"PYTHONPATH": str(ROOT)} | threads | own


def start(machine: Machine, command: Sequence[str | Path], folder: Path, log: Path) -> "subprocess.Popen[str]":
    """Start Python with arguments on a machine, from a folder; what it prints goes to a file."""
    folder.mkdir(parents=True, exist_ok=True)
    with log.open("a") as stream:
        return subprocess.Popen(
            ["ip", "netns", "exec", machine.name, *python(), *map(str, command)],
            cwd=folder,
            env=environment(machine, folder),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            text=True,
        )


def accelerate_launch(rank: int, main: Machine, *options: str) -> list[str | Path]:
    """The command of docs/scaling.md for one of the machines, up to its script."""
    launch = ["-m", "accelerate.commands.launch", "--config_file", TWO_MACHINES, "--machine_rank", str(rank)]
    return [*launch, "--main_process_ip", main.address, "--main_process_port", PORT, *options]
