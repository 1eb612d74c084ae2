"""The ways a command can end other than well, each with its exit code."""

import copyreg
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from training.runtime.surroundings import flush_or_drop, mend_home, mend_streams

LAST_WORDS_SECONDS = 10.0
"""How long another process waits with an error of its own: a launcher ends all processes when one ends."""


class CommandError(Exception):
    """An end that is reported in one line and by an exit code, without a traceback.

    It can be sent to other processes, whatever the constructor of its class takes.
    """

    exit_code = 1
    shared = False
    """Whether all processes of a launch have agreed on it, so that the main one speaks for them."""

    def __reduce__(self) -> tuple[Any, ...]:
        return copyreg.__newobj__, (type(self), *self.args), vars(self)  # type: ignore[attr-defined]


class InputError(CommandError, ValueError):
    """Something the user gave is missing, malformed or out of range."""

    exit_code = 2


class StoppedBySignal(CommandError):
    """A signal asked the run to stop, and its state is saved."""

    exit_code = 3
    shared = True


class NonFiniteError(CommandError):
    """A loss, a gradient or a prediction was infinite or not a number."""

    exit_code = 4
    shared = True


class LostProcessError(CommandError):
    """Another process of the launch has ended, or did not answer in time."""


class DivergedReplicasError(CommandError):
    """The weights are not the same on all ranks any more."""

    shared = True


class SaveError(CommandError):
    """A checkpoint could not be written."""

    exit_code = 5
    shared = True


def require_finite(numbers: Iterable[float], name: str = "what the model predicts") -> None:
    """Raise a `NonFiniteError` if one of a model's log-probabilities or losses is NaN or too large for a number."""
    if not all(number < math.inf for number in numbers):
        raise NonFiniteError(
            f"{name} is not a finite number: the training of this model diverged, or its numbers are too large for the "
            f"precision; take an earlier checkpoint, or compute in fp32"
        )


def exit_code(command: Callable[[], None]) -> int:
    """Run `command` and return its exit code; errors go to standard error, once for all processes of a launch."""
    mend_streams()
    mend_home()
    try:
        command()
        sys.stdout.flush()
    except CommandError as error:
        _report(error)
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output (`| head`) has gone: nothing is left to say.
        return 128 + signal.SIGPIPE
    except OSError as error:
        _report(refusal(error))
        return InputError.exit_code
    except Exception as error:
        if is_out_of_memory(error):
            _report(InputError(f"{memory_asked(error)}: less at once, or a smaller model, may fit"))
            return InputError.exit_code
        if not _is_main_process():
            # Most often the main process has gone, with an error of its own, and only left a broken connection here.
            time.sleep(LAST_WORDS_SECONDS)
        raise
    except KeyboardInterrupt:
        _report(CommandError("interrupted"))
        return 130
    finally:
        flush_or_drop(sys.stdout)
        flush_or_drop(sys.stderr)
    return 0


def refusal(error: OSError) -> InputError:
    """What the system refused, and where, as an error of one line."""
    return InputError(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error is Python's, torch's or a GPU library's for memory that is not there."""
    found = re.search(r"out of memory|can't allocate memory|ALLOC_FAILED", str(error))
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and found is not None)


def memory_asked(error: Exception) -> str:
    """What was asked for as memory ran out, where the error says it."""
    asked = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
    return f"out of memory at {asked[1]} more" if asked else "out of memory"


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def is_main_machine() -> bool:
    """Whether the main process of a launch is on this machine, as far as the launcher's variables tell."""
    return os.environ.get("RANK") == os.environ.get("LOCAL_RANK")


def _report(error: CommandError) -> None:
    """Let the main process speak first: where the others fail alike, their launcher ends them while they wait."""
    main_process, launched = _is_main_process(), os.environ.get("WORLD_SIZE", "1") != "1"
    if launched and (main_process or error.shared):
        # The launcher ends all processes when one ends; this one has yet to say its line, or to end by its own code.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    if not main_process:
        time.sleep(LAST_WORDS_SECONDS / 5 if error.shared else LAST_WORDS_SECONDS)
    if main_process or not error.shared:
        label = "stopped" if isinstance(error, StoppedBySignal) else "error"
        with suppress(OSError):  # The exit code tells it too.
            print(f"{label}: {error}", file=sys.stderr, flush=True)
    if launched and main_process and error.shared:
        time.sleep(LAST_WORDS_SECONDS / 10)  # The others are still on their way here, where no signal ends them.
