"""Whether a model is one that others know how to compute, or has parts of its own."""

from torch import nn


def foreign_part(model: nn.Module, plain: nn.Module) -> str | None:
    """Where a model differs from one of the same shape whose form is known: a part, "its class", or None.

    Compared are the names and classes of all modules, and the shapes of all weights. A class of one's own says with
    `has_native_step = True` that it computes what its base does.
    """
    different = {name for name, _ in _parts(model) ^ _parts(plain)}
    if vars(type(model)).get("has_native_step") and isinstance(model, type(plain)):
        different -= {""}
    return min(different - {""}, default="its class") if different else None


def _parts(model: nn.Module) -> set[tuple[str, object]]:
    modules = {(name, type(module)) for name, module in model.named_modules()}
    return modules | {(name, tensor.shape) for name, tensor in model.state_dict().items()}
