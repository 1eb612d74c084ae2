"""Pure functions of the step: learning rate and seeds."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from training.config.sections import ScheduleConfig
from training.schedule import jump, learning_rate_scale
from training.seeds import derive_seed, generator, noise_blocks, seed_device


def scales(num_steps: int, **options: object) -> list[float]:
    config = ScheduleConfig(**options)
    return [learning_rate_scale(config, step, num_steps) for step in range(1, num_steps + 1)]


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd", "constant"])
def test_warm_up_rises_evenly_to_the_peak(name: str) -> None:
    assert scales(100, name=name, warmup_steps=4, decay_fraction=0.5)[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
def test_the_last_step_stands_at_the_final_ratio(name: str) -> None:
    assert scales(50, name=name, warmup_steps=10, final_ratio=0.1)[-1] == pytest.approx(0.1)
    assert scales(50, name=name, warmup_steps=10)[-1] == pytest.approx(0.0, abs=1e-12)


def test_shapes_between_peak_and_end() -> None:
    assert scales(100, name="linear")[24] == pytest.approx(0.75)
    assert scales(100, name="cosine")[24] == pytest.approx(0.5 * (1 + 2**-0.5))
    wsd = scales(100, name="wsd", decay_fraction=0.2)
    assert wsd[:80] == [1.0] * 80
    assert wsd[89] == pytest.approx(0.5)
    assert scales(100, name="constant", final_ratio=0.3) == [1.0] * 100


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
def test_a_learning_rate_never_rises_after_the_warm_up(name: str) -> None:
    values = scales(60, name=name, warmup_steps=7)
    assert all(a >= b for a, b in pairwise(values[7:]))


def test_a_run_shorter_than_its_warm_up_only_rises() -> None:
    values = scales(5, name="cosine", warmup_steps=10)
    assert values == sorted(values)
    assert values[-1] < 0.5


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd", "constant"])
def test_a_restart_is_one_schedule_after_another(name: str) -> None:
    options = {"name": name, "warmup_steps": 3, "final_ratio": 0.1}
    assert scales(50, **options, restart_step=20) == scales(20, **options) + scales(30, **options)
    assert scales(15, **options, restart_step=20) == scales(20, **options)[:15]


def test_a_learning_rate_that_jumps_where_a_run_goes_on_is_said() -> None:
    linear, cosine = ScheduleConfig(name="linear", warmup_steps=20), ScheduleConfig(final_ratio=0.1)
    said = jump(linear, 800, linear, 1600, 800)
    assert said is not None
    assert said.startswith("the learning rate goes from 0 of its peak to 0.506 at once: --schedule.restart_step 800 ")
    assert "--schedule.name constant" in said
    assert "from 0.1 of its peak to 0.549 at once" in str(jump(cosine, 800, cosine, 1600, 800))
    assert "to 1 at once" in str(jump(linear, 800, replace(linear, name="constant"), 1600, 800))
    assert jump(linear, 800, linear, 1600, 400) is not None, "in the middle of a schedule as well"
    assert jump(linear, 800, replace(linear, restart_step=800), 1600, 800) is None
    for step in (5, 400, 800):
        assert jump(linear, 800, linear, 800, step) is None
        assert jump(linear, 800, linear, 810, step) is None, "too little to speak of"
    for steps in (10, 20):
        assert jump(linear, steps, linear, 2 * steps, steps) is None, "a run that ended before its warm-up was over"
    constant = ScheduleConfig(name="constant")
    assert jump(constant, 800, constant, 1600, 800) is None


def test_seeds_differ_by_every_part_and_fit_32_bits() -> None:
    parts = [
        (1, 2, 3, "a"),
        (1, 2, 3, "b"),
        (1, 3, 2, "a"),
        (2, 2, 3, "a"),
        (1, 23, "a"),
        (12, 3, "a"),
        (2**32 + 1, 2, 3, "a"),
    ]
    seeds = [derive_seed(*p) for p in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert max(derive_seed(1, step) for step in range(100)) > 2**31, "all of them"
    assert derive_seed(1, 2, 3, "a") == seeds[0]


def test_a_device_is_seeded_as_torch_seeds_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    drawn, seeded = torch.rand(3), list[int]()
    seed_device(5, torch.device("cpu"))
    assert torch.equal(torch.rand(3), drawn)
    monkeypatch.setattr("torch.cuda.manual_seed", seeded.append)
    seed_device(7, torch.device("cuda", 1))
    assert seeded == [7]
    assert torch.initial_seed() == 7


def test_neighbouring_steps_draw_unrelated_numbers() -> None:
    draws = torch.stack([torch.rand(50, generator=generator(7, step, "x")) for step in range(40)])
    assert draws.corrcoef().fill_diagonal_(0).abs().max() < 0.6


def test_every_block_of_noise_is_new_and_follows_from_the_seed_of_its_row() -> None:
    noise = noise_blocks([4, 5, 4], 8)
    assert len({tuple(noise(row, block).tolist()) for row in (0, 1) for block in range(3)}) == 6
    assert all(torch.equal(noise(2, block), noise(0, block)) for block in (2, 0, 1))
    assert not torch.equal(noise(0, 0), noise(0, 0).float().double()), "as fine as fp64"
