"""What a run computes on: processes, devices, and what is set for all of them."""

import importlib
import os
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, NamedTuple
from warnings import filterwarnings

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import (
    DDPCommunicationHookType,
    DistributedDataParallelKwargs,
    gather_object,
    parse_flag_from_env,
)

from training.runtime.errors import InputError
from training.runtime.gpus import check_gpus, idle_gpus_warning
from training.runtime.hardware import peak_flops
from training.runtime.launch_settings import (
    Sharding,
    asked_sharding,
    check_launch,
    ignored_settings,
    naming_refusals,
    own_plugins,
    without_fsdp,
)
from training.runtime.precision import AsWritten, Precision, ProcessDevice, choose_precision, describe_device, set_tf32
from training.runtime.rendezvous import rendezvous_store
from training.runtime.threads import local_processes, set_cpu_threads

if TYPE_CHECKING:
    from training.config.sections import TrainingConfig

Compression = Literal["none", "bf16", "fp16"]


def _gather_devices(device: torch.device) -> list[ProcessDevice]:
    """The devices of all processes, in the order of their ranks."""
    devices: list[ProcessDevice] = gather_object([describe_device(device)])
    return devices


class Runtime(NamedTuple):
    """What a run computes on.

    Attributes:
        accelerator: Processes, device and mixed precision.
        precision: The dtype of its matrix products.
        description: A line that tells all of it.
        warnings: Lines to warn with.
        peak_flops: FLOP/s that all devices do together at most; None where one of them is not known.
        sharding: How the weights of a training are in shards; None for whole ones on each rank.
    """

    accelerator: Accelerator
    precision: Precision
    description: str
    warnings: list[str]
    peak_flops: float | None
    sharding: Sharding | None = None


def make_runtime(training: "TrainingConfig") -> Runtime:
    """`make_accelerator` as a training is configured."""
    return make_accelerator(
        training.precision,
        tf32=training.tf32,
        compression=training.gradient_compression,
        deterministic=training.deterministic,
        timeout=training.collective_timeout,
    )


def make_accelerator(
    asked: AsWritten,
    *,
    tf32: bool = False,
    compression: Compression = "none",
    deterministic: bool = False,
    timeout: float = 600.0,
) -> Runtime:
    """Set up processes, device and mixed precision.

    Args:
        asked: The precision, as configured.
        tf32: Whether fp32 products run in TF32.
        compression: The dtype in which processes send each other gradients, or none for their own.
        deterministic: Whether a GPU may only use operations that give the same bits in every run.
        timeout: Seconds after which a process gives up to wait for the others.

    Raises:
        InputError: The platform, a GPU or the precision does not serve, or the processes of a launch do not find each
            other.
    """
    cpu, device = _meet(timeout)
    if deterministic != torch.are_deterministic_algorithms_enabled():
        use_deterministic_operations(deterministic)
    devices = _gather_devices(device)
    precision, reason = choose_precision(asked, device, devices)
    mixed = precision if precision in ("bf16", "fp16") else "no"
    warning = set_tf32(tf32, precision, devices)
    # torch 2.13 wants another name for it, which Accelerate does not know yet.
    filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    ddp = _ddp_settings(compression, device)
    with naming_refusals(), without_fsdp():
        accelerator = Accelerator(cpu=cpu, mixed_precision=mixed, kwargs_handlers=[ddp], **own_plugins())
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise InputError(
            f"the launcher started {launched} processes, but on {device.type} each is alone: start one, "
            f"or set ACCELERATE_USE_CPU=true"
        )
    runtime = _described(accelerator, precision, reason, devices, tf32=tf32 and precision == "fp32")
    return runtime._replace(
        warnings=[*runtime.warnings, *([warning] if warning else [])], sharding=_sharding(compression)
    )


def _meet(timeout: float) -> tuple[bool, torch.device]:
    """Check platform, launch and GPUs, and let the processes find each other.

    Returns:
        Whether all is on the CPU, and this process's device.
    """
    if sys.platform == "win32":
        raise InputError("Windows itself is not supported: run this inside WSL2 (docs/platforms.md)")
    check_launch()
    # Processes on a CPU find each other only if Accelerate is told that a CPU is meant.
    with naming_refusals():
        cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    if not cpu:
        check_gpus(local_processes())
    _import_before_processes_meet()
    # What Accelerate keeps for a whole process: an earlier training here may have had another precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    with naming_refusals(), without_fsdp():
        return cpu, PartialState(cpu=cpu, timeout=timedelta(seconds=timeout), **rendezvous_store(timeout)).device


def _sharding(compression: Compression) -> Sharding | None:
    """How weights are in shards; there are none where a process is alone and has no group."""
    sharding = asked_sharding()
    if sharding is None or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    if compression != "none":
        raise InputError(
            f"training.gradient_compression {compression} is for DDP: with FSDP2 the launch asks for shards, whose "
            f"gradients are added up in fp32: use none"
        )
    return sharding


def _ddp_settings(compression: Compression, device: torch.device) -> DistributedDataParallelKwargs:
    """How DDP adds gradients up; an `InputError` where it cannot be in bf16.

    Not with its static graph: under `no_sync`, with which gradients are accumulated, that fails in the first backward
    pass, and where it does not it stops adding gradients up (github.com/pytorch/pytorch/issues/143580 and pull/187732).
    """
    if compression == "bf16" and device.type != "cuda" and PartialState().num_processes > 1:
        raise InputError(
            f"training.gradient_compression bf16 needs GPUs, this run is on {device.type}: use fp16 or none"
        )
    return DistributedDataParallelKwargs(
        broadcast_buffers=False,  # The models' buffers are constants, the same in every process.
        gradient_as_bucket_view=True,  # No second copy of all gradients.
        comm_hook=DDPCommunicationHookType("no" if compression == "none" else compression),
    )


def _described(
    accelerator: Accelerator, precision: Precision, reason: str, devices: Sequence[ProcessDevice], *, tf32: bool
) -> Runtime:
    """What was chosen, with what there is to say of it; sets the number of threads."""
    processes, threads = accelerator.num_processes, set_cpu_threads()
    plural = "process" if processes == 1 else "processes"
    names = "cpu" if accelerator.device.type == "cpu" else _join_names(devices)
    description = f"{names}, {processes} {plural}, {threads} threads each, {precision} ({reason})"
    description += ", products in TF32" if tf32 else ""
    warnings = (idle_gpus_warning(processes), unequal_devices_warning(devices), *ignored_settings())
    peaks = [peak_flops(each.name, "tf32" if tf32 else precision) for each in devices]
    known = [peak for peak in peaks if peak is not None]
    return Runtime(
        accelerator=accelerator,
        precision=precision,
        description=description,
        warnings=[warning for warning in warnings if warning],
        peak_flops=sum(known) if len(known) == len(peaks) else None,
    )


def use_deterministic_operations(only: bool) -> None:
    """Keep a GPU from operations whose result depends on the order in which its threads come, or no longer.

    On a CPU no result depends on that. Under this setting torch raises an error for an operation that has no other way.
    Of the attentions, the memory-efficient one and cuDNN's have none backwards, so that they are turned off
    (docs.pytorch.org/docs/stable/notes/randomness.html).
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(only)
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.enable_mem_efficient_sdp(not only)
    torch.backends.cuda.enable_cudnn_sdp(not only)


def _import_before_processes_meet() -> None:
    """Import what would otherwise hold the process group for ever.

    `torch.distributed.nn` takes the group that it finds when it is imported (DDP does that) as a default argument.
    gloo's threads then outlive `destroy_process_group`, and one that wants Python while the interpreter ends aborts
    the process.
    """
    if torch.distributed.is_available():
        importlib.import_module("torch.distributed.nn")
        if asked_sharding() is not None:
            importlib.import_module("torch.distributed.fsdp")


def inference_device() -> torch.device:
    """Where one process runs a model: cuda, mps or whatever accelerator torch finds, else the CPU.

    Raises:
        InputError: This build of torch has no code for the GPU, or a launcher started several processes.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError("this command runs in one process: start it with python, not with a launcher of several")
    check_gpus(1)
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def unequal_devices_warning(devices: Sequence[ProcessDevice]) -> str | None:
    """A line to print when the processes' GPUs differ, or None."""
    if len({device.name for device in devices}) == 1:
        return None
    return (
        f"{_join_names(devices)}: each step waits for the slowest; to leave one out, "
        f"name the others before the command: CUDA_VISIBLE_DEVICES=0,1 …"
    )


def _join_names(devices: Sequence[ProcessDevice]) -> str:
    """`RTX 4090`, `4 x RTX 4090`, or `RTX 4090 + RTX 3060`."""
    counts = Counter(device.short_name for device in devices)
    return " + ".join(name if count == 1 else f"{count} x {name}" for name, count in counts.items())
