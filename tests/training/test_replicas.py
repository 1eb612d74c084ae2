"""Whether ranks have the same weights: the number that they compare, and what they say where they have diverged."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from training import replicas
from training.replicas import check_replicas, weights_hash
from training.runtime.errors import DivergedReplicasError
from training.saving import Saver
from training.storage.run_folder import RunFolder
from training.storage.state import Counters


def hash_of(*parameters: Tensor) -> int:
    return int(weights_hash(parameters))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_hash_knows_every_bit_and_place(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "CHUNK", 16)
    torch.manual_seed(0)
    weights = [
        torch.randn(5, 7).to(dtype),
        torch.randn(7).to(dtype),
        torch.randn(7).to(dtype),
        torch.zeros((), dtype=dtype),
    ]
    seen = {hash_of(*weights)}

    def is_new(*parameters: Tensor) -> bool:
        before = len(seen)
        seen.add(hash_of(*parameters))
        return len(seen) > before

    assert hash_of(*(w.clone() for w in weights)) in seen
    width = weights[0].element_size()
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[width]
    for place in (0, 15, 16, 34):
        for bit in (0, 1, 8 * width - 2, 8 * width - 1):
            changed = weights[0].clone()
            changed.view(integer).view(-1)[place] ^= torch.tensor(1).to(integer) << bit
            assert is_new(changed, *weights[1:]), f"bit {bit} of number {place}"
    for a, b in ((0, 1), (0, 16), (3, 34)):
        swapped = weights[0].clone()
        swapped.view(-1)[[a, b]] = swapped.view(-1)[[b, a]]
        assert is_new(swapped, *weights[1:])
    assert is_new(weights[0], weights[2], weights[1], weights[3]), "two parameters change places"
    assert is_new(weights[0].mT, *weights[1:])
    assert is_new(*weights[:3], -weights[3]), "zero has a sign"
    negative = weights[0].clone()
    negative[0, :2] *= -1
    assert is_new(negative, *weights[1:]), "two signs"


def test_the_hash_does_not_copy_all_that_it_reads() -> None:
    """A large parameter is read in chunks."""
    with torch.profiler.profile(profile_memory=True) as profile:
        hash_of(torch.zeros(8 * replicas.CHUNK))
    taken = max(event.self_cpu_memory_usage for event in profile.events() if event.name == "aten::mul")
    assert taken <= 8 * replicas.CHUNK


def saver_of(folder: Path, differing: list[int], steps: list[int], num_processes: int) -> Saver:
    """What the check asks of a run's saver, as rank 0 of several ranks, some of which have other weights."""

    def reduce(numbers: Tensor, how: str) -> Tensor:
        assert how == "sum"
        assert not numbers[1:].any()
        return torch.stack([numbers[0] + (rank in differing) for rank in range(num_processes)])

    accelerator = SimpleNamespace(num_processes=num_processes, process_index=0, reduce=reduce)
    task, store = SimpleNamespace(model=nn.Linear(2, 2)), SimpleNamespace(steps=lambda: steps)
    return cast(Any, SimpleNamespace(accelerator=accelerator, task=task, store=store, run=RunFolder(folder)))


def test_replicas_that_have_diverged_end_the_run_with_what_to_do(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    counters = Counters(step=40, val_step=20)
    check_replicas(saver_of(tmp_path, [], [10, 20], 1), counters)
    check_replicas(saver_of(tmp_path, [], [10, 20], 3), counters)
    with pytest.raises(DivergedReplicasError) as caught:
        check_replicas(saver_of(tmp_path, [1, 3], [10, 20, 30, 35], 4), counters)
    assert str(caught.value) == (
        "at step 40 the weights of ranks 1, 3 are not those of rank 0: a card or its memory miscounts, or the ranks "
        f"compute by different code. The last good checkpoint is {tmp_path}/checkpoints/step-00000020: test the cards, "
        f"remove step-00000030, step-00000035 beside it, and go on with: {run.resume_command}"
    )
    assert (caught.value.exit_code, caught.value.shared) == (1, True)
    with pytest.raises(DivergedReplicasError, match="the weights of rank 1 are .* test the cards, and go on with: "):
        check_replicas(saver_of(tmp_path, [1], [10, 20], 2), counters)
    for never in (Counters(step=40), Counters(step=40, val_step=5)):
        with pytest.raises(DivergedReplicasError, match="No checkpoint is known to be good: test the cards, and start"):
            check_replicas(saver_of(tmp_path, [1], [10], 2), never)
