"""Which runs of a sweep are hopeless, by a median stopping rule (after Golovin et al. 2017, "Google Vizier").

A run ends early where the lowest loss that it has had is above the median of the lowest ones that the others had had by
the same step. Those that were ended count as well: else the bar would rise with each of them.
"""

import statistics
from collections.abc import Iterable, Sequence

from training.runtime.errors import InputError

MIN_OTHERS = 3
"""Runs that must have come as far as one that is judged."""
GRACE = 0.25
"""The share of its steps in which no run is judged: a high learning rate looks worse than it ends."""
_UNEQUAL = (
    *("training.batch_size", "training.max_steps", "training.max_tokens", "training.epochs", "training.eval_tokens"),
    *("model.max_len", "schedule", "data"),
)
"""Options, and sections, of a grid whose runs are not alike after as many steps."""

Curve = Sequence[tuple[int, float]]
"""The losses of a run with their steps, in rising order."""


def check_comparable(names: Iterable[str]) -> None:
    """Raise an `InputError` where runs of a grid over these options cannot be compared at equal steps."""
    for name in names:
        if name in _UNEQUAL or name.partition(".")[0] in _UNEQUAL:
            raise InputError(f"early_stop compares runs at equal steps: not with a grid over {name}")


def is_hopeless(curve: Curve, others: Iterable[Curve], ended_early: Iterable[Curve], steps: int | None = None) -> bool:
    """Whether a run is to be ended early.

    Args:
        curve: Its losses.
        others: Those of the other runs, whether they have come to their end or are under way.
        ended_early: Those of runs that were ended before; they count with the lowest loss that they had.
        steps: How many it is to do; None for as many as the longest of the others has done.
    """
    if not curve:
        return False
    step, others = curve[-1][0], [other for other in others if other]
    if step < GRACE * (steps or max((other[-1][0] for other in others), default=0)):
        return False
    as_far = [*(other for other in others if other[-1][0] >= step), *ended_early]
    lowest = [min(losses) for other in as_far if (losses := [loss for at, loss in other if at <= step])]
    return len(lowest) >= MIN_OTHERS and min(loss for _, loss in curve) > statistics.median(lowest)
