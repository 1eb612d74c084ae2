"""What a launcher says in the environment: taken, refused, or ignored with a word.

Accelerate lets its launch configuration (`ACCELERATE_…`) win over what a program asks for. A run divides gradients,
compiles and shards as its own configuration says, so nothing of that may change a number in silence.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import DynamoBackend, GradientAccumulationPlugin, TorchDynamoPlugin

from training.runtime.errors import InputError

SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}
IGNORED = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (("1", "auto"), "--training.accumulation_steps is what divides a batch"),
    "ACCELERATE_DYNAMO_BACKEND": (("no",), "a training is not compiled"),
    "ACCELERATE_MIXED_PRECISION": (("no", "fp16", "bf16"), "--training.precision knows bf16, fp16, fp32 and fp64"),
}
"""Settings by name, with the values that change nothing, and what holds instead."""

MEETING = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def check_launch() -> None:
    """Raise an `InputError` where the environment asks for what is not done here, or is half of a launch."""
    for name, what in SHARDING.items():
        if os.environ.get(name, "").lower() in ("true", "1"):
            raise InputError(
                f"the launch configuration asks for {what} ({name}), which is not done here: every process "
                f"holds the model (DDP). Take --config_file accelerate_config.yaml, or `accelerate config` again"
            )
    counts = {}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        value = os.environ.get(name)
        if value is not None and not (value.isascii() and value.isdecimal()):
            raise InputError(
                f"{name} in the environment must be a number, got {value!r}: launchers set it, else unset it"
            )
        counts[name] = 0 if value is None else int(value)
    missing = [name for name in MEETING if not os.environ.get(name)]
    if (counts["WORLD_SIZE"] > 1 or "LOCAL_RANK" in os.environ) and missing:
        given = "WORLD_SIZE" if counts["WORLD_SIZE"] > 1 else "LOCAL_RANK"
        raise InputError(
            f"{given}={os.environ[given]} in the environment is half of a launch: {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set. Start with accelerate launch or torchrun, "
            f"or for one process unset {given}"
        )
    if counts["RANK"] >= max(counts["WORLD_SIZE"], 1):
        raise InputError(
            f"RANK={counts['RANK']} in the environment is none of WORLD_SIZE={counts['WORLD_SIZE']} processes"
        )


def ignored_settings() -> list[str]:
    """A line to warn with for each setting that does not hold here."""
    return [
        f"{name}={os.environ[name]} of the launch configuration is ignored: {instead}"
        for name, (harmless, instead) in IGNORED.items()
        if os.environ.get(name, harmless[0]).lower() not in harmless
    ]


def own_plugins() -> dict[str, Any]:
    """What an `Accelerator` must be given so that it neither divides gradients once more nor compiles the model."""
    return {
        "gradient_accumulation_plugin": GradientAccumulationPlugin(num_steps=1),
        "dynamo_plugin": TorchDynamoPlugin(backend=DynamoBackend.NO.value),
    }


@contextmanager
def naming_refusals() -> Iterator[None]:
    """Report in one line what Accelerate or the meeting of the processes refuses.

    Raises:
        InputError: It did.
    """
    try:
        yield
    except InputError:
        raise
    except (ValueError, getattr(torch.distributed, "DistError", ValueError)) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"the launch does not serve: {reason} (from `accelerate config` or the environment)"
        ) from error
