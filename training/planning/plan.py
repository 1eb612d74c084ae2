"""What a run will take: memory, time, energy, and what several cards make of it, each with its basis."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from training.batches import choose_micro_batch
from training.config.sections import RunConfig
from training.planning.links import Link, Work, find_link, step_seconds, verdicts
from training.planning.memory import expected_bytes, largest_micro_batch
from training.planning.probe import Measured, probe
from training.planning.speed import EFFICIENCY, HOST_SECONDS, MEMORY_EFFICIENCY, Speed, choose_precision, speed_of_card
from training.planning.work import RunWork, optimizer_bytes, sent_bytes, work_of
from training.recompute import blocks_of
from training.runtime.device import choose_precision as choose_precision_here
from training.runtime.device import describe_device, inference_device
from training.runtime.errors import InputError
from training.runtime.hardware import CARDS, Card
from training.runtime.machine import available_memory, describe_machine
from training.task import Task

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
    target, task = _named(config, asked.gpu) if asked.gpu else _here(config), make_task()
    link = find_link(asked.link, target.card) if target.on_gpu or asked.link else None
    if asked.gpus > 1 and link is None:
        raise InputError(f"gpus is {asked.gpus}, and there is no GPU here: name one by --gpu, or give a --link")
    _check_share(config, asked.gpus)
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
        speed = _measured_speed(task, config, run, target, measured)
    return figures | _times(config, run, target, speed, link, asked.gpus)


def _check_share(config: RunConfig, cards: int) -> None:
    needed, batch = cards * config.training.accumulation_steps, config.training.batch_size
    if batch < needed:
        raise InputError(
            f"training.batch_size must be at least cards x training.accumulation_steps ({needed}), got {batch}"
        )


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


def passes(config: RunConfig, device: torch.device, tokens_per_sample: float, cards: int) -> tuple[int, int]:
    """Forward and backward passes of a card's share of a batch, and the sequences of one of them."""
    training = config.training
    share = math.ceil(training.batch_size / cards / training.accumulation_steps)
    limit = choose_micro_batch(device, tokens_per_sample) or share
    parts = math.ceil(share / limit)
    return parts * training.accumulation_steps, math.ceil(share / parts)


def _memory(task: Task, config: RunConfig, target: Target, cards: int) -> dict[str, Any]:
    """Memory by part, whether it fits, and what would."""
    training, model = config.training, task.model
    _, sequences = passes(config, target.device, task.data.tokens_per_sample, cards)
    targets = task.data.training_batch(0, sequences).targets_BT
    length = float(targets.size(1))
    parts = expected_bytes(model, config, target.precision, targets.numel(), length=length, on_gpu=target.on_gpu)
    found: dict[str, Any] = {"sequences": sequences, "parts": parts, "usable": target.usable}
    if target.usable is None:
        return found | {"fits": None}
    asked = model, config, target.precision, length, target.usable
    largest = largest_micro_batch(*asked, on_gpu=target.on_gpu)
    share = math.ceil(training.batch_size / cards)
    found |= {"fits": sum(parts.values()) <= target.usable, "largest_micro_batch": min(largest, share)}
    if largest:
        return found | {"accumulation_steps": math.ceil(share / largest)}
    sharded = (n for n in COUNTS[1:] if largest_micro_batch(*asked, shards=n, on_gpu=target.on_gpu))
    return found | {"fsdp2_cards": next(sharded, None) if target.on_gpu else None}


def _measured_speed(task: Task, config: RunConfig, run: RunWork, target: Target, measured: Measured) -> Speed:
    """A probe's figures, with what several cards would not divide taken from the card's own."""
    parts, _ = passes(config, target.device, task.data.tokens_per_sample, 1)
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
    config: RunConfig, run: RunWork, target: Target, speed: Speed, link: Link | None, cards: int
) -> dict[str, Any]:
    """Seconds to the end, energy, and what each number of cards makes of them."""

    def step(count: int) -> float:
        parts = passes(config, target.device, run.tokens / config.training.batch_size, count)[0]
        return step_seconds(speed.work._replace(parts=parts), count, link)

    seconds = {
        "step": step(cards),
        "training": run.steps * step(cards),
        "evaluations": speed.evaluation / cards,
        "saves": run.saves * speed.save,
        "compiling": speed.compiling,
    }
    seconds["total"] = sum(seconds.values()) - seconds["step"]
    found = {"basis": speed.basis, "seconds": seconds, "products_per_second": speed.products}
    found |= {"tokens_per_second": run.tokens / seconds["step"], "flops_per_second": run.flops / seconds["step"]}
    if target.card is not None:
        found["watts"] = cards * target.card.watts
        found["kilowatt_hours"] = found["watts"] * seconds["total"] / 3.6e6
    if link is not None:
        found["link"] = link._asdict()
        counts = [n for n in COUNTS if n * config.training.accumulation_steps <= config.training.batch_size]
        ratios = {n: step(1) / step(n) for n in counts}
        words = verdicts({n: ratio for n, ratio in ratios.items() if n > 1})
        found["cards"] = [
            {"cards": n, "seconds_per_step": step(n), "ratio": ratios[n], "verdict": words.get(n)} for n in counts
        ]
    return found
