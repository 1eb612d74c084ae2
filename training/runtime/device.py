"""What a run computes on, and in which dtype."""

import importlib
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import count
from typing import Any, Literal, NamedTuple, cast
from warnings import filterwarnings

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, gather_object, parse_flag_from_env

from training.runtime.errors import InputError
from training.runtime.hardware import peak_flops
from training.runtime.launch_settings import check_launch, ignored_settings, naming_refusals, own_plugins
from training.runtime.threads import local_processes, set_cpu_threads

Precision = Literal["bf16", "fp16", "fp32", "fp64"]
AsWritten = Literal["auto"] | Precision
_meetings = count()
"""Numbers the times that the processes of a launch have met: once for each training of a session."""


class ProcessDevice(NamedTuple):
    """What one process computes on."""

    name: str
    fast_bf16: bool

    @property
    def short_name(self) -> str:
        """The name as people say it."""
        return self.name.removeprefix("NVIDIA ").removeprefix("GeForce ")


def cpu_has_fast_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware: AMX, or the AVX-512 instructions for bf16."""
    # Older versions of torch do not tell.
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16"))


def has_fast_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bf16 in hardware, and trains faster for it.

    Apple's mps does the first, not the second: a GPT's step took a sixth longer in bf16 than in fp32, for a quarter
    less memory (reported for an M4 Max with torch 2.9, github.com/karpathy/nanochat/issues/685). So `auto` means fp32
    there; `bf16` can be asked for.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and cpu_has_fast_bf16()


def _gather_devices(device: torch.device) -> list[ProcessDevice]:
    """The devices of all processes, in the order of their ranks."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    devices: list[ProcessDevice] = gather_object([ProcessDevice(name, has_fast_bf16(device))])
    return devices


def choose_precision(asked: AsWritten, device: torch.device, devices: Sequence[ProcessDevice]) -> tuple[Precision, str]:
    """Resolve `training.precision`, alike in all processes.

    Args:
        asked: As configured.
        device: What this process computes on; the others' are of the same type.
        devices: Those of all processes.

    Returns:
        The precision, and the reason in a few words.

    Raises:
        InputError: fp16 was asked for on a device other than a GPU, or fp64 on one that lacks it.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION")
    slow = [device.short_name for device in devices if not device.fast_bf16]
    precision: Precision
    if asked != "auto":
        precision, reason = asked, "as configured"
    elif launched in ("bf16", "fp16"):
        precision, reason = cast("Precision", launched), "from the launch configuration"
    else:
        precision, reason = ("fp32", f"{slow[0]} is not fast at bf16") if slow else ("bf16", "fast here")
    if precision == "fp16" and device.type != "cuda":
        raise InputError(f"fp16 ({reason}) needs a GPU, this run is on {device.type}: use bf16 or fp32")
    if precision == "fp64" and device.type == "mps":
        raise InputError("fp64 is not available on mps: use fp32, or the CPU")
    return precision, reason


class Runtime(NamedTuple):
    """What a run computes on.

    Attributes:
        accelerator: Processes, device and mixed precision.
        precision: The dtype of its matrix products.
        description: A line that tells all of it.
        warnings: Lines to warn with.
        peak_flops: FLOP/s that all devices do together at most; None where one of them is not known.
    """

    accelerator: Accelerator
    precision: Precision
    description: str
    warnings: list[str]
    peak_flops: float | None


def make_accelerator(asked: AsWritten, *, deterministic: bool = False, timeout: float = 600.0) -> Runtime:
    """Set up processes, device and mixed precision.

    Args:
        asked: The precision, as configured.
        deterministic: Whether a GPU may only use operations that give the same bits in every run.
        timeout: Seconds after which a process gives up to wait for the others.

    Raises:
        InputError: The platform, a GPU or the precision does not serve, or the processes of a launch do not find each
            other.
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
    GradientState._reset_state()
    with naming_refusals():
        device = PartialState(cpu=cpu, timeout=timedelta(seconds=timeout), **_meeting_place()).device
    if deterministic != torch.are_deterministic_algorithms_enabled():
        use_deterministic_operations(deterministic)
    devices = _gather_devices(device)
    precision, reason = choose_precision(asked, device, devices)
    mixed = precision if precision in ("bf16", "fp16") else "no"
    # The models' buffers are constants, the same in every process.
    constant_buffers = DistributedDataParallelKwargs(broadcast_buffers=False)
    # torch 2.13 wants another name for it, which Accelerate does not know yet.
    filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    with naming_refusals():
        accelerator = Accelerator(cpu=cpu, mixed_precision=mixed, kwargs_handlers=[constant_buffers], **own_plugins())
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise InputError(
            f"the launcher started {launched} processes, but on {device.type} each is alone: start one, "
            f"or set ACCELERATE_USE_CPU=true"
        )
    return _described(accelerator, precision, reason, devices)


def _described(
    accelerator: Accelerator, precision: Precision, reason: str, devices: Sequence[ProcessDevice]
) -> Runtime:
    """What was chosen, with what there is to say of it; sets the number of threads."""
    processes, threads = accelerator.num_processes, set_cpu_threads()
    plural = "process" if processes == 1 else "processes"
    names = "cpu" if accelerator.device.type == "cpu" else _join_names(devices)
    description = f"{names}, {processes} {plural}, {threads} threads each, {precision} ({reason})"
    warnings = (idle_gpus_warning(processes), unequal_devices_warning(devices), *ignored_settings())
    peaks = [peak_flops(each.name, precision) for each in devices]
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


def _meeting_place() -> dict[str, Any]:
    """Where the processes of a launch find each other once more, as `init_process_group` takes it.

    torchrun on one machine holds one store for all of its restarts, and for all trainings of a session. Keys in it do
    not tell them apart: a process could read the address of one that was killed, or of the training before, and fail or
    wait there. So each has a prefix of its own. Over several machines the launchers' counts of restarts may differ:
    there they have no part in it.
    """
    world_size, meeting = int(os.environ.get("WORLD_SIZE", "1")), next(_meetings)
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if world_size == local_processes() else "0"
    if "LOCAL_RANK" not in os.environ or (restart, meeting) == ("0", 0):
        return {}
    # Not every build of torch has these.
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, world_size = next(rendezvous("env://"))
    return {"store": PrefixStore(f"restart-{restart}-{meeting}", store), "rank": rank, "world_size": world_size}


def inference_device() -> torch.device:
    """Where one process runs a model: cuda, mps or whatever accelerator torch finds, else the CPU.

    Raises:
        InputError: This build of torch has no code for the GPU, or a launcher started several processes.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError("this command runs in one process: start it with python, not with a launcher of several")
    check_gpus(1)
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def check_gpus(count: int) -> None:
    """Raise an `InputError` if this build of torch has no code for one of the first `count` GPUs.

    Without this, torch warns, and the first kernel fails. The rule is NVIDIA's, and torch's own (`_check_cubins`):
    code for sm_XY runs where X is the same and Y not smaller; compute_XY is compiled anew for every later GPU.
    """
    # A build for AMD names no such architectures.
    built = torch.cuda.get_arch_list() if torch.version.cuda else []
    for index in range(min(count, torch.cuda.device_count()) if built else 0):
        capability = torch.cuda.get_device_capability(index)
        if not any(_runs_on(architecture, capability) for architecture in built):
            # CUDA 13 left out what is older than sm_75.
            build = "cu130" if capability >= (7, 5) else "cu126"
            raise InputError(
                f"{torch.cuda.get_device_name(index)} is sm_{capability[0]}{capability[1]}, and torch "
                f"{torch.__version__} is built for {' '.join(built)}: "
                f"pip install torch=={torch.__version__.partition('+')[0]}+{build} "
                f"--index-url https://download.pytorch.org/whl/{build}, or choose other GPUs by CUDA_VISIBLE_DEVICES"
            )


def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code for an architecture, as torch writes it (sm_86, sm_90a, compute_120), runs on a GPU."""
    kind, _, number = architecture.partition("_")
    major, minor = divmod(int(number.rstrip("af")), 10)
    return (major, minor) <= capability and (kind == "compute" or major == capability[0])


def idle_gpus_warning(num_processes: int) -> str | None:
    """A line to print when this machine has GPUs that the launch does not use, or None."""
    total, used = torch.cuda.device_count(), local_processes()
    if not torch.cuda.is_available() or not num_processes <= used < total:
        return None
    launch = f"accelerate launch --multi_gpu --num_processes {total} …"
    return f"{total - used} of {total} GPUs stand idle; to use them all: {launch}"


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
