"""A GPT with a low-rank adapter: what a run trains, and a checkpoint holds, beside the base that it was put on.

Shapes: I inputs, R rank.
"""

from collections.abc import Mapping

from torch import Tensor

from gpt.beginning import fill
from gpt.config import GPTConfig
from gpt.initial_weights import base_weights
from gpt.model import GPT
from layers.lora import add_lora
from training.runtime.errors import InputError
from training.seeds import generator


def add_adapter(model: GPT, config: GPTConfig) -> None:
    """Give a model a fresh adapter, where its run trains one.

    Raises:
        InputError: The model has no such layers.
    """
    lora = config.lora
    if not lora.rank:
        return
    try:
        add_lora(
            model,
            rank=lora.rank,
            alpha=lora.alpha,
            dropout=lora.dropout,
            targets=lora.targets,
            generator=generator(config.seed, "lora"),
        )
    except ValueError as error:
        raise InputError(f"lora.targets: {error}") from error


def put_on_base(model: GPT, config: GPTConfig) -> None:
    """Give a model the weights of its run's base, and an adapter on top of them, where the run trains one.

    Raises:
        InputError: The base is gone, or is not what it was.
    """
    if config.lora.rank and config.init_from is not None:
        fill(model, base_weights(config), config.init_from)
    add_adapter(model, config)


def with_base(adapter: Mapping[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """The weights of a whole model: those of a run's base, with what the run has learnt added to them.

    Args:
        adapter: What a checkpoint of the run holds.
        config: Of the run.

    Raises:
        InputError: As `put_on_base`.
    """
    weights, scale = dict(base_weights(config)), config.lora.alpha / max(config.lora.rank, 1)
    for name, low_RI in adapter.items():
        layer, _, part = name.rpartition(".")
        if part == "lora_a":
            weights[f"{layer}.weight"] = weights[f"{layer}.weight"] + scale * (adapter[f"{layer}.lora_b"] @ low_RI)
    return weights
