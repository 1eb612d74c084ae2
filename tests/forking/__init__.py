"""`python()`: what to start in the place of `sys.executable`, so that a command is a fork of a warm process."""

import fcntl
import os
import secrets
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ADDRESS, OWNER = "FORKING_ADDRESS", "FORKING_OWNER"


def prepare() -> None:
    """Let this process and those that it starts share one server, which ends with this one."""
    if ADDRESS not in os.environ:
        os.environ[ADDRESS] = str(Path(tempfile.gettempdir(), f"fork-{secrets.token_hex(8)}", "server"))
        os.environ[OWNER] = str(os.getpid())


@cache
def python() -> tuple[str, ...]:
    """The words before `SCRIPT …`, `-m MODULE …` or `-c CODE …`.

    What a library reads when it is imported (OpenMP's variables, the hub's) is already read, and no module is new: a
    test of those starts `sys.executable`. Signals reach the command; its own children are not this process's.
    """
    prepare()
    address = Path(os.environ[ADDRESS])
    address.parent.mkdir(mode=0o700, exist_ok=True)
    with Path(f"{address}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not address.exists():
            _start(address)
    return (sys.executable, "-I", "-S", str(HERE / "client.py"), str(address))


def _start(address: Path) -> None:
    """Start the server and wait until it listens."""
    with Path(f"{address}.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, HERE / "server.py", address, os.environ[OWNER]],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    while not address.exists():
        if server.poll() is not None:
            raise RuntimeError(f"the server of forks did not start:\n{Path(f'{address}.log').read_text()}")
        time.sleep(0.01)
