"""Machines without a machine: network namespaces whose cable can be cut, slowed and pulled."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil
from forking import python
from helpers import ROOT, python_file

_numbers = itertools.count()
PORT = "29500"
PREFIX = "machine-of-"
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


class Cable(NamedTuple):
    """What joins two machines.

    Attributes:
        megabits: Per second and direction; None for as fast as it goes.
        milliseconds: On the way from one end to the other, besides.
    """

    megabits: int | None = None
    milliseconds: float = 0.0


@contextmanager
def two_machines(cable: Cable = Cable()) -> Iterator[tuple[Machine, Machine]]:  # noqa: B008
    """Two machines joined by a cable; whatever runs there in the end is killed.

    Raises:
        NoNamespacesError: They cannot be made here.
    """
    _clear_away()
    name, net = f"{PREFIX}{os.getpid()}-{next(_numbers)}", os.getpid() % 250
    first, second = (Machine(f"{name}-{n}", f"card{n}", f"10.{net}.7.{n + 1}") for n in range(2))
    with ExitStack() as stack:
        for machine in (first, second):
            system("ip", "netns", "add", machine.name)
            stack.callback(system, "ip", "netns", "delete", machine.name)
            stack.callback(machine.kill)
        if cable.milliseconds:
            stack.enter_context(_relay(first, second, cable.milliseconds))
        else:
            peer = ("peer", "name", second.card, "netns", second.name)
            system("ip", "link", "add", first.card, "netns", first.name, "type", "veth", *peer)
        for machine, other in ((first, second), (second, first)):
            own, there = machine.address, other.address
            system("ip", "-n", machine.name, "address", "add", own, "peer", there, "dev", machine.card)
            for card in (machine.card, "lo"):
                system("ip", "-n", machine.name, "link", "set", card, "up")
            if cable.megabits:
                rate = f"rate {cable.megabits}mbit burst 256kb latency 100ms"
                machine.run("tc", "qdisc", "add", "dev", machine.card, "root", "tbf", *rate.split())
        yield first, second


def _clear_away() -> None:
    """Remove what a test has left that was killed."""
    for line in system("ip", "netns", "list").splitlines():
        owner = line.split()[0].removeprefix(PREFIX).partition("-")[0]
        if line.startswith(PREFIX) and owner.isdecimal() and not psutil.pid_exists(int(owner)):
            left = Machine(line.split()[0], "", "")
            left.kill()
            system("ip", "netns", "delete", left.name)


@contextmanager
def _relay(first: Machine, second: Machine, milliseconds: float) -> Iterator[None]:
    """A cable that takes its time, by `relay.py`; its packets are large, so that there are few of them."""
    ends = (first.name, first.card, second.name, second.card)
    words = [sys.executable, "-I", str(Path(__file__).with_name("relay.py")), str(milliseconds), *ends]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as relay:
        try:
            if relay.stdout is None or relay.stdout.readline() != "ready\n":
                raise NoNamespacesError(f"no relay: {relay.communicate()[1].strip()}")
            for machine in (first, second):
                system("ip", "-n", machine.name, "link", "set", machine.card, "mtu", "65000")
            yield
        finally:
            relay.kill()


def environment(machine: Machine, scratch: Path) -> dict[str, str]:
    """What a launcher is told: to compute on the CPU, over this card, with forks for Python."""
    own = {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": machine.card, "PYTHON_EXEC": str(python_file(scratch))}
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
