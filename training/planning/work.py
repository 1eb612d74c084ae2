"""What a run computes, and how often it does what."""

import math
from dataclasses import dataclass

from torch import nn

from training.config.sections import RunConfig
from training.evaluation import stride
from training.orthogonal import ORTHOGONAL_STEPS
from training.recompute import blocks_of
from training.schedule import count_steps
from training.task import Task
from training.trained import num_trained, trained


@dataclass(frozen=True, kw_only=True)
class RunWork:
    """A whole run.

    Attributes:
        steps, evaluations, saves: How many of each; saves at most, as if each evaluation were the best one.
        tokens: Targets of a step.
        flops: Of a step, the optimizer's included.
        evaluated: Targets of all evaluations.
    """

    steps: int
    evaluations: int
    saves: int
    tokens: float
    flops: float
    evaluated: float


def work_of(task: Task, config: RunConfig) -> RunWork:
    """Count what a run does until its end; patience, which may end it sooner, does not count."""
    training, steps, every = config.training, count_steps(config, task), stride(task.data, config.training.eval_tokens)
    tokens = training.batch_size * task.data.tokens_per_sample
    evaluations = _times(steps, training.eval_interval)
    whole = task.data.validation_targets
    evaluated = evaluations * whole / every + (whole if every > 1 else 0)
    return RunWork(
        steps=steps,
        evaluations=evaluations,
        saves=_times(steps, training.eval_interval, training.checkpoint_interval),
        tokens=tokens,
        flops=tokens * task.flops_per_token + orthogonal_flops(task.model, config),
        evaluated=evaluated * (2 if training.ema_decay and training.eval_raw_weights else 1),
    )


def _times(steps: int, *intervals: int) -> int:
    """At how many steps one of two intervals is due; the last step is, in any case."""
    first, second = intervals[0], intervals[-1]
    due = sum(steps // interval for interval in (first, second) if interval)
    due -= steps // math.lcm(first, second) if first and second else 0
    return due + all(not interval or steps % interval for interval in intervals)


def orthogonal_flops(model: nn.Module, config: RunConfig) -> float:
    """Floating point operations by which Muon makes a step's directions orthogonal; 0 for AdamW.

    Of each matrix, each of five rounds takes 4 s s t + 2 s s s, with s its shorter and t its longer side.
    """
    if config.optimizer.name != "muon":
        return 0.0
    matrices = {id(p): p for block in blocks_of(model) for p in trained(block).values() if p.ndim == 2}
    sides = [sorted(matrix.shape) for matrix in matrices.values()]
    return float(sum(ORTHOGONAL_STEPS * (4 * s * s * t + 2 * s**3) for s, t in sides))


def sent_bytes(model: nn.Module, config: RunConfig, precision: str) -> tuple[int, int]:
    """Bytes that the cards of a run exchange in a step: of gradients, and of Muon's directions."""
    weights = num_trained(model)
    width = 8 if precision == "fp64" else 4
    in_blocks = {id(p): p.numel() for block in blocks_of(model) for p in trained(block).values() if p.ndim == 2}
    directions = sum(in_blocks.values()) if config.optimizer.name == "muon" else 0
    gradient_width = width if config.training.gradient_compression == "none" else 2
    return gradient_width * weights, (2 if precision == "bf16" else width) * directions


def optimizer_bytes(model: nn.Module, config: RunConfig) -> float:
    """Bytes that pass through memory as weights follow their gradients, on every card.

    Of each weight in fp32: the gradient is read for its norm, read and written as it is clipped, and read once more;
    weight and two moments are read and written; the average is too, and the weight read for it.
    """
    return num_trained(model) * 4.0 * (10 + (3 if config.training.ema_decay else 0))
