"""Low-rank adapters (Hu et al. 2021, "LoRA"): what a model learns on top of weights that stay as they are.

Shapes: B batch, T tokens, I inputs, O outputs, R rank.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers.dropout import Dropout

ALL = "all"
"""In place of names: every linear layer of the blocks."""


class LoRALinear(nn.Linear):
    """`x W^T + b + alpha / R * dropout(x) A^T B^T` (Hu et al. 2021, equation 3), of which A and B are trained.

    W and b keep their names and their memory. A begins as the authors' code has it, uniform within 1 / sqrt(I), and B
    at zero, so that the layer begins as what it was.

    Args:
        linear: The layer; its weights become those of this one.
        rank: Rows of A and columns of B, R.
        alpha: What the product is multiplied by, over R.
        dropout: Probability that an input of A is dropped in training.
        generator: To draw A with, on the CPU.
    """

    def __init__(
        self, linear: nn.Linear, rank: int, alpha: float, dropout: float, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.scale = alpha / rank
        self.lora_a = nn.Parameter(self.weight.new_empty(rank, self.in_features))
        self.lora_b = nn.Parameter(self.weight.new_zeros(self.out_features, rank))
        bound = self.in_features**-0.5
        nn.init.uniform_(self.lora_a, -bound, bound, generator=generator)
        self.lora_dropout = Dropout(dropout)

    def forward(self, x_BTI: Tensor) -> Tensor:
        """Map (B, T, I) to (B, T, O)."""
        low_BTR = F.linear(self.lora_dropout(x_BTI), self.lora_a)
        return super().forward(x_BTI) + self.scale * F.linear(low_BTR, self.lora_b)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain layer that maps the same, in the memory of W: this one is used up by it."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight, linear.bias = self.weight, self.bias
        linear.weight += self.scale * (self.lora_b @ self.lora_a)
        return linear


def add_lora(
    model: nn.Module,
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    targets: str = ALL,
    generator: torch.Generator | None = None,
) -> None:
    """Freeze a model, and give linear layers of its blocks an adapter each. `model.adapter` then names what is trained.

    Args:
        model: Keeps its blocks in `ModuleList`s.
        rank, alpha, dropout, generator: As of `LoRALinear`.
        targets: Names of layers in a block, with commas between them, or "all".

    Raises:
        ValueError: The blocks have no such layer.
    """
    layers = _linear_layers(model)
    known = sorted({name.rpartition(".")[2] for name in layers})
    wanted = known if targets == ALL else [name.strip() for name in targets.split(",")]
    unknown = [name for name in wanted if name not in known]
    if unknown or not known:
        raise ValueError(f"expected {ALL!r} or names out of {', '.join(known) or '(there are none)'}, got {targets!r}")
    model.requires_grad_(False)
    for name, layer in layers.items():
        parent, _, own = name.rpartition(".")
        if own in wanted:
            setattr(model.get_submodule(parent), own, LoRALinear(layer, rank, alpha, dropout, generator))
    vars(model)["adapter"] = frozenset(name for name, tensor in model.named_parameters() if tensor.requires_grad)


def _linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers inside `ModuleList`s, by their names in the model."""
    stacks = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    inside = (found for name, stack in stacks for found in stack.named_modules(prefix=name))
    return {name: module for name, module in inside if type(module) is nn.Linear}


def merge_lora(model: nn.Module) -> None:
    """Make plain layers of those with an adapter, in place: the model computes the same, up to rounding, and is whole.

    A model without adapters stays as it is.
    """
    if vars(model).pop("adapter", None) is None:
        return
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, LoRALinear):
                setattr(parent, name, layer.merged())
    model.requires_grad_(True)


def with_adapter(weights: Mapping[str, Tensor], adapter: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Weights of a model, with those of an adapter added to the layers that it was put on.

    Args:
        weights: By name, without the adapter.
        adapter: Its two matrices for each such layer, by name.
        scale: What their product is multiplied by.
    """
    whole = dict(weights)
    for name, low_RI in adapter.items():
        layer, _, part = name.rpartition(".")
        if part == "lora_a":
            whole[f"{layer}.weight"] = weights[f"{layer}.weight"] + scale * (adapter[f"{layer}.lora_b"] @ low_RI)
    return whole
