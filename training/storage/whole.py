"""Where a run's tensors meet the files of a checkpoint: one whole tensor at a time, on the CPU."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from training.shards import gathered, is_shard, local, rows_of
from training.storage.tensor_file import file_order

if TYPE_CHECKING:
    from torch import Tensor

    Groups = Mapping[str, Mapping[str, Tensor]]


def whole(tensor: "Tensor") -> "Tensor":
    """The whole value of a tensor, contiguous on the CPU; of one that is so already, its own memory.

    Of one in shards, all ranks call this together.
    """
    return gathered(tensor).cpu().contiguous()


def fill(tensor: "Tensor", value: "Tensor") -> None:
    """Give a tensor its whole value, which is on the CPU; of one in shards each rank takes its rows."""
    local(tensor.detach()).copy_(rows_of(tensor, value) if is_shard(tensor) else value)


def wholes(groups: "Groups") -> Iterator["Tensor"]:
    """The whole values of all tensors, file after file, in the order in which they are written."""
    return (whole(tensors[name]) for tensors in groups.values() for name in file_order(tensors))


def in_shards(groups: "Groups") -> bool:
    """Whether other ranks have a part in what `wholes` gives."""
    return any(is_shard(tensor) for tensors in groups.values() for tensor in tensors.values())


def take_part(groups: "Groups") -> None:
    """Join in what the main process gathers in `wholes`, in the same order: the rows of tensors in shards."""
    for tensors in groups.values():
        for name in file_order(tensors):
            if is_shard(tensors[name]):
                gathered(tensors[name])


def exhaust(values: Iterable["Tensor"]) -> None:
    """Go through what is left of `wholes`."""
    for _ in values:
        pass
