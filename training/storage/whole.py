"""Where a run's tensors meet the files of a checkpoint: one whole tensor at a time, on the CPU."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from training.storage.tensor_file import file_order

if TYPE_CHECKING:
    from torch import Tensor

    Groups = Mapping[str, Mapping[str, Tensor]]


def whole(tensor: "Tensor") -> "Tensor":
    """The whole value of a tensor, contiguous on the CPU; of one that is so already, its own memory."""
    return tensor.detach().cpu().contiguous()


def fill(tensor: "Tensor", value: "Tensor") -> None:
    """Give a tensor its whole value, which is on the CPU."""
    tensor.detach().copy_(value)


def wholes(groups: "Groups") -> Iterator["Tensor"]:
    """The whole values of all tensors, file after file, in the order in which they are written."""
    return (whole(tensors[name]) for tensors in groups.values() for name in file_order(tensors))


def exhaust(values: Iterable["Tensor"]) -> None:
    """Go through what is left of `wholes`."""
    for _ in values:
        pass
