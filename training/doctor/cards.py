"""GPUs: the build of torch, the driver, precision, memory, and whether the cards are alike."""

import ctypes
from collections.abc import Iterator

import torch

from training.doctor.findings import Finding
from training.runtime.device import unequal_devices_warning
from training.runtime.gpus import install_torch, missing_code
from training.runtime.precision import choose_precision, describe_device

GIB = 2**30
MIN_FREE = 1 * GIB
"""Less free memory than this takes no training, beside what CUDA itself needs."""


def look_at_cards() -> Iterator[Finding]:
    """Findings on torch and its driver, then on each card and all of them."""
    driver, cards = driver_cuda(), torch.cuda.device_count()
    yield _torch_build(driver)
    yield _driver(driver, cards)
    if not cards:
        yield Finding("cards", "not checked", f"no NVIDIA GPU here: a run computes on {_device().type}")
    for index in range(cards):
        yield _card(index)
    if cards > 1:
        yield _alike(cards)
    yield _precision(cards)


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA that NVIDIA's driver serves; None where there is no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int(0)
    driver.cuDriverGetVersion(ctypes.byref(version))  # 12080 is 12.8; a stub without a driver leaves 0.
    return (version.value // 1000, version.value % 1000 // 10) if version.value else None


def _device() -> torch.device:
    """What a run computes on where there is no such card."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _torch_build(driver: tuple[int, int] | None) -> Finding:
    hip: str | None = torch.version.hip
    platform = f"ROCm {hip}" if hip else f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    built = f"torch {torch.__version__}, {platform}"
    if driver and not torch.version.cuda:
        build = "cu130" if driver >= (13, 0) else "cu126"
        return Finding("torch", "fault", f"{built}, and NVIDIA's driver is here", install_torch(build))
    if not torch.distributed.is_available():
        return Finding("torch", "warning", f"{built}, torch.distributed is not in it", "one process at most")
    return Finding("torch", "good", built)


def _driver(driver: tuple[int, int] | None, cards: int) -> Finding:
    """Programs built for a CUDA run on drivers of the same major version or a later one (NVIDIA, CUDA Compatibility).

    Code that is compiled on the spot (PTX, of which torch.compile makes some) wants the minor version, too.
    """
    if driver is None:
        return Finding("driver", "not checked", "no NVIDIA driver here")
    served = f"NVIDIA's, for CUDA {driver[0]}.{driver[1]}"
    built = tuple(int(part) for part in (torch.version.cuda or "0.0").split(".")[:2])
    if driver[0] < built[0]:
        todo = f"renew the driver, or take an older torch: {install_torch('cu126')}"
        return Finding("driver", "fault", f"{served}: too old for a torch of CUDA {torch.version.cuda}", todo)
    if not cards:
        todo = "does nvidia-smi see a card? CUDA_VISIBLE_DEVICES may hide it"
        return Finding("driver", "fault", f"{served}, but torch sees no card", todo)
    if driver < built:
        return Finding("driver", "warning", f"{served}, torch is for {torch.version.cuda}", "renew it to compile")
    return Finding("driver", "good", served)


def _card(index: int) -> Finding:
    """Whether torch has code for a card, and whether somebody else holds its memory."""
    if missing := missing_code(index):
        fault, _, todo = missing.partition(": ")
        return Finding(f"card {index}", "fault", fault, todo)
    free, total = torch.cuda.mem_get_info(index)
    major, minor = torch.cuda.get_device_capability(index)
    memory = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    shown = f"{torch.cuda.get_device_name(index)}, sm_{major}{minor}, {memory}"
    if free < MIN_FREE:
        return Finding(f"card {index}", "fault", shown, "end what holds the rest, which nvidia-smi shows")
    if free < 0.85 * total:
        return Finding(f"card {index}", "warning", shown, "nvidia-smi shows what holds the rest: less will fit")
    return Finding(f"card {index}", "good", shown)


def _alike(cards: int) -> Finding:
    warning = unequal_devices_warning([describe_device(torch.device("cuda", index)) for index in range(cards)])
    if warning:
        return Finding("cards", "warning", *warning.split(": ", 1))
    return Finding("cards", "good", f"{cards} of one kind")


def _precision(cards: int) -> Finding:
    """What `training.precision: auto` takes here."""
    devices = [torch.device("cuda", index) for index in range(cards)] or [_device()]
    described = [describe_device(device) for device in devices]
    precision, reason = choose_precision("auto", devices[0], described)
    slow = cards and not all(device.fast_bf16 for device in described)
    measured = f"training.precision auto is {precision} here ({reason})"
    if slow and any(device.fast_bf16 for device in described):
        return Finding("bf16", "warning", measured, "leave the older cards out, as above, to train in bf16")
    return Finding("bf16", "warning" if slow else "good", measured)
