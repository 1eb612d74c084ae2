"""The parts of `measure.py` that are quick; the figures themselves are made by `make reliability`."""

from pathlib import Path

import pytest
from reliability.isolated import isolated
from reliability.killing import Position, random_aims
from reliability.measure import table
from reliability.save_cost import accelerate_saves, background_saves, former_saves, our_saves

from gpt.config import ModelConfig

KILLS: dict[str, object] = {
    "in_steps": 3,
    "in_evaluations": 4,
    "in_saves": 2,
    "after_first_checkpoint": 8,
    "of_one_rank": 0,
}
DAMAGES: dict[str, object] = {"refused, unnamed": 1, "loaded, differs": 0, "loaded, equal": 0, "ran code": 0}
SAVE: dict[str, object] = {
    "bytes": 1.8e9,
    "median_seconds": 6.0,
    "min_seconds": 5.0,
    "max_seconds": 7.0,
    "max_bytes_more_in_memory": 4e7,
}
REPORT: dict[str, object] = {
    "device": "cpu: a CPU",
    "threads": 2,
    "torch": "2.13.0",
    "accelerate": "1.15.0",
    "kills": [
        KILLS | {"model": "gpt", "precision": "fp32", "processes": n, "kills": 9, "equal": n == 1} for n in (1, 2)
    ],
    "damage": {"this project": DAMAGES | {"damages": 68, "refused, named": 67}},
    "resume": [{"recipe": "--resume", "dropout": 0.1, "same_samples": True, "same_weights": False}],
    "save": {
        "this project": SAVE | {"seconds_of_opening": 0.5, "bytes_more_in_opening": 2e8},
        "Accelerate": SAVE | {"median_seconds_until_flushed": 8.0},
    },
}
TABLE = """\
cpu: a CPU, 2 threads, torch 2.13.0, accelerate 1.15.0

killed and resumed      kills  in steps  in evaluations  in saves  after first checkpoint  of one rank  equal
gpt, fp32, 1 process        9         3               4         2                       8            0    yes
gpt, fp32, 2 processes      9         3               4         2                       8            0     no
in all                     18         6               8         4                      16            0     no

damaged files  damages  refused, named  refused, unnamed  loaded, differs  loaded, equal  ran code
this project        68              67                 1                0              0         0

resumed in the middle of an epoch  dropout  same samples  same weights
--resume                              0.10           yes            no

cost of a save    GB  median s  min s  max s  still s  flushed s  GB more  opening s  GB more
this project    1.80      6.00   5.00   7.00     6.00       6.00     0.04       0.50     0.20
Accelerate      1.80      6.00   5.00   7.00     6.00       8.00     0.04          -        -
"""


def test_the_table_is_readable() -> None:
    assert table(REPORT) == TABLE.strip()


def test_a_part_that_was_left_out_says_why() -> None:
    report = REPORT | {"save": {"left out": "1.0 GB free in /runs, 8 GB needed"}}
    assert table(report).endswith("cost of a save  1.0 GB free in /runs, 8 GB needed")


def test_a_run_tells_where_it_is() -> None:
    place = Position().after("resuming    after step 1,205\n")
    assert place == Position(place="start", step=1205)
    for line, expected in (
        ("step 1206/2000  loss 1.9  lr 1e-3", Position(place="step", step=1206)),
        ("evaluating\n", Position(place="evaluation", step=1206)),
        ("warning     something", Position(place="evaluation", step=1206)),
        ("step 1207/2000  validation loss 1.8  (the best so far)", Position(place="step", step=1207)),
        ("saving 1207\n", Position(place="save", step=1207)),
        ("step 1208/2000  loss 1.9  lr 1e-3", Position(place="save", step=1208)),
        ("saved 1207\n", Position(place="step", step=1208)),
    ):
        place = place.after(line)
        assert place == expected


def test_kills_are_spread_over_run_and_places() -> None:
    aims = random_aims(9, 2, "seed")
    assert aims == random_aims(9, 2, "seed") != random_aims(9, 2, "another")
    assert [aim.step // 12 for aim in aims] == list(range(9))
    assert sorted(aim.place for aim in aims) == ["evaluation"] * 3 + ["save"] * 3 + ["step"] * 3
    assert sum(aim.one_rank for aim in aims) == 3


@pytest.mark.nightly
def test_the_cost_of_a_save_is_measured(tmp_path: Path) -> None:
    model = ModelConfig(num_layers=1, d_model=16, num_heads=2, d_ff=32, max_len=16)
    ways = (our_saves, background_saves, former_saves, accelerate_saves)
    ours, background, former, theirs = (isolated(way, tmp_path / way.__name__, model, 3) for way in ways)
    assert {way["saves"] for way in (ours, background, former, theirs)} == {3}
    assert ours["bytes"] == background["bytes"] == pytest.approx(former["bytes"], rel=0.01)
    assert theirs["bytes"] == pytest.approx(ours["bytes"], rel=0.5), "the same tensors"
    assert 0 < ours["min_seconds"] <= ours["median_seconds"]
    assert 0 < background["median_seconds_standing_still"] < background["median_seconds_until_flushed"]
    assert background["median_steps_meanwhile"] >= 1
    assert {"seconds_of_opening", "bytes_more_in_opening"} <= ours.keys() & former.keys()
    assert theirs["median_seconds"] < theirs["median_seconds_until_flushed"]
