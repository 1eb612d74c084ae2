"""The checks of a machine, in the order in which they are run, and a report of them."""

import os
import platform
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import check_cuda_p2p_ib_support

from training.doctor.all_reduce import look_at_all_reduce
from training.doctor.cards import driver_cuda, look_at_cards
from training.doctor.disk import look_at_clock, look_at_file_system, look_at_space
from training.doctor.environment import telling_variables
from training.doctor.findings import Check, Finding
from training.doctor.launching import default_file, look_at_environment, look_at_launch_file
from training.doctor.limits import look_at_memory, look_at_shared_memory, look_at_threads
from training.runtime.machine import describe_machine


def checks(
    output_dir: Path, launch_files: dict[str, Path], num_processes: int | None, all_reduce_seconds: float
) -> list[Check]:
    """All there is to look at.

    Args:
        output_dir: Where runs and their checkpoints are to go.
        launch_files: Those of Accelerate to try, by what their findings are called.
        num_processes: How many are to run here; None for one on each card.
        all_reduce_seconds: How long one way to add up may take.
    """
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1")
    cards = 0 if on_cpu else torch.cuda.device_count()
    processes = min(num_processes or cards, cards) if cards else num_processes or 1
    p2p_taken = os.environ.get("NCCL_P2P_DISABLE") != "1" and (cards < 2 or check_cuda_p2p_ib_support())
    return [
        Check("cards", look_at_cards),
        Check("threads", partial(look_at_threads, num_processes or max(cards, 1))),
        Check("memory", look_at_memory),
        Check("/dev/shm", partial(look_at_shared_memory, cards)),
        Check("disk", partial(look_at_space, output_dir)),
        Check("file system", partial(look_at_file_system, output_dir)),
        Check("clock", partial(look_at_clock, output_dir)),
        Check("environment", look_at_environment),
        *(
            Check(name, partial(look_at_launch_file, name, file, num_processes), has_deadline=True)
            for name, file in launch_files.items()
        ),
        Check(
            "all-reduce",
            partial(look_at_all_reduce, processes, "nccl" if cards else "gloo", all_reduce_seconds, p2p_taken),
            has_deadline=True,
        ),
    ]


def user_launch_file() -> dict[str, Path]:
    """The user's own Accelerate configuration, where there is one, by what its findings are called."""
    file = default_file()
    return {"bare launch": file} if file else {}


def report(findings: Iterable[Finding]) -> dict[str, Any]:
    """What to send with a bug report: the machine, variables that matter, and what was found."""
    driver, nccl = driver_cuda(), cast("Any", torch.cuda.nccl)
    return {
        "machine": {
            **describe_machine(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
            "system": platform.platform(),
            "cuda": torch.version.cuda,
            "driver_cuda": ".".join(map(str, driver)) if driver else None,
            "nccl": ".".join(map(str, nccl.version())) if torch.cuda.is_available() else None,
        },
        "environment": telling_variables(),
        "findings": [finding._asdict() for finding in findings],
    }
