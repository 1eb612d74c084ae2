"""The ways a command can end other than well, each with its exit code."""

import os
import sys
import time
from collections.abc import Callable

LAST_WORDS_SECONDS = 10.0
"""How long the main process has to speak before another one does: a launcher ends all when one ends."""


class CommandError(Exception):
    """An end that is reported in one line and by an exit code, without a traceback."""

    exit_code = 1


class InputError(CommandError, ValueError):
    """Something the user gave is missing, malformed or out of range."""

    exit_code = 2


class StoppedBySignal(CommandError):
    """A signal asked the run to stop, and its state is saved."""

    exit_code = 3


class NonFiniteError(CommandError):
    """A loss or gradient was infinite or not a number."""

    exit_code = 4


def exit_code(command: Callable[[], None]) -> int:
    """Run `command` and return its exit code; errors go to standard error.

    Where all processes of a launch fail alike, only the first one speaks: the others wait, and their launcher ends them
    as soon as the first one has gone.
    """
    try:
        command()
    except CommandError as error:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(LAST_WORDS_SECONDS)
        label = "stopped" if isinstance(error, StoppedBySignal) else "error"
        print(f"{label}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output (`| head`) has gone: nothing is left to say, not even by the interpreter at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0
