"""Which weights of a model a training changes, and which ones a checkpoint holds."""

from torch import Tensor, nn


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """By name, the parameters that ask for a gradient. The others stay as they are."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def num_trained(module: nn.Module) -> int:
    """How many numbers these are."""
    return sum(parameter.numel() for parameter in trained(module).values())


def kept(model: nn.Module) -> dict[str, Tensor]:
    """By name, what a checkpoint holds of a model: all weights, or of one with an attribute `adapter` those it names.

    What an adapter was put on (`layers.lora`) is read from where it came from.
    """
    weights: dict[str, Tensor] = model.state_dict()
    names = getattr(model, "adapter", weights)
    return {name: tensor for name, tensor in weights.items() if name in names}
