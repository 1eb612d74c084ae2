"""Which runs are hopeless."""

import pytest

from training.runtime.errors import InputError
from training.sweep.early_stop import check_comparable, is_hopeless

GOOD = [(10, 3.0), (20, 2.0), (30, 1.0)]
"""Of 30 steps."""


def curve(*losses: float) -> list[tuple[int, float]]:
    return [(10 * (place + 1), loss) for place, loss in enumerate(losses)]


def test_a_run_is_hopeless_that_is_worse_than_the_median_at_the_same_step() -> None:
    others = [curve(3.0, 2.0, 1.0), curve(3.2, 2.2, 1.0), curve(3.4, 2.4, 1.0)]
    assert is_hopeless(curve(3.0, 2.3), others, [])
    assert not is_hopeless(curve(3.0, 2.2), others, []), "no worse than the median"
    assert not is_hopeless(curve(2.1, 2.9), others, []), "its lowest loss counts"
    assert not is_hopeless([], others, [])


def test_three_others_must_have_come_as_far() -> None:
    assert not is_hopeless(curve(9.0, 9.0), [GOOD, GOOD, curve(3.0)], [])
    assert is_hopeless(curve(9.0, 9.0), [GOOD, GOOD, curve(3.0, 2.0)], [])


def test_runs_that_were_ended_count_with_their_lowest_loss() -> None:
    ended = [curve(5.0), curve(6.0)]
    assert not is_hopeless(curve(3.0, 2.5), [GOOD, GOOD], ended)
    assert is_hopeless(curve(3.0, 2.5), [GOOD, GOOD, GOOD], ended)


def test_the_first_quarter_of_a_run_is_not_judged() -> None:
    others = [GOOD] * 3
    assert not is_hopeless(curve(9.0), others, [], steps=41)
    assert is_hopeless(curve(9.0), others, [], steps=40)
    longer = [[*GOOD, (50, 1.0)]] * 3
    assert not is_hopeless(curve(9.0), longer, []), "of the longest of the others, where nothing else is known"


def test_runs_that_are_not_alike_at_equal_steps_are_not_compared() -> None:
    check_comparable(["optimizer.learning_rate", "model.d_model"])
    for name in ("training.batch_size", "data.tokenizer", "schedule.name", "model.max_len", "training.eval_tokens"):
        with pytest.raises(InputError, match=f"not with a grid over {name}"):
            check_comparable([name])
