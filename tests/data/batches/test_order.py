"""The order of samples: every one once an epoch, as if by chance, whatever the number; nothing is listed for it."""

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from data.batches.order import ROUNDS, drawn, epoch_samples, permuted
from data.batches.windows import TextData

HUGE = 10**12


def order(size: int, seed: int = 3, epoch: int = 0) -> list[int]:
    [(number, samples)] = epoch_samples(epoch * size, size, num_samples=size, seed=seed)
    assert number == epoch
    return samples.tolist()


def orders(size: int, epochs: int) -> np.ndarray:
    keys = np.random.default_rng(5)
    places = np.arange(size, dtype=np.uint64)
    return np.stack([permuted(places, size, keys.bytes(8 * ROUNDS)) for _ in range(epochs)])


def surprise(counts: np.ndarray, expected: float, freedom: int) -> float:
    """How many standard deviations a chi-squared lies above its mean."""
    return float((((counts - expected) ** 2).sum() / expected - freedom) / (2 * freedom) ** 0.5)


@pytest.mark.parametrize("size", [*range(1, 40), 97, 99, 100, 101, 4096, 65_537])
def test_an_epoch_holds_every_sample_once(size: int) -> None:
    assert sorted(order(size)) == list(range(size))


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    found = {tuple(order(50, seed, epoch)) for seed in (0, 1, 2**32 + 1, 2**63 - 1) for epoch in range(5)}
    assert len(found) == 20


def test_the_orders_are_these() -> None:
    """A changed order is a new version: runs that have begun could not go on."""
    assert order(10, seed=1) == [5, 4, 3, 6, 7, 9, 0, 8, 1, 2]
    assert order(10, seed=1, epoch=1) == [1, 8, 9, 3, 5, 2, 4, 6, 7, 0]
    [(_, samples)] = epoch_samples(5 * HUGE + 7, 3, num_samples=HUGE, seed=1)
    assert samples.tolist() == [724528964008, 36987782137, 508577766587]
    assert drawn(HUGE, 1, 2, "offset") == 52540491552


def test_samples_run_on_over_several_epochs() -> None:
    parts = list(epoch_samples(8, 15, num_samples=10, seed=3))
    assert [(epoch, len(samples)) for epoch, samples in parts] == [(0, 2), (1, 10), (2, 3)]
    assert parts[1][1].tolist() == order(10, epoch=1)


def test_a_sample_depends_on_its_place_alone() -> None:
    for size in (33, HUGE):
        [(_, together)] = epoch_samples(10, 20, num_samples=size, seed=3)
        alone = [next(epoch_samples(10 + i, 1, num_samples=size, seed=3))[1] for i in range(20)]
        assert torch.equal(together, torch.cat(alone))


def test_samples_of_a_trillion_cost_what_those_of_ten_do() -> None:
    [(epoch, samples)] = epoch_samples(3 * HUGE + HUGE // 2, 50_000, num_samples=HUGE, seed=3)
    assert epoch == 3
    assert len(samples.unique()) == 50_000
    counts = np.histogram(samples.numpy(), 100, (0, HUGE))[0]
    assert counts.sum() == 50_000
    assert abs(surprise(counts, 500, 99)) < 5
    assert samples.dtype == torch.int64


@pytest.mark.parametrize("size", [3, 4, 5])
def test_all_orders_of_few_samples_are_equally_likely(size: int) -> None:
    number = math.factorial(size)
    found = Counter(map(tuple, orders(size, 40 * number).tolist()))
    counts = np.array([found[those] for those in itertools.permutations(range(size))])
    assert abs(surprise(counts, 40, number - 1)) < 5


@pytest.mark.parametrize("size", [9, 50])
def test_every_place_takes_every_sample_equally_often(size: int) -> None:
    epochs = 1500
    found = orders(size, epochs)
    places = np.stack([np.bincount(column, minlength=size) for column in found.T])
    assert abs(surprise(places, epochs / size, (size - 1) ** 2)) < 5
    steps = np.bincount(((found[:, 1:] - found[:, :-1]) % size).ravel(), minlength=size)[1:]
    assert abs(surprise(steps, epochs, size - 2)) < 5, "what follows a sample"
    fixed = (found == np.arange(size)).sum()
    assert abs(fixed - epochs) < 5 * epochs**0.5, "one in the mean stays where it was"
    even = sum(sum((row[i] > row[i + 1 :]).sum() for i in range(size)) % 2 == 0 for row in found[:400])
    assert abs(even - 200) < 5 * 10, "as many even orders as odd ones"


def test_windows_of_a_text_of_billions_of_tokens_begin_all_over_it(tmp_path: Path) -> None:
    length, context = 3 * 2**30, 8
    tokens_N = np.memmap(tmp_path / "tokens", np.uint8, "w+", shape=(length,))  # A file with a hole: it takes no room.
    text = TextData.__new__(TextData)
    text.context, text.seed, text.samples_per_epoch = context, 1, length // context
    text._train_N, text._unit = torch.from_numpy(tokens_N), "tokens"
    [(_, starts_B)] = text._starts(10**7, 12)
    assert int((starts_B > 2**31).sum()) in range(1, 12)
    assert len({int(start) % context for start in starts_B}) == 1
    for number, start in enumerate(starts_B.tolist()):
        tokens_N[start] = number
    batch = text.training_batch(10**7, 12)
    assert batch.inputs[0][:, 0].tolist() == list(range(12))
    assert f"windows at tokens {starts_B[0]:,}; " in text.describe_samples(10**7, 12)


def test_neighbours_in_a_long_epoch_are_strangers() -> None:
    size = 200_000
    first, second = (np.array(order(size, epoch=epoch), dtype=float) for epoch in (0, 1))
    pairs = [(first, np.arange(size)), (first, second), *((first[:-k], first[k:]) for k in (1, 2, 447, 448, 449))]
    assert max(abs(np.corrcoef(*pair)[0, 1]) for pair in pairs) < 5 / size**0.5


def test_numbers_drawn_for_epochs_reach_all_of_a_long_text() -> None:
    found = np.array([drawn(HUGE, 3, epoch, "offset") for epoch in range(2000)])
    assert found.max() < HUGE
    assert abs(surprise(np.histogram(found, 20, (0, HUGE))[0], 100, 19)) < 5
    assert drawn(1, 3, 0, "offset") == 0
    assert drawn(HUGE, 3, 0, "other") != found[0]
