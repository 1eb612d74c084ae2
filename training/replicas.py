"""Whether all ranks still have the same weights. DDP adds up their gradients, and never compares weights.

Of weights in shards (`training.sharding`) there is one copy, each rank's rows being its own: nothing is compared.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from training.runtime.errors import DivergedReplicasError
from training.saving import Saver
from training.sharding import is_sharded
from training.storage.checkpoint import checkpoint_name
from training.storage.state import Counters

CHUNK = 1 << 20
"""Numbers that are hashed at once."""
ODD = 0x9E3779B97F4A7C15 - (1 << 64)
"""2^64 over the golden ratio, as a signed integer."""


@torch.no_grad()
def weights_hash(parameters: Iterable[Tensor]) -> Tensor:
    """Hash the bits of all parameters, in their order, to an integer of 64 bits, on their device.

    A chunk's hash is the sum of its bits, as integers, times an odd number of each place: one bit that is another
    always shows. Sums of integers are the same on every kind of device.
    """
    parameters = list(parameters)
    multipliers = torch.arange(1, 2 * CHUNK, 2, device=parameters[0].device) * ODD
    odd_numbers = (multipliers ^ (multipliers >> 32)) | 1
    result = torch.zeros((), dtype=torch.int64, device=multipliers.device)
    for parameter in parameters:
        bits = parameter.detach().flatten().view(torch.int16 if parameter.element_size() == 2 else torch.int32)
        for chunk in torch.split(bits, CHUNK):
            result = (chunk * odd_numbers[: len(chunk)]).sum() + result * ODD
    return result


def check_replicas(saver: Saver, counters: Counters) -> None:
    """Compare the weights of all ranks, by one number of each; every rank calls this.

    Args:
        saver: Of the run.
        counters: Where it stands; at its last evaluation the weights were the same.

    Raises:
        DivergedReplicasError: They are not.
    """
    accelerator = saver.accelerator
    if accelerator.num_processes == 1 or is_sharded(saver.task.model):
        return
    own = weights_hash(saver.task.model.parameters())
    by_rank = own.new_zeros(accelerator.num_processes)
    by_rank[accelerator.process_index] = own
    first, *others = accelerator.reduce(by_rank, "sum").tolist()
    diverged = [str(rank) for rank, other in enumerate(others, 1) if other != first]
    if diverged:
        ranks = f"rank {diverged[0]}" if len(diverged) == 1 else f"ranks {', '.join(diverged)}"
        raise DivergedReplicasError(
            f"at step {counters.step} the weights of {ranks} are not those of rank 0: a card or its memory miscounts, "
            f"or the ranks compute by different code. {_recovery_advice(saver, counters.val_step)}"
        )


def _recovery_advice(saver: Saver, last_equal: int | None) -> str:
    """What to do about weights that were equal at a step, and are not any more."""
    steps, run = saver.store.steps(), saver.run
    good = [step for step in steps if last_equal is not None and step <= last_equal]
    if not good:
        return "No checkpoint is known to be good: test the cards, and start the run anew"
    doubtful = ", ".join(checkpoint_name(step) for step in steps if step > good[-1])
    remove = f"remove {doubtful} beside it, " if doubtful else ""
    return (
        f"The last good checkpoint is {run.checkpoints / checkpoint_name(good[-1])}: test the cards, {remove}"
        f"and go on with: {run.resume_command}"
    )
