"""The number of steps, and the learning rate as a function of the step."""

import math

from training.config.sections import RunConfig, ScheduleConfig
from training.runtime.errors import InputError
from training.task import Task

NOTABLE = 0.05
"""A rise of the learning rate by so much of its peak, which the schedule so far had not in it, is said."""


def learning_rate_scale(config: ScheduleConfig, step: int, num_steps: int) -> float:
    """The share of the peak learning rate that step `step` of 1 to `num_steps` uses, between 0 and 1.

    The first step after the warm-up stands at the peak; the last step stands at `final_ratio`.
    """
    if step <= config.restart_step:
        num_steps = config.restart_step
    else:
        step, num_steps = step - config.restart_step, num_steps - config.restart_step
    if step <= config.warmup_steps:
        return step / (config.warmup_steps + 1)
    decay_steps = num_steps - config.warmup_steps
    if config.name == "wsd":
        decay_steps = min(decay_steps, math.ceil(config.decay_fraction * num_steps))
    progress = (step - (num_steps - decay_steps)) / decay_steps if config.name != "constant" else 0.0
    progress = min(max(progress, 0.0), 1.0)
    height = 0.5 * (1 + math.cos(math.pi * progress)) if config.name == "cosine" else 1 - progress
    return config.final_ratio + (1 - config.final_ratio) * height


def jump(before: ScheduleConfig, steps_before: int, now: ScheduleConfig, num_steps: int, step: int) -> str | None:
    """A line on a learning rate that goes up at once where a run goes on after `step` with another end or schedule.

    None where it does not, or where the schedule begins once more there, as asked.
    """
    # Past its end the schedule so far says nothing: there it stays where it ended.
    last, due = (learning_rate_scale(before, min(at, steps_before), steps_before) for at in (step, step + 1))
    if step >= num_steps or now.restart_step == step:
        return None
    first = learning_rate_scale(now, step + 1, num_steps)
    if first <= due + NOTABLE:
        return None
    return (
        f"the learning rate goes from {last:.3g} of its peak to {first:.3g} at once: --schedule.restart_step {step} "
        f"warms it up instead, --schedule.name constant holds it at a peak of your own"
    )


def count_steps(config: RunConfig, task: Task) -> int:
    """Optimizer steps of a whole run: `max_steps`, what `epochs` needs or what `max_tokens` allows, the least of them.

    Raises:
        InputError: `max_tokens` does not allow a single one.
    """
    training, data = config.training, task.data
    limits = [] if training.max_steps is None else [training.max_steps]
    if training.epochs is not None:
        limits.append(math.ceil(training.epochs * data.samples_per_epoch / training.batch_size))
    if training.max_tokens is not None:
        tokens = training.batch_size * data.tokens_per_sample
        if training.max_tokens < tokens:
            raise InputError(
                f"training.max_tokens must be at least the {tokens:,.0f} tokens of one step, got {training.max_tokens}"
            )
        limits.append(int(training.max_tokens // tokens))
    return min(limits)
