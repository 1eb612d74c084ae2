"""What a training step computes a second time in its backward pass, so that memory need not keep it until then."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

from torch import nn
from torch.utils.checkpoint import checkpoint

from training.runtime.errors import InputError

Recompute = Literal["none", "blocks", "attention"]


def blocks_of(model: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a model, which keeps them in `ModuleList`s."""
    for stack in model.modules():
        if isinstance(stack, nn.ModuleList):
            yield from stack


def use_in_training(module: nn.Module, name: str, way: Callable[..., Any]) -> Callable[[], None]:
    """While `module` trains, let it call `way` by the name of one of its methods; in evaluation all is as it was.

    Returns:
        What undoes it.
    """
    plain = getattr(module, name)

    def call(*arguments: Any, **options: Any) -> Any:
        return (way if module.training else plain)(*arguments, **options)

    setattr(module, name, call)
    return lambda: setattr(module, name, plain)


def recomputed(module: nn.Module, *arguments: Any, **options: Any) -> Any:
    """What `module` makes of its arguments; of all that a backward pass wants, only these are kept.

    Dropout draws the same masks again: torch puts its generators back to where they were.
    """
    return checkpoint(lambda: type(module).forward(module, *arguments, **options), use_reentrant=False)


def recompute_in_training(model: nn.Module, what: Recompute) -> None:
    """Let a model compute a part of its blocks twice while it trains; the numbers are the same to the bit.

    Args:
        model: Keeps its blocks in `ModuleList`s, and in them calls `attention`, or something that ends so, what is.
        what: "blocks" keeps what goes into a block, "attention" all but what is inside of attention.

    Raises:
        InputError: The model has no such part.
    """
    if what == "none":
        return
    modules = list(blocks_of(model))
    if what == "attention":
        modules = [child for block in modules for name, child in block.named_children() if name.endswith("attention")]
    if not modules:
        raise InputError(f"training.recompute is {what}, and a {type(model).__name__} has none: use none")
    for module in modules:
        use_in_training(module, "forward", partial(recomputed, module))
