"""What a run computes on, and in which numbers."""

import os
from collections.abc import Mapping
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedDataParallelKwargs, parse_flag_from_env

from training.errors import InputError

Precision = Literal["bf16", "fp16", "fp32", "fp64"]
AsWritten = Literal["auto"] | Precision


def local_processes() -> int:
    """Number of processes of this launch on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def set_cpu_threads() -> int:
    """Use this machine's cores divided by the local processes, and return that number.

    Launchers set `OMP_NUM_THREADS=1` where nothing was asked, so only a higher number is taken for a wish.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "1")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = int(asked) if asked.isdecimal() and int(asked) > 1 else max(1, cores // local_processes())
    torch.set_num_threads(threads)
    return threads


def cpu_has_fast_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware: AMX, or the AVX-512 instructions for bf16."""
    # Older versions of torch do not tell.
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16"))


def choose_precision(asked: AsWritten, device: torch.device) -> tuple[Precision, str]:
    """Resolve `training.precision`.

    Returns:
        The precision, and the reason in a few words.

    Raises:
        InputError: fp16 was asked for on a device other than a GPU, or fp64 on one that lacks it.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    precision, reason = _wanted(asked, launched, device)
    if precision == "fp16" and device.type != "cuda":
        raise InputError(f"fp16 ({reason}) needs a GPU, this run is on {device.type}: use bf16 or fp32")
    if precision == "fp64" and device.type == "mps":
        raise InputError("fp64 is not available on mps: use fp32, or the CPU")
    return precision, reason


def _wanted(asked: AsWritten, launched: str, device: torch.device) -> tuple[Precision, str]:
    if asked != "auto":
        return asked, "as configured"
    if launched == "bf16":
        return "bf16", "from the launch configuration"
    if launched == "fp16":
        return "fp16", "from the launch configuration"
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and cpu_has_fast_bf16()
    return ("bf16", "this device is fast at it") if fast else ("fp32", "this device is not fast at bf16")


def make_accelerator(asked: AsWritten) -> tuple[Accelerator, Precision, str]:
    """Set up processes, device and mixed precision.

    Returns:
        The accelerator, the precision, and a line that describes all of it.

    Raises:
        InputError: The precision does not suit the device, or the processes of a launch do not find each other.
    """
    # Processes on a CPU find each other only if Accelerate is told that a CPU is meant.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    device = PartialState(cpu=cpu).device
    precision, reason = choose_precision(asked, device)
    mixed = precision if precision in ("bf16", "fp16") else "no"
    # The models' buffers are constants, the same in every process.
    constant_buffers = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = Accelerator(cpu=cpu, mixed_precision=mixed, kwargs_handlers=[constant_buffers])
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise InputError(
            f"the launcher started {launched} processes, but on {device.type} each is alone: start one, "
            f"or set ACCELERATE_USE_CPU=true"
        )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    processes, threads = accelerator.num_processes, set_cpu_threads()
    plural = "process" if processes == 1 else "processes"
    return accelerator, precision, f"{name}, {processes} {plural}, {threads} threads each, {precision} ({reason})"


def idle_gpus_warning(num_processes: int) -> str | None:
    """A line to print when this machine has GPUs that the launch does not use, or None."""
    idle = torch.cuda.device_count() - local_processes()
    if not torch.cuda.is_available() or idle <= 0 or num_processes > local_processes():
        return None
    total = torch.cuda.device_count()
    return (
        f"{idle} of {total} GPUs stand idle; to use them all: accelerate launch --multi_gpu --num_processes {total} …"
    )
