"""What the processes of a launch do together, apart from computing."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from training.runtime.errors import CommandError, InputError, LostProcessError

T = TypeVar("T")


@contextmanager
def naming_lost_processes(accelerator: Accelerator) -> Iterator[None]:
    """Report a connection between processes that breaks, or is silent for too long, in one line.

    That is for gloo. NCCL ends a process by itself when one of its operations takes too long, and says so.

    Raises:
        LostProcessError: It did.
    """
    try:
        yield
    except RuntimeError as error:
        # gloo's errors have no class of their own; they name a file of its sources.
        if accelerator.num_processes == 1 or "gloo" not in str(error):
            raise
        silent = re.search(r"[Tt]imed out waiting (\d+)ms", str(error))
        reason = f"silent after {int(silent[1]) // 1000} s" if silent else "its connection is closed"
        raise LostProcessError(
            f"lost touch with another process ({reason}): the launcher's report below, or that process, says why"
        ) from error


def in_main_process(accelerator: Accelerator, action: Callable[[], T]) -> T | None:
    """Do something in the main process, and give its result there; its errors are raised in all processes.

    Raises:
        CommandError: As `action` does.
        InputError: The disk refused.
    """
    result = None
    errors: list[CommandError | None] = [None]
    if accelerator.is_main_process:
        try:
            result = action()
        except CommandError as error:
            errors = [error]
        except OSError as error:
            errors = [InputError(f"{error.filename}: {error.strerror}" if error.filename else str(error))]
    broadcast_object_list(errors)
    if errors[0] is not None:
        raise errors[0]
    return result
