"""A checkpoint that the main process reads for all: the other machines of a run need not see its disk."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from training.runtime.processes import in_main_process
from training.storage.checkpoint import Checkpoint
from training.storage.tensor_file import SUFFIX, Stored


class SharedCheckpoint(Checkpoint):
    """A checkpoint in all processes, of which the main one sends what it reads; all ask for the same, in one order.

    Args:
        accelerator: Of the run.
        checkpoint: As the main process has it; None in the others.
    """

    def __init__(self, accelerator: Accelerator, checkpoint: Checkpoint | None) -> None:
        self._accelerator, self._own = accelerator, checkpoint
        said = None
        if checkpoint is not None:
            texts = {name: checkpoint.text(name) for name in checkpoint.files if not name.endswith(SUFFIX)}
            said = (checkpoint.folder, checkpoint.state, checkpoint.step, checkpoint.files, texts)
        self.folder, self.state, self.step, self._files, self._texts = self._send(said)

    @property
    def files(self) -> set[str]:
        """The names of its files."""
        return set(self._files)

    def text(self, name: str) -> str:
        """The content of a text file."""
        return str(self._texts[self._find(name)])

    def header(self, name: str) -> dict[str, Stored]:
        """As `Checkpoint.header`; all processes call this."""
        own = self._own
        found: dict[str, Stored] = self._send(
            in_main_process(self._accelerator, lambda: None if own is None else own.header(name))
        )
        return found

    def verify(self, name: str) -> None:
        """As `Checkpoint.verify`; all processes call this."""
        own = self._own

        def verify() -> None:
            if own is not None:
                own.verify(name)

        in_main_process(self._accelerator, verify)

    def read(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """As `Checkpoint.read`; all processes call this, and go on to its end."""
        tensors = iter(()) if self._own is None else self._own.read(name)
        while True:
            key, tensor = in_main_process(self._accelerator, partial(next, tensors, None)) or (None, None)
            kind = self._send(None if tensor is None else (key, tensor.shape, tensor.dtype))
            if kind is None:
                return
            key, shape, dtype = kind
            yield key, self._send_tensor(tensor, shape, dtype)

    def _send(self, said: Any) -> Any:
        """What the main process says, in all."""
        message = [said]
        broadcast_object_list(message)
        return message[0]

    def _send_tensor(self, tensor: Tensor | None, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """A tensor of the main process, in all, on the CPU."""
        device = self._accelerator.device
        sent = torch.empty(shape, dtype=dtype, device=device) if tensor is None else tensor.to(device)
        torch.distributed.broadcast(sent, src=0)
        return sent.cpu()
