"""What a run will take: memory, time, energy, and what several cards make of it, each with its basis."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from training.config.sections import RunConfig, TrainingConfig
from training.micro_batch import check_split, cpu_micro_batch, largest_part, sequences_at_once
from training.planning.links import Link, Work, find_link, step_seconds, verdicts
from training.planning.memory import expected_bytes, largest_micro_batch
from training.planning.probe import Measured, probe
from training.planning.speed import EFFICIENCY, HOST_SECONDS, MEMORY_EFFICIENCY, Speed, choose_precision, speed_of_card
from training.planning.work import RunWork, optimizer_bytes, sent_bytes, work_of
from training.recompute import blocks_of
from training.runtime.device import inference_device
from training.runtime.errors import InputError
from training.runtime.hardware import CARDS, Card
from training.runtime.machine import available_memory, describe_machine
from training.runtime.precision import choose_precision as choose_precision_here
from training.runtime.precision import describe_device
from training.task import Task, batches_vary, padded_length, tokens_at_once

SHARE = 0.9
"""How much of a device's memory is counted on: formulas are estimates, and free memory is in pieces."""
CONTEXT_BYTES = 2**29
"""What CUDA takes of a card for itself, about."""
COUNTS = (1, 2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a plan is for.

    Attributes:
        gpu: The full name of a card; None for the device that is here.
        gpus: How many.
        link: What joins them, as `find_link` takes it.
        efficiency: The share of the card's own figure that it does.
    """

    gpu: str | None = None
    gpus: int = 1
    link: str | None = None
    efficiency: float = EFFICIENCY


class Target(NamedTuple):
    """What a plan is made for.

    Attributes:
        name: As its maker says.
        device: Of what kind.
        card: Its figures, where they are known.
        precision: Of products.
        usable: Bytes of its memory; None where nobody tells.
        machine: Versions and threads, where it is here.
    """

    name: str
    device: torch.device
    card: Card | None
    precision: str
    usable: int | None
    machine: dict[str, Any]

    @property
    def on_gpu(self) -> bool:
        """Whether it is one."""
        return self.device.type != "cpu"


def plan(make_task: Callable[[], Task], config: RunConfig, asked: Asked) -> dict[str, Any]:
    """Plan a run.

    Args:
        make_task: Builds model and data.
        config: The configuration.
        asked: For what.

    Returns:
        Figures, under names; see `training.planning.report`.

    Raises:
        InputError: Configuration, data, card or link do not serve.
    """
    target = _named(config, asked.gpu) if asked.gpu else _here(config)
    with torch.device("meta") if asked.gpu else nullcontext():  # Of weights only the shapes count then.
        task = make_task()
    link = find_link(asked.link, target.card) if target.on_gpu or asked.link else None
    if asked.gpus > 1 and link is None:
        raise InputError(f"gpus is {asked.gpus}, and there is no GPU here: name one by --gpu, or give a --link")
    check_split(config.training, asked.gpus)
    run, memory = work_of(task, config), _memory(task, config, target, asked.gpus)
    figures = {
        "device": target.name,
        "here": asked.gpu is None,
        "gpus": asked.gpus,
        "precision": target.precision,
        "parameters": sum(parameter.numel() for parameter in task.model.parameters()),
        "batch_size": config.training.batch_size,
        "tokens_per_step": run.tokens,
        "num_steps": run.steps,
        "evaluations": run.evaluations,
        "saves": run.saves,
        "flops_per_step": run.flops,
        "flops": run.flops * run.steps,
        "memory": memory,
    }
    figures |= target.machine
    if asked.gpu:
        speed = speed_of_card(asked.gpu, task.model, config, run, target.precision, asked.gpus, asked.efficiency)
    elif memory["fits"] is False:
        return figures | {"basis": "not timed, since it does not fit"}
    else:
        measured = probe(task, config, target.device, target.precision, memory["sequences"])
        memory["measured"] = measured.peak_bytes
        speed = _measured_speed(task, config, run, target, measured, memory["limit"])
    return figures | _times(config, run, target, speed, link, asked.gpus, memory["limit"])


def _named(config: RunConfig, gpu: str) -> Target:
    usable = int(SHARE * (CARDS[gpu].memory * 2**30 - CONTEXT_BYTES))
    return Target(gpu, torch.device("cuda"), CARDS[gpu], choose_precision(config, gpu), usable, {})


def _here(config: RunConfig) -> Target:
    device = inference_device()
    machine, described = describe_machine(device), describe_device(device)
    precision, _ = choose_precision_here(config.training.precision, device, [described])
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    usable = None if free is None or device.type == "mps" else int(SHARE * free)
    return Target(machine["device"], device, CARDS.get(described.name), precision, usable, machine)


def _passes(training: TrainingConfig, cards: int, limit: int) -> int:
    """Forward and backward passes of a card's share of a batch, of so many sequences at most; 0 is no limit."""
    part = largest_part(training, cards)
    return (training.accumulation_steps or 1) * math.ceil(part / (limit or part))


def _memory(task: Task, config: RunConfig, target: Target, cards: int) -> dict[str, Any]:
    """Memory by part, how many sequences go through the model at once, and how many would fit."""
    training, tokens = config.training, tokens_at_once(task.data)
    limit, largest = cpu_micro_batch(tokens) if target.device.type == "cpu" else 0, None
    limit = limit if training.micro_batch_size == "auto" else training.micro_batch_size
    length, varying = padded_length(task.data, training.batch_size), batches_vary(task.data)
    asked, on_gpu = (task.model, config, target.precision), target.on_gpu
    if target.usable is not None:
        largest = largest_micro_batch(*asked, length, target.usable, on_gpu=on_gpu, varying=varying)
    limit = limit or largest or 0
    sequences = sequences_at_once(training, cards, limit)
    parts = expected_bytes(*asked, sequences * length, length=length, on_gpu=on_gpu, varying=varying)
    found: dict[str, Any] = {"sequences": sequences, "limit": limit, "parts": parts, "usable": target.usable}
    found |= {"fits": None, "largest_micro_batch": largest, "fsdp2_cards": None}
    if target.usable is not None:
        found["fits"] = sum(parts.values()) <= target.usable
        if not largest and on_gpu:
            fitting = (n for n in COUNTS[1:] if _fits_in_shards(*asked, length, target.usable, n))
            found["fsdp2_cards"] = next(fitting, None)
    return found


def _fits_in_shards(model: nn.Module, config: RunConfig, precision: str, length: int, usable: int, shards: int) -> bool:
    """Whether a sequence fits on each of several cards, and the whole weights beside the shards at an evaluation."""
    if not largest_micro_batch(model, config, precision, length, usable, shards=shards, on_gpu=True):
        return False
    state = expected_bytes(model, config, precision, 1, shards=shards, on_gpu=True)
    kept = sum(state.get(name, 0) for name in ("weights", "optimizer", "average"))
    return kept + shards * state["weights"] <= usable


def _measured_speed(
    task: Task, config: RunConfig, run: RunWork, target: Target, measured: Measured, limit: int
) -> Speed:
    """A probe's figures, with what several cards would not divide taken from the card's own."""
    parts = _passes(config.training, 1, limit)
    gradients, gathered = sent_bytes(task.model, config, target.precision)
    fixed = host = 0.0
    if target.card is not None:
        fixed = optimizer_bytes(task.model, config) / (MEMORY_EFFICIENCY * target.card.bandwidth * 1e9)
        fixed = min(fixed, measured.step / 2)
    if target.on_gpu and not measured.compiling:
        host = min(HOST_SECONDS * sum(1 for _ in blocks_of(task.model)), (measured.step - fixed) / parts)
    rate = run.tokens / measured.step
    return Speed(
        basis=f"{rate:,.0f} tokens/s in some steps here",
        work=Work(measured.step - fixed, host, fixed, gradients, gathered, parts),
        evaluation=measured.evaluations,
        save=measured.save,
        compiling=measured.compiling,
        products=measured.products,
    )


def _times(
    config: RunConfig, run: RunWork, target: Target, speed: Speed, link: Link | None, cards: int, limit: int
) -> dict[str, Any]:
    """Seconds to the end, energy, and what each number of cards makes of them."""

    def step(count: int) -> float:
        parts = _passes(config.training, count, limit)
        return step_seconds(speed.work._replace(parts=parts), count, link)

    seconds = {
        "step": step(cards),
        "training": run.steps * step(cards),
        "evaluations": speed.evaluation / cards,
        "saves": run.saves * speed.save,
        "compiling": speed.compiling,
    }
    seconds["total"] = sum(seconds.values()) - seconds["step"]
    found: dict[str, Any] = {"basis": speed.basis, "seconds": seconds, "products_per_second": speed.products}
    found |= {"tokens_per_second": run.tokens / seconds["step"], "flops_per_second": run.flops / seconds["step"]}
    if target.card is not None:
        found["watts"] = cards * target.card.watts
        found["kilowatt_hours"] = found["watts"] * seconds["total"] / 3.6e6
    if link is not None:
        found["link"] = link._asdict()
        counts = [n for n in COUNTS if n * (config.training.accumulation_steps or 1) <= config.training.batch_size]
        ratios = {n: step(1) / step(n) for n in counts}
        words = verdicts({n: ratio for n, ratio in ratios.items() if n > 1})
        found["cards"] = [
            {"cards": n, "seconds_per_step": step(n), "ratio": ratios[n], "verdict": words.get(n)} for n in counts
        ]
    return found
