"""Muon's directions: matrices made orthogonal, each on one of the ranks.

Shapes: N matrices of one shape, O those of them that a rank owns, R rows, L those of them that a rank holds, C columns.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import torch
import torch.distributed as dist
from torch import Tensor

ORTHOGONAL_STEPS = 5
QUINTIC = 3.4445, -4.7750, 2.0315

Shares = list[list[int]]
"""For each rank, the indices of its matrices."""


def orthogonalize(matrices_NRC: Tensor, dtype: torch.dtype) -> Tensor:
    """Bring all singular values of each matrix near 1, keeping its singular vectors.

    Five Newton-Schulz steps with the quintic `a X + b (X X^T) X + c (X X^T)^2 X` (Jordan et al. 2024, "Muon"): the
    values end between about 0.7 and 1.2.

    Args:
        matrices_NRC: N matrices of R rows and C columns.
        dtype: What to compute in.

    Returns:
        N matrices of R x C, in `dtype`.
    """
    tall = matrices_NRC.size(-2) > matrices_NRC.size(-1)
    x = matrices_NRC.mT if tall else matrices_NRC
    norms = x.norm(dim=(-2, -1), keepdim=True) + 1e-7
    x = torch.div(x, norms, out=torch.empty_like(x, dtype=dtype))  # Rounded once, in one pass.
    # A product of products wants more bits than the tensor cores of a GPU read.
    exact = x.device.type == "cpu" and dtype in (torch.float32, torch.float64)
    x = _by_gram(x) if exact and x.size(-1) >= 2 * x.size(-2) else _by_steps(x)
    return x.mT.contiguous() if tall else x


def _by_steps(x_NSL: Tensor) -> Tensor:
    """The steps one after the other, of matrices with a short side S and a long one L."""
    a, b, c = QUINTIC
    for _ in range(ORTHOGONAL_STEPS):
        gram_NSS = x_NSL @ x_NSL.mT
        x_NSL = torch.baddbmm(x_NSL, torch.baddbmm(gram_NSS, gram_NSS, gram_NSS, beta=b, alpha=c), x_NSL, beta=a)
    return x_NSL


def _by_gram(x_NSL: Tensor) -> Tensor:
    """The same steps with S x S products between the first and the last: 17 of them for 5 L / S + 5 of X's own.

    A step is `X <- P X` with `P = a I + b G + c G^2`, for `G = X X^T`; so `G <- P G P`, and X is multiplied once, by
    the product of all P. In fp32 it differs from the steps by less than 1e-4 of the largest singular value.
    """
    a, b, c = QUINTIC
    gram_NSS = x_NSL @ x_NSL.mT
    all_NSS = None
    for left in reversed(range(ORTHOGONAL_STEPS)):
        step_NSS = torch.baddbmm(gram_NSS, gram_NSS, gram_NSS, beta=b, alpha=c)
        step_NSS.diagonal(dim1=-2, dim2=-1).add_(a)
        all_NSS = step_NSS if all_NSS is None else step_NSS @ all_NSS
        if left:
            gram_NSS = step_NSS @ gram_NSS @ step_NSS
    assert all_NSS is not None
    return all_NSS @ x_NSL


@lru_cache(maxsize=16)
def deal(shapes: tuple[tuple[int, int], ...], num_ranks: int) -> list[tuple[tuple[int, int], Shares]]:
    """Deal matrices out over the ranks, by what they cost; the same on every rank.

    Of each shape a rank takes as many as any other or one less, so that little is gathered in vain; the one more goes
    to those that have the least to do so far.

    Returns:
        For each shape, the costliest first, the indices in `shapes` of what each rank takes.
    """
    indices: dict[tuple[int, int], list[int]] = {}
    for index, shape in enumerate(shapes):
        indices.setdefault(shape, []).append(index)
    dealt, costs = [], [0] * num_ranks
    for shape in sorted(indices, key=_cost, reverse=True):
        idlest_first = sorted(range(num_ranks), key=costs.__getitem__)
        shares = [indices[shape][idlest_first.index(rank) :: num_ranks] for rank in range(num_ranks)]
        costs = [cost + len(share) * _cost(shape) for cost, share in zip(costs, shares, strict=True)]
        dealt.append((shape, shares))
    return dealt


def _cost(shape: tuple[int, int]) -> int:
    """Multiplications of a Newton-Schulz step."""
    short, long = sorted(shape)
    return short * short * (2 * long + short)


def orthogonalized(
    matrices: Callable[[Sequence[int]], Sequence[Tensor]],
    shapes: Sequence[tuple[int, int]],
    dtype: torch.dtype,
    device: torch.device,
) -> Iterator[tuple[list[int], Tensor]]:
    """Orthogonalise matrices, each on one rank, and give all of them to every rank, to the same bits.

    While those of one shape are on their way, the next are computed.

    Args:
        matrices: Gives those at some indices; this rank asks for its own alone.
        shapes: Those of all matrices, in the order of their indices.
        dtype: What to compute and send in.
        device: Where the matrices are.

    Yields:
        For each shape, the indices of its matrices, and the orthogonal N of R x C there.
    """
    rank, num_ranks = _rank_and_number()
    under_way = []
    for shape, shares in deal(tuple(shapes), num_ranks):
        own = torch.empty(0, *shape, dtype=dtype, device=device)
        if shares[rank]:
            own = orthogonalize(torch.stack(tuple(matrices(shares[rank]))), dtype)
        under_way.append((shares, *_send(own, max(map(len, shares)), num_ranks)))
    for shares, all_NRC, sending in under_way:
        if sending is not None:
            sending.wait()
            by_rank = all_NRC.chunk(num_ranks)
            all_NRC = torch.cat([part[: len(share)] for part, share in zip(by_rank, shares, strict=True)])
        yield [index for share in shares for index in share], all_NRC


def orthogonalized_shards(
    rows: Callable[[Sequence[int]], Sequence[Tensor]],
    shapes: Sequence[tuple[int, int]],
    dtype: torch.dtype,
    device: torch.device,
) -> Iterator[tuple[list[int], Tensor]]:
    """`orthogonalized` where of each matrix every rank holds some rows, and wants no more of it back.

    Of each shape the rows go to the ranks that own the matrices, which send back the rows of what comes out: so each
    rank holds its share of whole matrices.

    Args:
        rows: Gives this rank's rows of the matrices at some indices.
        shapes, dtype, device: As of `orthogonalized`.

    Yields:
        For each shape, the indices of its matrices, and this rank's rows of the orthogonal ones, N of L x C.
    """
    rank, num_ranks = _rank_and_number()
    arriving, leaving = [], []
    for shape, shares in deal(tuple(shapes), num_ranks):
        empty_0LC = torch.empty(0, rows_of_ranks(shape[0], num_ranks)[rank], shape[1], device=device)
        sent = [torch.stack(tuple(rows(share))) if share else empty_0LC for share in shares]
        owned, held = len(shares[rank]), rows_of_ranks(shape[0], num_ranks)
        arriving.append((shape, shares, _swap(sent, [(owned, count, shape[1]) for count in held])))
    for shape, shares, (parts_OLC, arrival) in arriving:
        arrival.wait()
        whole_ORC = torch.cat(parts_OLC, dim=1)
        done_ORC = orthogonalize(whole_ORC, dtype) if shares[rank] else whole_ORC.to(dtype)
        held = rows_of_ranks(shape[0], num_ranks)
        back = [(len(share), held[rank], shape[1]) for share in shares]
        leaving.append((shares, _swap(torch.split(done_ORC, held, dim=1), back)))
    for shares, (parts_OLC, arrival) in leaving:
        arrival.wait()
        yield [index for share in shares for index in share], torch.cat(parts_OLC)


def rows_of_ranks(count: int, num_ranks: int) -> list[int]:
    """How many of `count` rows each rank holds: as many as the first, until there are no more (`torch.chunk`)."""
    most = -(-count // num_ranks)
    return [max(0, min(most, count - rank * most)) for rank in range(num_ranks)]


def _swap(sent: Sequence[Tensor], shapes: Sequence[tuple[int, int, int]]) -> tuple[list[Tensor], "dist.Work"]:
    """Begin to send each rank a tensor, and to receive one of each rank, of these shapes."""
    leaving = torch.cat([tensor.flatten() for tensor in sent])
    sizes = [math.prod(shape) for shape in shapes]
    arriving = leaving.new_empty(sum(sizes))
    work = dist.all_to_all_single(arriving, leaving, sizes, [tensor.numel() for tensor in sent], async_op=True)
    return [part.view(shape) for part, shape in zip(torch.split(arriving, sizes), shapes, strict=True)], work


def _send(own_NRC: Tensor, count: int, num_ranks: int) -> tuple[Tensor, "dist.Work | None"]:
    """Begin to gather up to `count` matrices of each rank, one rank's after the other's, filled up to that number."""
    if num_ranks == 1:
        return own_NRC, None
    sent_NRC = own_NRC.new_zeros(count, *own_NRC.shape[1:])
    sent_NRC[: len(own_NRC)] = own_NRC
    all_NRC = own_NRC.new_empty(num_ranks * count, *own_NRC.shape[1:])
    # Its name since torch 2.13, which deprecates the other.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    return all_NRC, gather(all_NRC, sent_NRC, async_op=True)


def _rank_and_number() -> tuple[int, int]:
    """This process's rank, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
