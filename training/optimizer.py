"""AdamW, and Muon with AdamW, as one optimizer object with parameter groups."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from training.config.sections import OptimizerConfig
from training.orthogonal import orthogonalized, orthogonalized_shards
from training.shards import is_shard, local
from training.trained import trained

NEEDS_HOST_TO_SKIP = ("mps",)
"""Devices whose fused AdamW takes a `found_inf` and does not look at it."""


class MuonAdamW(torch.optim.Optimizer):
    """Groups with `muon` true follow Muon, the others AdamW.

    Muon (Jordan et al. 2024): with `v = momentum v + g`, the direction `g + momentum v` is orthogonalised and scaled
    by `sqrt(max(1, rows / columns))`. AdamW (Loshchilov and Hutter 2019) is torch's own. Both remove
    `lr * weight_decay` of each weight per step.

    Of parameters in shards (`training.sharding`) a rank holds some rows; so it does of their moments and momenta, and
    updates no more than these.

    Whether a step is done can be decided on the device, as in torch's own fused optimizers (`torch.amp.GradScaler`
    knows them by `_step_supports_amp_scaling`): the attributes below count in every `step` while they are set.

    Args:
        groups: Parameter groups with `params`, `muon`, `lr` and `weight_decay`.
        config: Betas, eps and momentum.
        muon_dtype: What Muon orthogonalises in.

    Attributes:
        found_inf: One number, in fp32: 0, or 1 for a step that changes no weight, moment, momentum or step count,
            whatever the gradients are. The same on all ranks.
        grad_scale: One number, in fp32, that the gradients are too large by. There is no such attribute but while
            it is set: `GradScaler` asks.
    """

    _step_supports_amp_scaling = True
    found_inf: Tensor | None = None
    grad_scale: Tensor | None

    def __init__(self, groups: Iterable[dict[str, Any]], config: OptimizerConfig, muon_dtype: torch.dtype) -> None:
        super().__init__(groups, {})
        self._config = config
        self._muon_dtype = muon_dtype
        for group in self.param_groups:
            group["peak_lr"] = group["lr"]
            for parameter in group["params"]:
                self.state[parameter] = self._fresh_state(parameter, group["muon"])

    @staticmethod
    def _fresh_state(parameter: Tensor, muon: bool) -> dict[str, Tensor]:
        if muon:
            return {"momentum": torch.zeros_like(parameter)}
        moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        return moments | {"step": torch.zeros((), dtype=torch.float32, device=parameter.device)}

    def set_learning_rate(self, scale: float) -> float:
        """Set every group to `scale` times its peak; return the learning rate of AdamW."""
        for group in self.param_groups:
            group["lr"] = scale * group["peak_lr"]
        return scale * self._config.learning_rate

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; gradients may be changed too. There is no closure."""
        for group in self.param_groups:
            params: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            device = params[0].device
            skip = (torch.zeros((), device=device) if self.found_inf is None else self.found_inf.reshape(())) != 0
            if device.type not in NEEDS_HOST_TO_SKIP or not skip:
                (self._muon_step if group["muon"] else self._adamw_step)(params, group, skip)

    def _adamw_step(self, params: list[Tensor], group: dict[str, Any], skip: Tensor) -> None:
        states = [self.state[p] for p in params]
        adamw(
            _locals(params),
            _gradients(params),
            _locals(s["exp_avg"] for s in states),
            _locals(s["exp_avg_sq"] for s in states),
            [],
            [s["step"] for s in states],
            fused=params[0].device.type in ("cpu", "cuda", "mps"),
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=skip.float(),
            amsgrad=False,
            beta1=self._config.beta1,
            beta2=self._config.beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=self._config.eps,
            maximize=False,
        )

    def _muon_step(self, params: list[Tensor], group: dict[str, Any], skip: Tensor) -> None:
        gradients, momenta = _gradients(params), _locals(self.state[p]["momentum"] for p in params)
        momentum, dtype = self._config.momentum, params[0].dtype
        shapes, rows = [(p.size(0), p.size(1)) for p in params], _locals(params)
        spread = orthogonalized_shards if is_shard(params[0]) else orthogonalized
        grad_scale = getattr(self, "grad_scale", None)
        if grad_scale is not None:
            torch._foreach_div_(gradients, grad_scale.reshape(()))
        _zero(gradients, where=skip)
        torch._foreach_mul_(momenta, _either(skip, 1.0, momentum, dtype))
        torch._foreach_add_(momenta, gradients)
        torch._foreach_mul_(rows, _either(skip, 1.0, 1 - group["lr"] * group["weight_decay"], dtype))
        counts = _either(skip, 0.0, 1.0, dtype).reshape(1)  # Of one axis: a product with it is of its dtype.

        def directions(indices: Sequence[int]) -> Sequence[Tensor]:
            return torch._foreach_add([gradients[i] for i in indices], [momenta[i] for i in indices], alpha=momentum)

        for indices, updates in spread(directions, shapes, self._muon_dtype, params[0].device):
            shape = shapes[indices[0]]
            scale = max(1.0, shape[0] / shape[1]) ** 0.5
            torch._foreach_add_([rows[i] for i in indices], (counts * updates).unbind(), alpha=-group["lr"] * scale)


def _locals(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What this rank holds of each: all of it, or its rows."""
    return [local(tensor) for tensor in tensors]


def _gradients(params: Iterable[Tensor]) -> list[Tensor]:
    return _locals(p.grad for p in params if p.grad is not None)


def _either(condition: Tensor, yes: float, no: float, dtype: torch.dtype) -> Tensor:
    """One number of two, chosen on the device."""
    return torch.full_like(condition, no, dtype=dtype).masked_fill_(condition, yes)


def _zero(tensors: list[Tensor], *, where: Tensor) -> None:
    """Make all tensors 0 if `where` is true: as integers, because NaN times 0 is NaN."""
    bits = [t.view(torch.int64 if t.dtype == torch.float64 else torch.int32) for t in tensors]
    torch._foreach_mul_(bits, (~where).to(bits[0].dtype))


def build_optimizer(model: nn.Module, config: OptimizerConfig, *, bf16: bool) -> MuonAdamW:
    """Sort the parameters that a model trains into groups.

    The matrices inside a `ModuleList`, which is where models keep their blocks, are decayed, and follow Muon where
    the configuration says so. All else (embeddings, positions, head, norms) follows AdamW without decay.

    Args:
        model: Any model that keeps its blocks in `ModuleList`s.
        config: The optimizer's section.
        bf16: Whether training computes in bf16; Muon then orthogonalises in bf16, else in the weights' own dtype.
    """
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    inside = {id(p) for stack in stacks for p in stack.parameters() if p.ndim == 2}
    matrices = [p for p in trained(model).values() if id(p) in inside]
    rest = [p for p in trained(model).values() if id(p) not in inside]
    muon = config.name == "muon"
    rate = config.muon_learning_rate if muon else config.learning_rate
    groups = [
        {"params": matrices, "muon": muon, "lr": rate, "weight_decay": config.weight_decay},
        {"params": rest, "muon": False, "lr": config.learning_rate, "weight_decay": 0.0},
    ]
    return MuonAdamW(groups, config, torch.bfloat16 if bf16 else next(model.parameters()).dtype)


def optimizer_tensors(model: nn.Module, optimizer: MuonAdamW) -> dict[str, Tensor]:
    """The optimizer's state as tensors named `parameter/what`; writing into them restores it."""
    return {
        f"{name}/{key}": value
        for name, parameter in trained(model).items()
        for key, value in optimizer.state[parameter].items()
    }
