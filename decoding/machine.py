"""What every benchmark needs: weights to compute with, and what its figures depend on."""

import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.seeds import generator


@torch.no_grad()
def fill_zero_weights(model: nn.Module) -> None:
    """Draw what a fresh model leaves at zero, so that it computes and chooses as a trained one does."""
    for name, parameter in model.named_parameters():
        if not parameter.any():
            parameter.normal_(0.0, 0.02, generator=generator(0, name))


def cpu_name() -> str:
    """The processor's own name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What computes, and with what."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}: {cpu_name()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def describe_model(model: nn.Module, source: str) -> dict[str, Any]:
    """A model's shape, its size, and where it comes from."""
    return {
        "source": source,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocab_size": model.vocab_size,
    } | asdict(model.config)  # type: ignore[call-overload]
