"""The model of several cards, against sums by hand."""

import pytest

from training.planning.links import DIRECT, THROUGH_HOST, Link, Work, find_link, step_seconds, verdicts
from training.runtime.errors import InputError
from training.runtime.hardware import CARDS

LINK = Link("test", bandwidth=10e9, latency=0.0)
MIB = 2**20


def work(compute: float, gradients: int, **changes: float) -> Work:
    return Work(compute=compute, host=0.0, fixed=0.0, gradients=gradients, gathered=0, parts=1)._replace(**changes)


def test_a_step_is_divided_and_waits_for_what_the_backward_pass_does_not_cover() -> None:
    assert step_seconds(work(1.0, 10**9), 1, None) == 1.0
    # 2 (4 - 1) / 4 of 10 GB at 10 GB/s take 1.5 s; two thirds of a quarter of a second cover a part.
    assert step_seconds(work(1.0, 10**10), 4, LINK) == pytest.approx(0.25 + 1.5 - 0.25 * 2 / 3)
    # Of 401 MiB in 17 buckets only the last one waits, where computing takes long.
    sending = 401 * MIB / 10e9
    assert step_seconds(work(8.0, 401 * MIB), 2, LINK) == pytest.approx(4.0 + sending / 17)
    # A single bucket is sent when all is computed.
    assert step_seconds(work(8.0, MIB), 2, LINK) == pytest.approx(4.0 + MIB / 10e9)


def test_what_is_not_divided_stays() -> None:
    two = step_seconds(work(1.0, 0, fixed=0.1, host=0.2, parts=4), 2, LINK)
    assert two == pytest.approx(4 * 0.2 + 0.1), "the host launches as much for a half of the batch"
    assert step_seconds(work(1.0, 0, gathered=10**9), 2, LINK) == pytest.approx(0.5 + 0.05)
    slow = LINK._replace(latency=1e-3)
    assert step_seconds(work(1.0, 0), 2, slow) == pytest.approx(0.5 + 3 * 2 * 1e-3), "gradients, targets and losses"


def test_two_cards_lose_with_little_to_compute_and_win_with_much() -> None:
    link = find_link("pcie3-x8", CARDS["NVIDIA GeForce RTX 3090"])
    few, many = work(2e-3, 40 * MIB), work(0.4, 440 * MIB)
    ratios = {size: step_seconds(w, 1, link) / step_seconds(w, 2, link) for size, w in (("few", few), ("many", many))}
    assert ratios["few"] < 1 < 1.8 < ratios["many"] < 2
    assert verdicts({2: ratios["few"]}) == {2: "two cards lose"}
    assert verdicts({2: 1.9, 4: 1.8, 8: 2.5}) == {
        2: "two cards win",
        4: "four cards are no faster than two",
        8: "eight cards win",
    }
    assert verdicts({2: 1.01}) == {2: "two cards are no faster than one"}


def test_links_by_name_and_by_number() -> None:
    geforce, h200 = CARDS["NVIDIA GeForce RTX 4090"], CARDS["NVIDIA H200"]
    assert find_link(None, geforce) == find_link("pcie4-x8", geforce)
    assert find_link("pcie4-x8", geforce).bandwidth == pytest.approx(THROUGH_HOST * 15.75e9, rel=1e-3)
    assert find_link("pcie5-x16", h200).bandwidth == pytest.approx(DIRECT * 63e9, rel=1e-3)
    assert find_link(None, h200).name == "nvlink"
    assert find_link("ethernet-1", None).bandwidth < 125e6
    assert find_link("2.5", geforce).bandwidth == 2.5e9, "what was measured is taken as it is"


@pytest.mark.parametrize("asked", ["pcie6-x8", "pcie4-x3", "fast", "0", "-1", "nan", "inf", "ethernet-0", ""])
def test_an_unknown_link_is_one_line(asked: str) -> None:
    with pytest.raises(InputError, match=r"^link must be pcie3-x8 \(to pcie5-x16\), nvlink, ethernet-10 .*, got '"):
        find_link(asked, None)


def test_nvlink_is_for_cards_that_come_with_it() -> None:
    with pytest.raises(InputError, match="link nvlink: the card does not come with it"):
        find_link("nvlink", CARDS["NVIDIA GeForce RTX 4090"])
