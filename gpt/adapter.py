"""A GPT with a low-rank adapter: what a run trains, and a checkpoint holds, beside the base that it was put on."""

from collections.abc import Mapping

import torch
from torch import Tensor

from gpt.config import GPTConfig
from gpt.model import GPT
from layers.lora import add_lora
from training.runtime.errors import InputError
from training.seeds import generator


def put_on_base(model: GPT, config: GPTConfig) -> None:
    """Give a model the weights of its run's base, and an adapter on top of them, where the run trains one.

    Args:
        model: Of the base's shape.
        config: Of the run.

    Raises:
        InputError: The base is gone, or is not what it was; or it has no such layers.
    """
    lora = config.lora
    if not lora.rank:
        return
    if model.embedding.weight.device.type != "meta":  # Of a plan only the shapes count.
        _fill(model, config)
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


def with_base(adapter: Mapping[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """The weights of a whole model: those of a run's base, with what the run has learnt added to them.

    Args:
        adapter: What a checkpoint of the run holds.
        config: Of the run.

    Raises:
        InputError: As `put_on_base`.
    """
    weights = _base(config)
    for name, low_RI in adapter.items():
        layer, _, part = name.rpartition(".")
        if part == "lora_a":
            scale = config.lora.alpha / config.lora.rank
            weights[f"{layer}.weight"] = weights[f"{layer}.weight"] + scale * (adapter[f"{layer}.lora_b"] @ low_RI)
    return weights


@torch.no_grad()
def _fill(model: GPT, config: GPTConfig) -> None:
    weights = _base(config)
    for name, tensor in model.state_dict().items():
        tensor.copy_(weights[name])


def _base(config: GPTConfig) -> dict[str, Tensor]:
    from gpt.initial_weights import base_weights

    try:
        return dict(base_weights(config))
    except InputError as error:
        raise InputError(f"an adapter needs the model that it was put on: {error}") from error
