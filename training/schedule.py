"""The learning rate as a function of the step."""

import math

from training.config import ScheduleConfig


def learning_rate_scale(config: ScheduleConfig, step: int, num_steps: int) -> float:
    """The share of the peak learning rate that step `step` of 1 to `num_steps` uses, between 0 and 1.

    The first step after the warm-up stands at the peak; the last step stands at `final_ratio`.
    """
    if step <= config.warmup_steps:
        return step / (config.warmup_steps + 1)
    decay_steps = num_steps - config.warmup_steps
    if config.name == "wsd":
        decay_steps = min(decay_steps, math.ceil(config.decay_fraction * num_steps))
    progress = (step - (num_steps - decay_steps)) / decay_steps if config.name != "constant" else 0.0
    progress = min(max(progress, 0.0), 1.0)
    height = 0.5 * (1 + math.cos(math.pi * progress)) if config.name == "cosine" else 1 - progress
    return config.final_ratio + (1 - config.final_ratio) * height
