"""What a run says of its work and memory at its start: what costs nothing to know."""

from training.config.sections import RunConfig
from training.config.shape import TransformerConfig
from training.planning.memory import expected_bytes
from training.planning.report import duration, flops
from training.planning.work import work_of
from training.runtime.sizes import gigabytes
from training.storage.state import Counters
from training.task import Task, batches_vary, padded_length


def work_line(task: Task, config: RunConfig, counters: Counters) -> str:
    """Floating point operations of a step and of the run; of a run that goes on also the time to its end."""
    run = work_of(task, config)
    text = f"{flops(run.flops)} a step, {flops(run.steps * run.flops)} in all"
    if not counters.step or not counters.seconds or counters.step >= run.steps:
        return text
    left = counters.seconds / counters.step * (run.steps - counters.step)
    return f"{text}; {duration(left)} of training left at the speed so far"


def memory_line(task: Task, config: RunConfig, precision: str, sequences: int, shards: int = 1) -> str | None:
    """What a step takes of each device by formula, largest parts first; None for a model of another kind.

    Args:
        task, config, precision: Of the run.
        sequences: How many go through the model at once.
        shards: How many devices share weights and optimizer.
    """
    if not isinstance(config.model, TransformerConfig):
        return None
    length, varying = padded_length(task.data, config.training.batch_size), batches_vary(task.data)
    asked = task.model, config, precision, sequences * length
    parts = expected_bytes(*asked, length=length, shards=shards, varying=varying)
    sizes = sorted(parts.items(), key=lambda part: part[1], reverse=True)
    shown = ", ".join(f"{name.partition(',')[0]} {gigabytes(size)}" for name, size in sizes[:3])
    return f"about {gigabytes(sum(parts.values()))} of each device by formula: {shown}, …"
