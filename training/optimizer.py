"""AdamW, and Muon with AdamW, as one optimizer object with parameter groups."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from training.config.sections import OptimizerConfig

ORTHOGONAL_STEPS = 5


def orthogonalize(matrices_NRC: Tensor, dtype: torch.dtype) -> Tensor:
    """Bring all singular values of each matrix near 1, keeping its singular vectors.

    Five Newton-Schulz steps with the quintic `a X + b (X X^T) X + c (X X^T)^2 X` (Jordan et al. 2024, "Muon"): the
    values end between about 0.7 and 1.2.

    Args:
        matrices_NRC: N matrices of R rows and C columns.
        dtype: What to compute in.

    Returns:
        N matrices of R x C, in `dtype`.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices_NRC.size(-2) > matrices_NRC.size(-1)
    x = matrices_NRC.mT if tall else matrices_NRC
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(ORTHOGONAL_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class MuonAdamW(torch.optim.Optimizer):
    """Groups with `muon` true follow Muon, the others AdamW.

    Muon (Jordan et al. 2024): with `v = momentum v + g`, the direction `g + momentum v` is orthogonalised and scaled
    by `sqrt(max(1, rows / columns))`. AdamW (Loshchilov and Hutter 2019) is torch's own. Both remove
    `lr * weight_decay` of each weight per step.

    Args:
        groups: Parameter groups with `params`, `muon`, `lr` and `weight_decay`.
        config: Betas, eps and momentum.
        muon_dtype: What Muon orthogonalises in.
    """

    _step_supports_amp_scaling = True
    found_inf: Tensor | None = None

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
        """Update every parameter that has a gradient. There is no closure."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if group["muon"]:
                self._muon_step(params, group)
            elif params:
                self._adamw_step(params, group)

    def _adamw_step(self, params: list[Tensor], group: dict[str, Any]) -> None:
        states = [self.state[p] for p in params]
        adamw(
            params,
            [p.grad for p in params if p.grad is not None],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            fused=params[0].device.type in ("cpu", "cuda", "mps"),
            amsgrad=False,
            beta1=self._config.beta1,
            beta2=self._config.beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=self._config.eps,
            maximize=False,
            found_inf=self.found_inf,
        )

    def _muon_step(self, params: list[Tensor], group: dict[str, Any]) -> None:
        kept = torch.zeros(()) if self.found_inf is None else self.found_inf
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for p in params:
            by_shape.setdefault(p.shape, []).append(p)
        for shape, same in by_shape.items():
            gradients = torch.stack([p.grad for p in same if p.grad is not None])
            momenta = [self.state[p]["momentum"] for p in same]
            for momentum, gradient in zip(momenta, gradients, strict=True):
                momentum.copy_(torch.where(kept > 0, momentum, self._config.momentum * momentum + gradient))
            directions = gradients.add_(torch.stack(momenta), alpha=self._config.momentum)
            updates = orthogonalize(directions, self._muon_dtype).to(same[0].dtype)
            scale = max(1.0, shape[0] / shape[1]) ** 0.5
            for p, update in zip(same, updates, strict=True):
                decayed = p * (1 - group["lr"] * group["weight_decay"])
                p.copy_(torch.where(kept > 0, p, decayed.add_(update, alpha=-group["lr"] * scale)))


def build_optimizer(model: nn.Module, config: OptimizerConfig, *, bf16: bool) -> MuonAdamW:
    """Sort a model's parameters into groups.

    The matrices inside a `ModuleList`, which is where models keep their blocks, are decayed, and follow Muon where
    the configuration says so. All else (embeddings, positions, head, norms) follows AdamW without decay.

    Args:
        model: Any model that keeps its blocks in `ModuleList`s.
        config: The optimizer's section.
        bf16: Whether training computes in bf16; Muon then orthogonalises in bf16, else in the weights' own dtype.
    """
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    inside = {id(p) for stack in stacks for p in stack.parameters() if p.ndim == 2}
    matrices = [p for p in model.parameters() if id(p) in inside]
    rest = [p for p in model.parameters() if id(p) not in inside]
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
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }
