"""How much memory a training takes at most, and how much it should by a formula."""

import re
import threading
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from training.config.sections import RunConfig
from training.loss import MAX_LOGITS_BYTES
from training.recompute import blocks_of

ACTIVATIONS = "activations, estimated"
WATCH_SECONDS = 0.02


def expected_bytes(model: nn.Module, config: RunConfig, precision: str, targets: int) -> dict[str, int]:
    """What a step keeps at once on one device, by a formula. With P weights of w bytes (4; 8 in fp64):

    - weights, gradients: w P each.
    - weights in 16 bits, which autocast keeps from the forward to the backward pass: 2 bytes for each of a matrix.
    - optimizer: adamw 2 w P; muon w for each weight of a block's matrix, and 2 w for the others.
    - average: w P where there is one.
    - activations: each linear layer's input and output in the dtype of products, for each target at once; of a part
      that is computed twice only its input, and all of the one at work. Four times the logits in fp32: they, their
      softmax, and the gradients of both; of a chunk, where the loss is computed in chunks. This is an estimate: it
      leaves out what norms, dropout and attention keep, counts an input that several layers share once for each, and
      takes an encoder-decoder's sources to be as long as its targets.

    Args:
        model, config: What is trained.
        precision: The dtype of products.
        targets: Tokens that go through the model at once.
    """
    width = 8 if precision == "fp64" else 4
    product_width = 2 if precision in ("bf16", "fp16") else width
    matrices = sum(layer.weight.numel() for layer in _linear(model))
    in_blocks = {id(p): p.numel() for block in blocks_of(model) for p in block.parameters() if p.ndim == 2}
    weights = sum(parameter.numel() for parameter in model.parameters())
    vocabulary = next(module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding))
    logits = min(width * targets * vocabulary, MAX_LOGITS_BYTES)
    kept = _kept_bytes(model, config.training.recompute, width, product_width)
    by_muon = sum(in_blocks.values()) if config.optimizer.name == "muon" else 0
    found = {
        "weights": width * weights,
        "weights in 16 bits": 2 * matrices if product_width == 2 else 0,
        "gradients": width * weights,
        "optimizer": width * (2 * weights - by_muon),
        "average": width * weights if config.training.ema_decay else 0,
        ACTIVATIONS: targets * kept + 4 * logits,
    }
    return {name: size for name, size in found.items() if size}


def _linear(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def _features(module: nn.Module) -> int:
    """Inputs and outputs of all linear layers."""
    return sum(layer.in_features + layer.out_features for layer in _linear(module))


def _kept_bytes(model: nn.Module, recompute: str, width: int, product_width: int) -> int:
    """What the linear layers keep of a token until the backward pass."""
    twice = list(blocks_of(model)) if recompute != "none" else []
    if recompute == "attention":
        twice = [child for block in twice for name, child in block.named_children() if name.endswith("attention")]
    inputs = sum(_linear(part)[0].in_features for part in twice)
    at_work = max(map(_features, twice), default=0)
    return product_width * (_features(model) - sum(map(_features, twice)) + at_work) + width * inputs


class MemoryPeak:
    """The most memory that a training takes of its device.

    Of a GPU: what torch has allocated at most. Of a CPU: the peak of the process's resident memory over what it was as
    this was made, with the training's state, which was there already; Linux alone tells it, and what torch's allocator
    keeps for later counts too.

    Args:
        device: What is trained on.
        state_bytes: Size of weights, optimizer and average.
    """

    def __init__(self, device: torch.device, state_bytes: int) -> None:
        self._device = device
        self._before = (_resident("VmRSS") or 0) - state_bytes

    def forget(self) -> None:
        """Count from here."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            with suppress(OSError):  # Where it cannot be forgotten, the peak is that of the whole process.
                Path("/proc/self/clear_refs").write_text("5")

    def reserved(self) -> int | None:
        """The same with what torch's allocator has taken of a GPU to hand it out later; its context comes on top."""
        return torch.cuda.max_memory_reserved(self._device) if self._device.type == "cuda" else None

    def bytes(self) -> int | None:
        """The peak since `forget`, or None where nobody tells."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        peak = _resident("VmHWM")
        return None if peak is None else peak - self._before


class CardMemory:
    """The most that is taken of a GPU's memory while this is entered, by another process say, over what was before.

    Attributes:
        bytes: How much; None where there is no GPU.
    """

    def __init__(self) -> None:
        self.bytes: int | None = None
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "CardMemory":
        if torch.cuda.is_available():
            self._watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self._watcher.ident is not None:
            self._watcher.join()

    def _watch(self) -> None:
        before, self.bytes = torch.cuda.mem_get_info()[0], 0
        while not self._over.wait(WATCH_SECONDS):
            self.bytes = max(self.bytes, before - torch.cuda.mem_get_info()[0])


def _resident(name: str) -> int | None:
    """A size in /proc/self/status, in bytes."""
    with suppress(OSError):
        found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        return None if found is None else 1024 * int(found[1])
    return None
