"""How fast a card is at a run, by its maker's figures: an estimate, where the card is not here."""

from dataclasses import dataclass

import torch
from torch import nn

from training.compiling import choose_mode
from training.config.sections import RunConfig
from training.planning.links import Work
from training.planning.memory import expected_bytes
from training.planning.work import RunWork, optimizer_bytes, sent_bytes
from training.recompute import blocks_of
from training.runtime.errors import InputError
from training.runtime.hardware import CARDS, peak_flops, short_name

EFFICIENCY = 0.35
"""The share of its maker's figure that a card does in a training of a large model, compiled: assumed, since no such
training was measured here. Others reach 0.3 to 0.5 (PaLM 0.46)."""
HOST_SECONDS = 3.7e-3
"""What the host takes to launch the operations of a block, forward and backward, and its share of the rest of a step,
where nothing is compiled: a step of the six blocks of shakespeare.yaml took 22.4 ms beside an H200, which had 1.2 ms
of arithmetic to do (docs/results/shakespeare_h200.json)."""
MEMORY_EFFICIENCY = 0.8
"""The share of its memory's bandwidth that the optimizer's step gets: assumed."""
FORWARD = 1 / 3
"""The share of a step's arithmetic that a forward pass alone is."""
SAVE_BANDWIDTH = 0.46e9
"""Bytes of a checkpoint per second: 1.81 GB took 4.0 s on one machine (docs/reliability.md)."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast one device is at a run.

    Attributes:
        basis: Where that is known from, in words.
        work: A step.
        evaluation: Seconds of all evaluations on one device.
        save: Seconds of a checkpoint.
        compiling: Seconds before the first step; 0 where nothing is compiled, or nobody knows.
        products: FLOP/s in products of large matrices; None where it was not measured.
    """

    basis: str
    work: Work
    evaluation: float
    save: float
    compiling: float = 0.0
    products: float | None = None


def choose_precision(config: RunConfig, gpu: str) -> str:
    """What `training.precision` means on a card: auto is bf16 where its tensor cores know it, else fp16.

    Raises:
        InputError: There is no figure for the precision.
    """
    asked = config.training.precision
    precision = asked if asked != "auto" else "bf16" if peak_flops(gpu, "bf16") else "fp16"
    if peak_flops(gpu, precision) is None:
        raise InputError(f"training.precision {precision}: there is no figure of an {short_name(gpu)} for it")
    return precision


def speed_of_card(
    gpu: str, model: nn.Module, config: RunConfig, run: RunWork, precision: str, cards: int, efficiency: float
) -> Speed:
    """How fast a card should be.

    Args:
        gpu: Its full name.
        model, config, run, precision: What is trained.
        cards: How many there are, by which `training.compile` goes.
        efficiency: The share of the card's figure that it does.
    """
    card, peak = CARDS[gpu], peak_flops(gpu, "tf32" if precision == "fp32" and config.training.tf32 else precision)
    assert peak is not None
    mode = choose_mode(config.training, torch.device("cuda"), run.steps * run.flops, cards).mode
    blocks = sum(1 for _ in blocks_of(model))
    gradients, gathered = sent_bytes(model, config, precision)
    work = Work(
        compute=run.flops / (efficiency * peak),
        host=HOST_SECONDS * blocks if mode == "off" else 0.0,
        fixed=optimizer_bytes(model, config) / (MEMORY_EFFICIENCY * card.bandwidth * 1e9),
        gradients=gradients,
        gathered=gathered,
        parts=config.training.accumulation_steps or 1,
    )
    whole = run.evaluated / run.tokens * work.compute
    return Speed(
        basis=f"an estimate: {efficiency:.0%} of the {peak / 1e12:,.1f} TFLOP/s of its maker are assumed"
        + (f", and {1000 * HOST_SECONDS:g} ms of the host for a block" if mode == "off" else f", compiled as {mode}"),
        work=work,
        evaluation=FORWARD * whole,
        save=_checkpoint_bytes(model, config, precision) / SAVE_BANDWIDTH,
    )


def _checkpoint_bytes(model: nn.Module, config: RunConfig, precision: str) -> int:
    parts = expected_bytes(model, config, precision, 1)
    return sum(parts.get(name, 0) for name in ("weights", "optimizer", "average"))
