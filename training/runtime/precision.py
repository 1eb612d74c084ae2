"""In which dtype a run computes: what each device is fast in, and what serves all of them."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch

from training.runtime.errors import InputError

Precision = Literal["bf16", "fp16", "fp32", "fp64"]
AsWritten = Literal["auto"] | Precision


class ProcessDevice(NamedTuple):
    """What one process computes on, and what its matrix products are fast in."""

    name: str
    fast_bf16: bool
    fast_fp16: bool = False
    tf32: bool = False

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


def describe_device(device: torch.device) -> ProcessDevice:
    """What this process computes on.

    NVIDIA's tensor cores multiply fp16 from Volta (sm_70) on, bf16 and TF32 from Ampere (sm_80) on.
    """
    if device.type != "cuda":
        return ProcessDevice(device.type, has_fast_bf16(device))
    nvidia, capability = torch.version.hip is None, torch.cuda.get_device_capability(device)
    return ProcessDevice(
        torch.cuda.get_device_name(device),
        fast_bf16=has_fast_bf16(device),
        fast_fp16=nvidia and capability >= (7, 0),
        tf32=nvidia and capability >= (8, 0),
    )


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
    elif slow and all(device.fast_fp16 for device in devices):
        precision, reason = "fp16", f"the tensor cores of {slow[0]} know no bf16"
    else:
        precision, reason = ("fp32", f"{slow[0]} is not fast at bf16") if slow else ("bf16", "fast here")
    if precision == "fp16" and device.type != "cuda":
        raise InputError(f"fp16 ({reason}) needs a GPU, this run is on {device.type}: use bf16 or fp32")
    if precision == "fp64" and device.type == "mps":
        raise InputError("fp64 is not available on mps: use fp32, or the CPU")
    return precision, reason


def set_tf32(asked: bool, precision: Precision, devices: Sequence[ProcessDevice]) -> str | None:
    """Let fp32 products run on tensor cores, in TF32, or no longer; what an earlier training set is undone.

    By the setting that torch.compile's lowering asks as well: in torch 2.10 it fails after the newer one,
    `torch.backends.cuda.matmul.fp32_precision` (github.com/pytorch/pytorch/issues/166387).

    Returns:
        A line to warn with where TF32 changes nothing, or None.

    Raises:
        InputError: A device has no TF32.
    """
    without = [device.short_name for device in devices if not device.tf32]
    if asked and without:
        raise InputError(
            f"training.tf32 needs an NVIDIA GPU of the Ampere generation or later in every process, {without[0]} is "
            f"none: leave it out (--training.tf32 false)"
        )
    torch.set_float32_matmul_precision("high" if asked else "highest")
    if asked and precision != "fp32":
        return f"training.tf32 is for fp32 products, of which a run in {precision} has few: it changes little"
    return None
