"""What a launcher says in the environment: taken, refused, or ignored with a word.

Accelerate lets its launch configuration (`ACCELERATE_…`) win over what a program asks for. A run divides gradients and
compiles as its own configuration says, so nothing of that may change a number in silence. Whether weights are in shards
(FSDP2) is asked for there, and done by us (`training/sharding.py`): on a CPU, Accelerate would take DDP without a word.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from accelerate.utils import DynamoBackend, GradientAccumulationPlugin, TorchDynamoPlugin

from training.runtime.errors import InputError

NOT_DONE = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}
IGNORED = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (("1", "auto"), "--training.accumulation_steps is what divides a batch"),
    "ACCELERATE_DYNAMO_BACKEND": (("no",), "a training is not compiled"),
    "ACCELERATE_MIXED_PRECISION": (("no", "fp16", "bf16"), "--training.precision knows bf16, fp16, fp32 and fp64"),
}
IGNORED_OF_FSDP = {
    "FSDP_ACTIVATION_CHECKPOINTING": (("false",), "--training.recompute says what is computed twice"),
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": (("false",), "--training.recompute says what is computed twice"),
    "FSDP_AUTO_WRAP_POLICY": (("transformer_based_wrap",), "each block is a unit, and what is left is one"),
    "FSDP_TRANSFORMER_CLS_TO_WRAP": (("",), "each block is a unit, and what is left is one"),
    "FSDP_STATE_DICT_TYPE": (("full_state_dict",), "checkpoints hold whole tensors"),
}
"""Settings by name, with the values that change nothing, and what holds instead."""

RESHARDING = {"true": True, "full_shard": True, "false": False, "shard_grad_op": False}
"""Values of FSDP_RESHARD_AFTER_FORWARD; words are of FSDP 1, one of which Accelerate takes where nothing was asked."""

MEETING = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Sharding(NamedTuple):
    """How weights are in shards.

    Attributes:
        reshard_after_forward: Whether a block's weights are dropped behind its forward pass too, and gathered once more
            for its backward pass.
    """

    reshard_after_forward: bool = True

    @property
    def description(self) -> str:
        """A line for the start of a run."""
        until = "forward and backward pass each" if self.reshard_after_forward else "both passes"
        return f"FSDP2: weights, gradients and optimizer state in shards, a block gathered for {until}"


def asked_sharding() -> Sharding | None:
    """Whether the launch asks for FSDP2, and how; None for DDP.

    Raises:
        InputError: It asks for what ours does not do.
    """
    if not _is_set("ACCELERATE_USE_FSDP"):
        return None
    version = os.environ.get("FSDP_VERSION", "1")
    resharding = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true")
    refused = [
        (version != "2", f"FSDP {version}", "set fsdp_version to 2"),
        (_is_set("FSDP_OFFLOAD_PARAMS"), "weights in the CPU's memory (fsdp_offload_params)", "set it to false"),
        (bool(os.environ.get("FSDP_IGNORED_MODULES")), "modules without shards (fsdp_ignored_modules)", "leave it out"),
        (resharding not in RESHARDING, f"fsdp_reshard_after_forward {resharding}", "set it to true or false"),
    ]
    for asked, what, instead in refused:
        if asked:
            raise InputError(
                f"the launch configuration asks for {what}, which is not done here: {instead} in its fsdp_config, or "
                f"take --config_file configs/accelerate/fsdp2.yaml"
            )
    return Sharding(RESHARDING[resharding])


@contextmanager
def without_fsdp() -> Iterator[None]:
    """Keep from Accelerate that the launch asks for FSDP: what it makes is for DDP."""
    asked = os.environ.pop("ACCELERATE_USE_FSDP", None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ["ACCELERATE_USE_FSDP"] = asked


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("true", "1")


def check_launch() -> None:
    """Raise an `InputError` where the environment asks for what is not done here, or is half of a launch."""
    for name, what in NOT_DONE.items():
        if _is_set(name):
            raise InputError(
                f"the launch configuration asks for {what} ({name}), which is not done here: every process "
                f"holds the model (DDP), or a shard of it (FSDP2). Take --config_file accelerate_config.yaml or "
                f"configs/accelerate/fsdp2.yaml"
            )
    asked_sharding()
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
    settings = IGNORED | (IGNORED_OF_FSDP if _is_set("ACCELERATE_USE_FSDP") else {})
    return [
        f"{name}={os.environ[name]} of the launch configuration is ignored: {instead}"
        for name, (harmless, instead) in settings.items()
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
