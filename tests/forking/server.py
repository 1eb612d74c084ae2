"""Runs Python commands as forks of one process that has imported what takes long: real processes, in milliseconds.

`client.py` is what stands in the place of `python`: it hands its arguments, folder, environment and streams over.
"""

import atexit
import ctypes
import gc
import importlib
import json
import os
import resource
import runpy
import select
import shutil
import signal
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import training  # noqa: F401  Before torch: it says how OpenMP's threads wait.

PRELOADED = (
    "accelerate.tracking",
    "datasets",
    "gpt.baselines",
    "gpt.evaluate",
    "gradio",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "seq2seq.baselines",
    "seq2seq.evaluate",
    "seq2seq.length_generalisation",
    "torch._dynamo",
    "torch.distributed.run",
    "torch.utils.tensorboard",
)
"""Nothing of these reads the environment or the folder that a test chooses, or starts a thread."""
ROOM = 1 << 20
"""Bytes; arguments and environment of a command are fewer."""


def main() -> None:
    """`server.py ADDRESS PID`: listen there as long as the process PID lives."""
    address, owner = sys.argv[1], os.pidfd_open(int(sys.argv[2]))
    for name in PRELOADED:
        importlib.import_module(name)
    os.fsync = lambda _: None  # What a test writes need not outlive a power failure.
    gc.freeze()  # Forks share what is imported, and look for no garbage in it.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # The kernel reaps the watchers.
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"{address}.new")
        listener.listen(64)
        os.rename(f"{address}.new", address)
        while True:
            ready, _, _ = select.select([listener, owner], [], [])
            if owner in ready:
                shutil.rmtree(Path(address).parent, ignore_errors=True)
                return
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                try:
                    watch(connection)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
            connection.close()


def watch(connection: socket.socket) -> None:
    """Run one command in a fork of this process: pass signals on to it, end it with its client, tell how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, descriptors, _, _ = socket.recv_fds(connection, ROOM, 4)
    *streams, network = descriptors
    child = os.fork()
    if child == 0:
        connection.close()
        enter_network(network)
        run(json.loads(message), streams)
    for descriptor in descriptors:
        os.close(descriptor)
    ended = os.pidfd_open(child)
    while True:
        ready, _, _ = select.select([ended, connection], [], [])
        if ended in ready:
            _, status = os.waitpid(child, 0)
            with suppress(OSError):
                connection.send(str(os.waitstatus_to_exitcode(status)).encode())
            os._exit(0)
        number = connection.recv(16)
        os.kill(child, int(number) if number else signal.SIGKILL)


def enter_network(namespace: int) -> None:
    """Go into the network namespace of the client, unless it is this process's own."""
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    if not os.path.sameopenfile(namespace, own) and ctypes.CDLL(None, use_errno=True).setns(namespace, 0) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    os.close(own)
    os.close(namespace)


def run(command: dict[str, Any], streams: list[int]) -> None:
    """What Python does with its arguments, and at its end. Does not return."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    resource.setrlimit(resource.RLIMIT_FSIZE, command["largest_file"])
    os.chdir(command["cwd"])
    os.environ.clear()
    os.environ.update(command["environment"])
    arguments = command["arguments"]
    by_line = 1 if arguments[0] == "-u" or os.environ.get("PYTHONUNBUFFERED") else -1
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", by_line, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 1
    try:
        code = exit_status(arguments[1:] if arguments[0] == "-u" else arguments)
    finally:
        with suppress(Exception):
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def exit_status(arguments: list[str]) -> int:
    """Run `SCRIPT …`, `-m MODULE …` or `-c CODE …`; the exit code, with what Python prints about an exception."""
    kind, rest = arguments[0], arguments[1:]
    try:
        if kind == "-m":
            sys.argv = rest
            sys.modules.pop(rest[0], None)
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            sys.argv = ["-c", *rest[1:]]
            exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = arguments
            sys.path.insert(0, str(Path(kind).resolve().parent))
            runpy.run_path(kind, run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


if __name__ == "__main__":
    main()
