"""The loss of a model as a module, and cross-entropy that never holds all logits.

Shapes: B batch, T target tokens, N targets of a batch in a row, C those of a chunk, M model size, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from training.task import IGNORED, Batch, loss_sum

MAX_LOGITS_BYTES = 2**28
"""Where the logits of a batch take more than this in fp32, they are computed in chunks of at most this size."""


class LossModel(nn.Module):
    """A model with its loss: what a training step calls, so that both are compiled together and DDP wraps both.

    The loss is `loss_sum`'s. Of large logits it is computed in chunks where the model knows how: by
    `normed_states(*inputs)`, (B, T, M), and `head_weight`, (V, M), whose product the logits are.

    Args:
        model: Maps inputs to logits of shape (B, T, V).
        label_smoothing: As in `loss_sum`.
    """

    def __init__(self, model: nn.Module, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model, self.label_smoothing = model, label_smoothing
        self.chunked_loss_sum: Callable[..., Tensor] = chunked_loss_sum
        self.chunk_gradients: ChunkGradients = chunk_gradients

    def forward(self, *inputs_and_targets: Tensor) -> Tensor:
        """The sum of losses over targets, from `Batch.inputs` and `Batch.targets_BT`."""
        return self.compute(*inputs_and_targets)

    def compute(self, *inputs_and_targets: Tensor) -> Tensor:
        """All that `forward` does; `training.compiling` replaces this by its compiled code."""
        *inputs, targets_BT = inputs_and_targets
        weight_VM = _head_weight(self.model)
        if weight_VM is None or 4 * targets_BT.numel() * weight_VM.size(0) <= MAX_LOGITS_BYTES:
            return loss_sum(self.model, Batch(tuple(inputs), targets_BT), self.label_smoothing)
        normed_BTM: Tensor = self.model.normed_states(*inputs)  # type: ignore[operator]
        rows = normed_BTM.flatten(0, 1), weight_VM, targets_BT.flatten()
        return self.chunked_loss_sum(*rows, self.label_smoothing, self.chunk_gradients)


def _head_weight(model: nn.Module) -> Tensor | None:
    """The matrix that makes logits of a model's `normed_states`; None where they may come about in another way.

    They may in a subclass that has a `forward` or `logits` of its own, but not what replaces them here.
    """
    kind = type(model)
    if _origin(kind, "normed_states") is None or _origin(kind, "normed_states") is not _origin(kind, "forward"):
        return None
    if _origin(kind, "head_weight") is not _origin(kind, "logits"):
        return None
    weight: Tensor | None = model.head_weight  # type: ignore[assignment]
    return weight


def _origin(kind: type, name: str) -> type | None:
    """The class that a method comes from."""
    return next((base for base in kind.__mro__ if name in vars(base)), None)


ChunkGradients = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


def chunk_logits(hidden_CM: Tensor, weight_VM: Tensor) -> Tensor:
    """Logits, in fp32 at least."""
    logits_CV = hidden_CM @ weight_VM.T
    return logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))


def chunk_loss(logits_CV: Tensor, targets_C: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """The sum of losses of a chunk, and the logarithm of each row's sum of exponentials, (C, 1)."""
    sums_C1 = logits_CV.logsumexp(-1, keepdim=True)
    chosen_C1 = logits_CV.gather(1, targets_C.clamp(min=0)[:, None])
    losses_C1 = sums_C1 - (1 - label_smoothing) * chosen_C1
    if label_smoothing:
        losses_C1 = losses_C1 - label_smoothing * logits_CV.mean(-1, keepdim=True)
    return torch.where(targets_C[:, None] != IGNORED, losses_C1, 0.0).sum(), sums_C1


def chunk_gradients(
    hidden_CM: Tensor, weight_VM: Tensor, targets_C: Tensor, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """The sum of losses of a chunk, and its gradients by the logits: `softmax(logits) - wanted`, (C, V)."""
    logits_CV = chunk_logits(hidden_CM, weight_VM)
    loss, sums_C1 = chunk_loss(logits_CV, targets_C, label_smoothing)
    gradients_CV = logits_CV.sub_(sums_C1).exp_()
    if label_smoothing:
        gradients_CV.sub_(label_smoothing / weight_VM.size(0))
    chosen_C1 = targets_C.clamp(min=0)[:, None]
    gradients_CV.scatter_(1, chosen_C1, gradients_CV.gather(1, chosen_C1) - (1 - label_smoothing))
    gradients_CV.masked_fill_((targets_C == IGNORED)[:, None], 0.0)
    return loss, gradients_CV.to(hidden_CM.dtype)


def chunked_loss_sum(
    hidden_NM: Tensor,
    weight_VM: Tensor,
    targets_N: Tensor,
    label_smoothing: float = 0.0,
    gradients: ChunkGradients = chunk_gradients,
) -> Tensor:
    """`loss_sum` of the logits `hidden weight^T`, of which it holds `MAX_LOGITS_BYTES` at a time.

    Gradients by both factors are computed with the loss, chunk by chunk, while the logits are there. So there are as
    many products as otherwise. Not a part of a compiled graph, whose order of computing would be the compiler's choice.

    Args:
        hidden_NM: What the head is given.
        weight_VM: The head.
        targets_N: Token ids, or IGNORED.
        label_smoothing: As in `loss_sum`.
        gradients: `chunk_gradients`, or compiled code of it.
    """
    kind = hidden_NM.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_NM.dtype
    with torch.autocast(kind, enabled=False):
        if not torch.is_grad_enabled():
            chunks = _chunks(weight_VM, hidden_NM, targets_N)
            head_VM = weight_VM.to(dtype)
            losses = [chunk_loss(chunk_logits(h.to(dtype), head_VM), t, label_smoothing)[0] for h, t in chunks]
            return torch.stack(losses).sum()
        asked = hidden_NM, weight_VM, targets_N, label_smoothing, gradients, dtype
        loss: Tensor = _ChunkedLoss.apply(*asked)  # type: ignore[no-untyped-call]
        return loss


def _chunks(weight_VM: Tensor, *rows: Tensor) -> "zip[tuple[Tensor, ...]]":
    """Rows that belong together, in chunks of about the same size."""
    count = rows[0].size(0)
    most = max(1, MAX_LOGITS_BYTES // (4 * weight_VM.size(0)))
    parts = -(-count // most)
    return zip(*(torch.split(row, -(-count // parts)) for row in rows), strict=True)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NM: Tensor,
        weight_VM: Tensor,
        targets_N: Tensor,
        label_smoothing: float,
        gradients: ChunkGradients,
        dtype: torch.dtype,
    ) -> Tensor:
        head_VM = weight_VM.to(dtype)
        total = hidden_NM.new_zeros((), dtype=torch.promote_types(dtype, torch.float32))
        by_hidden_NM = torch.empty_like(hidden_NM)
        frozen = not ctx.needs_input_grad[1]
        by_weight_VM = None if frozen else torch.zeros_like(weight_VM, dtype=total.dtype)
        for part_CM, targets_C, by_part_CM in _chunks(weight_VM, hidden_NM, targets_N, by_hidden_NM):
            hidden_CM = part_CM.to(dtype)
            loss, by_logits_CV = gradients(hidden_CM, head_VM, targets_C, label_smoothing)
            total += loss
            by_part_CM.copy_(by_logits_CV @ head_VM)
            if by_weight_VM is not None:
                by_weight_VM += by_logits_CV.T @ hidden_CM
        ctx.save_for_backward(by_hidden_NM, None if by_weight_VM is None else by_weight_VM.to(weight_VM.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        by_hidden_NM, by_weight_VM = ctx.saved_tensors
        by_weight = None if by_weight_VM is None else gradient * by_weight_VM
        return gradient * by_hidden_NM, by_weight, None, None, None, None
