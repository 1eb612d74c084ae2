"""What the processes of a launch do together, apart from computing."""

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, gather_object

from training.runtime.errors import CommandError, LostProcessError, refusal

T = TypeVar("T")


@contextmanager
def naming_lost_processes(accelerator: Accelerator | PartialState) -> Iterator[None]:
    """Report a connection between processes that breaks, or is silent for too long, in one line.

    That is for gloo. NCCL ends a process by itself when one of its operations takes too long, and says so.

    Raises:
        LostProcessError: It did.
    """
    try:
        yield
    except RuntimeError as error:
        reason = _lost(str(error)) if accelerator.num_processes > 1 else None
        if reason is None:
            raise
        raise LostProcessError(
            f"lost touch with another process ({reason}): the launcher's report below, or that process, says why"
        ) from error


def _lost(said: str) -> str | None:
    """Why another process is lost, by an error of gloo's, which has no class of its own; None for other errors."""
    if "Application timeout caused pair closure" in said:  # Another wait for the same process has ended before.
        return "silent for too long"
    if "gloo" not in said:  # It names a file of its sources.
        return None
    silent = re.search(r"[Tt]imed out waiting (\d+)ms", said)
    return f"silent after {int(silent[1]) // 1000} s" if silent else "its connection is closed"


def in_main_process(accelerator: Accelerator, action: Callable[[], T]) -> T | None:
    """Do something in the main process, and give its result there; its errors are raised in all processes.

    Raises:
        CommandError: As `action` does.
        InputError: The disk refused.
    """
    result, error = _attempted(action) if accelerator.is_main_process else (None, None)
    errors = [error]
    broadcast_object_list(errors)
    if errors[0] is not None:
        raise errors[0]
    return result


def from_main_process(action: Callable[[], T]) -> T:
    """Do something quick in the main process, and give its result to all; its errors are raised in all processes.

    Raises:
        CommandError: As `action` does.
        InputError: The disk refused.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return action()
    state = PartialState()
    outcomes = [_attempted(action) if state.is_main_process else (None, None)]
    with naming_lost_processes(state):
        broadcast_object_list(outcomes)
    result, error = outcomes[0]
    if error is not None:
        raise error
    return cast(T, result)


def once_per_machine(action: Callable[[], T]) -> T:
    """Do something in one process of each machine, and give its result to the others there.

    An error on one machine is raised in all processes. The others of a machine wait however long it takes, those of
    another machine that is done no longer than `training.collective_timeout`.

    Raises:
        CommandError: As `action` does.
        InputError: The disk refused.
        LostProcessError: It took another machine too long.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return action()
    state = PartialState()
    with naming_lost_processes(state):
        outcome = _attempted_by_one(state, action)
        outcomes = gather_object([outcome])
    for _, error in outcomes:
        if error is not None:
            raise error
    result: T = outcomes[state.process_index - state.local_process_index][0]
    return result


def _attempted_by_one(state: PartialState, action: Callable[[], T]) -> tuple[T | None, CommandError | None]:
    """The outcome of an action in one process of a machine, as `_attempted`; the others wait until that one is done.

    They wait for a lock, which goes with its process whatever ends that: a collective would not last so long.
    """
    import fcntl  # Windows has none.

    if state.is_local_main_process:
        with tempfile.NamedTemporaryFile() as working:
            fcntl.flock(working, fcntl.LOCK_EX)
            gather_object([working.name])
            return _attempted(action)
    name = gather_object([None])[state.process_index - state.local_process_index]
    with suppress(OSError), open(name) as working:  # Where it has gone, or has no locks, the collective waits.
        fcntl.flock(working, fcntl.LOCK_SH)
    return None, None


def _attempted(action: Callable[[], T]) -> tuple[T | None, CommandError | None]:
    """The result of an action, or the error to report of it."""
    try:
        return action(), None
    except CommandError as error:
        return None, error
    except OSError as error:
        return None, refusal(error)
