"""Orthogonal matrices, and how they are dealt out over the ranks."""

import math
from collections.abc import Callable
from threading import Barrier, Thread, local
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from training import orthogonal
from training.config.sections import OptimizerConfig
from training.optimizer import MuonAdamW
from training.orthogonal import deal, orthogonalize, orthogonalized

SHAPES = ((6, 6), (4, 12), (6, 6), (12, 4), (6, 6), (4, 12), (6, 6), (6, 6))


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 6, 20), (2, 20, 6)])
def test_orthogonalize_brings_singular_values_near_one_and_keeps_the_vectors(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(*shape, dtype=torch.float64)
    result = orthogonalize(matrices, torch.float64)
    singular = torch.linalg.svdvals(result)
    assert singular.max() < 1.3
    assert singular.median() > 0.65
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    turned = left.mT @ result @ right.mT
    off_diagonal = turned - torch.diag_embed(turned.diagonal(dim1=-2, dim2=-1))
    assert off_diagonal.abs().max() < 1e-10


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_products_of_the_short_side_alone_give_what_the_steps_give(dtype: torch.dtype, bound: float) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, 48, 144, dtype=dtype)
    matrices[1, 24:] = matrices[1, :24]  # Half of its rank.
    matrices[2] *= torch.logspace(0, -6, 48, dtype=dtype)[:, None]
    matrices /= matrices.norm(dim=(-2, -1), keepdim=True)
    expected = orthogonal._by_steps(matrices)
    torch.testing.assert_close(orthogonal._by_gram(matrices), expected, rtol=0, atol=bound)
    torch.testing.assert_close(orthogonalize(matrices.mT, dtype), expected.mT, rtol=0, atol=max(bound, 1e-6))


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
def test_every_matrix_is_dealt_to_one_rank_and_each_has_about_as_much_to_do(num_ranks: int) -> None:
    shapes = ((384, 384),) * 24 + ((1024, 384),) * 12 + ((384, 1024),) * 6 + ((64, 384),) * 3
    dealt = deal(shapes, num_ranks)
    assert [shape for shape, _ in dealt] == [(1024, 384), (384, 1024), (384, 384), (64, 384)]
    work = [0] * num_ranks
    for shape, shares in dealt:
        assert sorted(place for share in shares for place in share) == [i for i, s in enumerate(shapes) if s == shape]
        counts = [len(share) for share in shares]
        assert max(counts) - min(counts) <= 1
        short, long = sorted(shape)
        work = [before + count * short * short * (2 * long + short) for before, count in zip(work, counts, strict=True)]
    assert max(work) < 1.4 * sum(work) / num_ranks


class Ranks:
    """Threads that are the ranks of a launch, as `torch.distributed` shows them."""

    def __init__(self, count: int) -> None:
        self._count, self._barrier, self._sent = count, Barrier(count), dict[int, Tensor]()
        self._here = local()

    def rank_and_number(self) -> tuple[int, int]:
        return self._here.rank, self._count

    def all_gather(self, received: Tensor, sent: Tensor, *, async_op: bool) -> Any:
        """Nothing is there before the wait."""
        self._sent[self._here.rank] = sent
        self._barrier.wait(10)
        everything = torch.cat([self._sent[rank] for rank in range(self._count)])
        self._barrier.wait(10)
        return SimpleNamespace(wait=lambda: received.copy_(everything))

    def run(self, work: Callable[[], Any]) -> list[Any]:
        """What each rank makes of the same work."""
        results: list[Any] = [None] * self._count

        def run(rank: int) -> None:
            self._here.rank = rank
            results[rank] = work()

        threads = [Thread(target=run, args=(rank,)) for rank in range(self._count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


def on_ranks(num_ranks: int, monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any]) -> list[Any]:
    """What each of several ranks makes of the same work."""
    ranks = Ranks(num_ranks)
    monkeypatch.setattr(orthogonal, "_rank_and_number", ranks.rank_and_number)
    for name in ("all_gather_single", "all_gather_into_tensor"):
        monkeypatch.setattr(orthogonal.dist, name, ranks.all_gather, raising=False)
    return ranks.run(work)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
def test_each_matrix_is_orthogonalized_on_one_rank_and_known_to_all(
    num_ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    matrices = [torch.randn(shape, dtype=torch.float64) for shape in SHAPES]
    computed = list[int]()

    def counting(matrices_NRC: Tensor, dtype: torch.dtype) -> Tensor:
        computed.append(len(matrices_NRC))
        return orthogonalize(matrices_NRC, dtype)

    def work() -> dict[int, Tensor]:
        chosen = orthogonalized(
            lambda places: [matrices[i] for i in places], SHAPES, torch.float64, torch.device("cpu")
        )
        return {i: matrix for places, found in chosen for i, matrix in zip(places, found, strict=True)}

    monkeypatch.setattr(orthogonal, "orthogonalize", counting)
    results = on_ranks(num_ranks, monkeypatch, work)
    assert sum(computed) == len(SHAPES)
    for result in results:
        assert sorted(result) == list(range(len(SHAPES)))
        for place, matrix in result.items():
            torch.testing.assert_close(
                matrix, orthogonalize(matrices[place][None], torch.float64)[0], rtol=0, atol=1e-12
            )
            assert torch.equal(matrix, results[0][place]), "to the same bits everywhere"


def test_steps_are_the_same_on_any_number_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp64, with a step that is left out on the way."""

    def train() -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        params = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
        group = {"params": params, "muon": True, "lr": 0.1, "weight_decay": 0.1}
        optimizer = MuonAdamW([group], OptimizerConfig(), torch.float64)
        for step in range(4):
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype) * (math.nan if step == 2 else 1.0)
            optimizer.found_inf = torch.tensor(float(step == 2))
            optimizer.step()
        return params + [optimizer.state[p]["momentum"] for p in params]

    (alone,) = on_ranks(1, monkeypatch, train)
    for num_ranks in (2, 3):
        together = on_ranks(num_ranks, monkeypatch, train)
        for ours, expected in zip(together[0], alone, strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-8)
        for others in together[1:]:
            assert all(torch.equal(a, b) for a, b in zip(together[0], others, strict=True))
