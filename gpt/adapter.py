"""A GPT with a low-rank adapter: what a run trains, and a checkpoint holds, beside the base that it was put on."""

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
