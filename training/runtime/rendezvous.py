"""Where the processes of a launch find each other, once more after every restart.

Launchers of torch hold one store for all of their restarts, and for all trainings of a session. What stands in it may
be of processes that are gone, whose addresses lead nowhere; and over several machines the launchers' counts of restarts
may differ. So the processes agree on a number of their own, under which they then meet:

    rank 0 opens the next rendezvous, waits until each other rank has put its name there, and reads the names out
    the others put their names to the newest one, and wait to hear them; who does not, waits for the next

A name is drawn at random by each process, so that what replaces a dead process is not taken for it.
"""

import os
import secrets
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from training.runtime.errors import InputError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

MOMENT = 0.5
"""Seconds after which a process looks again."""


def rendezvous_store(timeout: float) -> dict[str, Any]:
    """The store of a launch, as `init_process_group` takes it; nothing where no launcher of torch's started this.

    Args:
        timeout: Seconds that the processes wait for each other.

    Raises:
        InputError: Some did not come.
    """
    if "LOCAL_RANK" not in os.environ:
        return {}
    # Not every build of torch has these.
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, world_size = next(rendezvous("env://", timeout=timedelta(seconds=timeout)))
    number = _open(store, world_size, timeout) if rank == 0 else _join(store, rank, timeout)
    return {"store": PrefixStore(f"rendezvous-{number}", store), "rank": rank, "world_size": world_size}


def _open(store: "Store", world_size: int, timeout: float) -> int:
    """Open a rendezvous as its main process, and wait for the others; its number."""
    number, deadline = store.add("rendezvous count", 1), time.monotonic() + timeout
    store.set("rendezvous", str(number))
    keys = [f"{number}/{rank}" for rank in range(1, world_size)]
    while keys and not _stands(store, keys):
        if time.monotonic() > deadline:
            missing = ", ".join(key.partition("/")[2] for key in keys if not store.check([key]))
            raise _missing(f"rank {missing} of {world_size}", timeout)
    store.set(f"{number}/names", " ".join(store.get(key).decode() for key in keys))
    return number


def _join(store: "Store", rank: int, timeout: float) -> int:
    """Join the newest rendezvous, or the next where that was held without this process; its number."""
    name, deadline = secrets.token_hex(8), time.monotonic() + timeout
    while time.monotonic() < deadline:
        if not _stands(store, ["rendezvous"]):
            continue
        number = int(store.get("rendezvous"))
        store.set(f"{number}/{rank}", name)
        if _stands(store, [f"{number}/names"]):
            if name in store.get(f"{number}/names").decode().split():
                return number
            time.sleep(MOMENT)
    raise _missing("rank 0", timeout)


def _missing(who: str, timeout: float) -> InputError:
    return InputError(
        f"{who} did not come within {timeout:g} s: start the same command on every machine, each with its own rank "
        f"(docs/scaling.md)"
    )


def _stands(store: "Store", keys: list[str]) -> bool:
    """Whether all keys have come to stand in a store within a moment, so that a signal is heard in between."""
    import torch

    try:
        store.wait(keys, timedelta(seconds=MOMENT))
    except torch.distributed.DistStoreError:
        return False
    return True
