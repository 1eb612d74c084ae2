"""A checkpoint that the main process reads for all: the other machines of a run need not see its disk."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from training.runtime.processes import in_main_process
from training.storage.checkpoint import Checkpoint, CheckpointError

TENSORS = ".safetensors"


class SharedCheckpoint(Checkpoint):
    """A checkpoint in all processes; all of them ask for the same files in the same order.

    Args:
        accelerator: Of the run.
        checkpoint: As the main process has read it; None in the others.
    """

    def __init__(self, accelerator: Accelerator, checkpoint: Checkpoint | None) -> None:
        self._accelerator, self._read = accelerator, checkpoint
        said: list[Any] = [None]
        if checkpoint is not None:
            texts = {name: checkpoint.text(name) for name in checkpoint.files if not name.endswith(TENSORS)}
            said = [(checkpoint.folder, checkpoint.state, checkpoint.step, texts)]
        broadcast_object_list(said)
        self.folder, self.state, self.step, self._texts = said[0]

    @property
    def files(self) -> set[str]:
        """The names of its text files."""
        return set(self._texts)

    def text(self, name: str) -> str:
        """The content of a text file."""
        if name not in self._texts:
            raise CheckpointError(f"checkpoint {self.folder} holds no {name}")
        return str(self._texts[name])

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of `NAME.safetensors`, on the CPU, sent one at a time."""
        read = in_main_process(self._accelerator, lambda: self._read.tensors(name) if self._read else {}) or {}
        kinds = [{key: (tensor.shape, tensor.dtype) for key, tensor in read.items()}]
        broadcast_object_list(kinds)
        return {key: self._sent(read.get(key), *kind) for key, kind in kinds[0].items()}

    def _sent(self, tensor: Tensor | None, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """A tensor of the main process, in all."""
        device = self._accelerator.device
        sent = torch.empty(shape, dtype=dtype, device=device) if tensor is None else tensor.to(device)
        torch.distributed.broadcast(sent, src=0)
        return sent.cpu()
