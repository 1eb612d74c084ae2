"""Whether several cards are faster than one: a model of what they compute and of what they send each other. No torch.

An all-reduce of G bytes over n cards sends 2 (n - 1) / n G bytes from each of them, in 2 (n - 1) rounds, one after the
other (the ring of NCCL and gloo; github.com/NVIDIA/nccl-tests, doc/PERFORMANCE.md). DDP sends gradients in buckets
while the backward pass computes the next ones, so that of all this only counts what the backward pass does not cover,
and the last bucket, which is full only at its end.
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from training.runtime.errors import InputError
from training.runtime.hardware import Card

PCIE_LANE = {3: 0.985e9, 4: 1.969e9, 5: 3.938e9}
"""Bytes per second of a lane in one direction."""
DIRECT, THROUGH_HOST = 0.85, 0.45
"""The share of PCIe's bytes that an all-reduce gets, where cards reach each other's memory and where they do not.

By tests that owners published: 56 of 63 GB/s between RTX PRO 6000 cards; between RTX 5090 cards with 31.5 GB/s each
way, 15 both ways at once through the host's memory, and 28 with a driver that lets them reach each other.
"""
ETHERNET = 0.94
"""The share that TCP gets of Ethernet's bytes, in frames of 1,500."""
BUCKET, FIRST_BUCKET = 25 * 2**20, 2**20
"""Bytes of gradients that DDP sends at a time."""
GAIN = 1.05
"""What is less is no gain: the model is not that good."""
BACKWARD = 2 / 3
"""The share of a step's computing that its backward pass is."""


class Link(NamedTuple):
    """What joins cards.

    Attributes:
        name: As it was asked for.
        bandwidth: Bytes per second that an all-reduce gets from a card in one direction.
        latency: Seconds of a round.
    """

    name: str
    bandwidth: float
    latency: float


class Work(NamedTuple):
    """What a step is to a single card.

    Attributes:
        compute: Seconds of all forward and backward passes of a batch, and of what of the optimizer's step is divided.
        host: Seconds that the host takes to launch a forward and backward pass, however little it computes.
        fixed: Seconds that every card takes for itself: each changes all weights.
        gradients: Bytes of gradients that are summed.
        gathered: Bytes that are gathered after that: Muon's directions.
        parts: Forward and backward passes in a card's share, of equal size; gradients are sent in the last one.
    """

    compute: float
    host: float
    fixed: float
    gradients: int
    gathered: int
    parts: int


def find_link(asked: str | None, card: Card | None) -> Link:
    """The link that a person means, by its name or by GB/s.

    Args:
        asked: pcie4-x8, nvlink, ethernet-10 (Gbit/s), or a number of GB/s that was measured for an all-reduce; None for
            NVLink where the card has it, else 8 lanes of its own PCIe, which two cards of a desktop board get.
        card: Of which kind; None where that is not known.

    Raises:
        InputError: There is no such link.
    """
    if asked is None:
        generation, lanes = card.pcie if card else (4, 8)
        asked = "nvlink" if card and card.nvlink else f"pcie{generation}-x{min(lanes, 8)}"
    pcie, ethernet = re.fullmatch(r"pcie([345])-x(1|4|8|16)", asked), re.fullmatch(r"ethernet-(\d{1,3})", asked)
    if pcie:
        share = DIRECT if card and card.p2p else THROUGH_HOST
        return Link(asked, share * PCIE_LANE[int(pcie[1])] * int(pcie[2]), 20e-6)
    if ethernet and int(ethernet[1]):
        return Link(asked, ETHERNET * int(ethernet[1]) * 1e9 / 8, 100e-6)
    if asked == "nvlink":
        if card is None or not card.nvlink:
            raise InputError("link nvlink: the card does not come with it; give the GB/s of an all-reduce instead")
        return Link(asked, DIRECT * card.nvlink * 1e9, 10e-6)
    try:
        gigabytes = float(asked)
    except ValueError:
        gigabytes = math.nan
    if not 0 < gigabytes < math.inf:
        raise InputError(
            f"link must be pcie3-x8 (to pcie5-x16), nvlink, ethernet-10 (Gbit/s) or the GB/s of an all-reduce, got "
            f"{asked!r}"
        )
    return Link(f"{gigabytes:g} GB/s", gigabytes * 1e9, 20e-6)


def all_reduce_seconds(size: float, cards: int, link: Link) -> float:
    """Seconds in which several cards add up so many bytes."""
    rounds = 2 * (cards - 1)
    return rounds / cards * size / link.bandwidth + rounds * link.latency


def step_seconds(work: Work, cards: int, link: Link | None) -> float:
    """Seconds of a step on several cards, which share its batch; a link is wanted for more than one."""
    computing = max(work.compute / cards, work.parts * work.host)
    if cards == 1:
        return computing + work.fixed
    assert link is not None
    buckets = 1 + max(0, math.ceil((work.gradients - FIRST_BUCKET) / BUCKET))
    sending = buckets * all_reduce_seconds(work.gradients / buckets, cards, link)
    covered = BACKWARD * computing / work.parts
    waiting = max(sending - covered, sending / buckets)
    gathering = (cards - 1) * (work.gathered / cards / link.bandwidth + link.latency) if work.gathered else 0.0
    counts = 2 * all_reduce_seconds(0, cards, link)  # Of the targets, and of the losses: a step's own two.
    return computing + work.fixed + waiting + gathering + counts


def verdicts(ratios: Mapping[int, float]) -> dict[int, str]:
    """In words, what numbers of cards make of one card's speed, from their ratios to it, the fewest first."""
    words, found, best = {1: "one", 2: "two", 4: "four", 8: "eight"}, {}, 1
    for cards, ratio in ratios.items():
        several = f"{words.get(cards, cards)} cards"
        if ratio < 1:
            found[cards] = f"{several} lose"
        elif ratio <= ratios.get(best, 1.0) * GAIN:
            found[cards] = f"{several} are no faster than {words.get(best, best)}"
        else:
            found[cards], best = f"{several} win", cards
    return found
