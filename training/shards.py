"""Shards: of a tensor that is a DTensor each rank holds some rows, as `training.sharding` makes them.

Every rank holds as many rows as the first, until there are no more. Not every build of torch has the class of DTensors.
"""

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:  # Commands look at checkpoints before they load torch.
    from torch import Tensor


def is_shard(tensor: "Tensor") -> bool:
    """Whether there is more of it on other ranks."""
    return hasattr(tensor, "full_tensor")


def local(tensor: "Tensor") -> "Tensor":
    """The rows of a shard that this rank holds, in their own memory; of another tensor all."""
    return cast(Any, tensor).to_local() if is_shard(tensor) else tensor


def gathered(tensor: "Tensor") -> "Tensor":
    """The whole value, on every rank; of a shard all ranks call this together."""
    value = tensor.detach()
    return cast("Tensor", cast(Any, value).full_tensor()) if is_shard(tensor) else value


def rows_of(shard: "Tensor", value: "Tensor") -> "Tensor":
    """Of a whole value the rows that this rank holds."""
    mesh = cast(Any, shard).device_mesh
    first = mesh.get_local_rank() * -(-len(value) // mesh.size())
    return value[first : first + len(local(shard))]
