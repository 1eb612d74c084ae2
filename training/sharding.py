"""FSDP2: of each weight, gradient, moment and average a rank holds some rows, in `torch.distributed.fsdp.fully_shard`.

Each block of a model is a unit: its weights are gathered before it computes, and dropped behind it. What is left is the
root's (embedding, last norm, head: so a head that is the embedding is where the embedding is), and stays gathered from
the beginning of a forward pass to the end of its backward pass. Accelerate is not asked: on a CPU its FSDP is DDP.

A sharded model's parameters are DTensors; what is done to each number by itself is done to a rank's own rows
(`training.shards.local`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from training.recompute import blocks_of
from training.runtime.launch_settings import Sharding
from training.shards import gathered, is_shard

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def parallelized(
    accelerator: Accelerator, loss_model: nn.Module, sharding: Sharding | None, precision: str
) -> nn.Module:
    """A model as a training step calls it: on the device and in its precision, whole on each rank or in shards.

    Args:
        accelerator: Processes, device and mixed precision.
        loss_model: A `LossModel`.
        sharding: As the launch asks; None for DDP.
        precision: The dtype of matrix products.
    """
    if sharding is None:
        loss_model.to(accelerator.device)
        return cast(nn.Module, accelerator.prepare(loss_model))
    _shard(loss_model, sharding, accelerator.device, HALF.get(precision))
    return cast(nn.Module, accelerator.prepare_model(loss_model, device_placement=False, evaluation_mode=True))


def _shard(loss_model: nn.Module, sharding: Sharding, device: torch.device, half: torch.dtype | None) -> None:
    """Shard block by block, each as it goes to the device: there is never the whole model.

    In half precision a block's weights are rounded before they are sent. Autocast would round its matrices to the same,
    behind that; norms are the only weights that it would not. Gradients are added up in fp32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(
        param_dtype=half, reduce_dtype=torch.float32 if half else None, cast_forward_inputs=False
    )
    units = [
        *(
            fully_shard(block, mesh=mesh, reshard_after_forward=sharding.reshard_after_forward, mp_policy=policy)
            for block in blocks_of(loss_model)
        ),
        fully_shard(loss_model, mesh=mesh, reshard_after_forward=False),
    ]
    if sharding.reshard_after_forward:
        for module in loss_model.modules():
            vars(module).update(apart=True)  # No copies of weights that outlive them: `layers.products`.
    for unit in units:
        # A sum that is divided: gloo has no operation for a mean.
        unit.set_force_sum_reduction_for_comms(True)


def is_sharded(model: nn.Module) -> bool:
    """Whether a model is in shards; while its `whole_weights` are there it is not."""
    return is_shard(next(model.parameters()))


def leave_group(model: nn.Module) -> None:
    """Let go of the process group, behind its end: DTensor's caches keep the mesh for ever, and with it the group."""
    for shard in filter(is_shard, model.parameters()):
        getattr(cast(Any, shard).device_mesh, "_pg_registry", {}).clear()


@contextmanager
def without_sync(accelerator: Accelerator, parallel_model: nn.Module) -> Iterator[None]:
    """Let gradients of a rank add up on it, and be sent in the first backward pass after that.

    In shards, too, each rank then holds whole gradients.
    """
    if not is_sharded(parallel_model):
        with accelerator.no_sync(parallel_model):
            yield
        return
    root = cast("FSDPModule", parallel_model)
    root.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        root.set_requires_gradient_sync(True)


@contextmanager
def whole_weights(parallel_model: nn.Module) -> Iterator[None]:
    """While entered, every rank has the whole weights of a model in shards, and can compute without the others.

    It takes 4 bytes for each parameter; there are no gradients. All ranks enter it together.
    """
    shards: list[tuple[nn.Module, str, Tensor]] = [
        (module, name, parameter)
        for module in parallel_model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if is_shard(parameter)
    ]
    if not shards:
        yield
        return
    hooks = _take_hooks(parallel_model)
    try:
        for module, name, shard in shards:
            setattr(module, name, nn.Parameter(gathered(shard), requires_grad=False))
        yield
    finally:
        for module, name, shard in shards:
            setattr(module, name, shard)
        for module, kept in hooks:
            vars(module).update(kept)


def _take_hooks(parallel_model: nn.Module) -> list[tuple[nn.Module, dict[str, Any]]]:
    """Take from each unit what gathers its weights before it computes, and drops them; return it, to be put back."""
    taken = []
    for unit in parallel_model.modules():
        if hasattr(unit, "unshard"):
            kept = {name: vars(unit)[name] for name in ("_forward_pre_hooks", "_forward_hooks")}
            vars(unit).update({name: type(hooks)() for name, hooks in kept.items()})
            taken.append((unit, kept))
    return taken
