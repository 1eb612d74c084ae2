"""A GPT with a low-rank adapter: what a run trains, and a checkpoint holds, beside the base that it was put on."""

import torch

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
    drawn = generator(config.seed, "lora")
    asked = {"rank": lora.rank, "alpha": lora.alpha, "dropout": lora.dropout, "targets": lora.targets}
    try:
        add_lora(model, **asked, generator=drawn)
    except ValueError as error:
        raise InputError(f"lora.targets: {error}") from error


@torch.no_grad()
def _fill(model: GPT, config: GPTConfig) -> None:
    from gpt.initial_weights import base_weights

    try:
        weights = base_weights(config)
    except InputError as error:
        raise InputError(f"an adapter needs the model that it was put on: {error}") from error
    for name, tensor in model.state_dict().items():
        tensor.copy_(weights[name])
