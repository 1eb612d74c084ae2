"""What a run says that has run out of memory: where it was, where the memory went, and what would help most."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from traceback import walk_tb
from typing import NamedTuple

import torch
from torch import nn

from training.config.sections import RunConfig
from training.config.shape import TransformerConfig
from training.loss import MAX_LOGITS_BYTES
from training.planning.memory import expected_bytes
from training.recompute import blocks_of
from training.runtime.device import Runtime
from training.runtime.errors import memory_asked
from training.runtime.precision import has_fast_bf16
from training.runtime.sizes import gigabytes
from training.task import Task, batches_vary, padded_length

STEP, EVALUATION = "in a training step", "in an evaluation"
TRIED = "though a step was cut into single sequences"
STAGES = {
    ("loop.py", "_evaluate"): EVALUATION,
    ("saving.py", "save"): "while a checkpoint was saved",
    ("saving.py", "restore"): "while a checkpoint was loaded",
    ("micro_batch.py", "try_sizes"): TRIED,
    ("optimizer.py", "step"): "in the optimizer",
    ("average.py", "update"): "in the moving average",
    ("step.py", "launch"): STEP,
    ("step.py", "backward"): STEP,
    ("step.py", "discarded_pass"): STEP,
}
"""Files and functions of this package that tell where a run is, what lies inside of others first."""
AT_THE_START = "as the run began"
STATE = ("weights", "gradients", "optimizer", "average")
MAX_SETTINGS = 3


class Use(NamedTuple):
    """What the memory of a run depends on.

    Attributes:
        config: The configuration.
        precision: The dtype of products.
        at_once: Sequences of a micro-batch.
        shards: Processes over which weights and what follows them are spread (FSDP2); 1 for none.
    """

    config: RunConfig
    precision: str
    at_once: int
    shards: int = 1


def explain(
    error: Exception, runtime: Runtime, config: RunConfig, task: Task | None, at_once: int, *, resumable: bool
) -> str:
    """One line on memory that has run out.

    Args:
        error: Says so.
        runtime: What is computed on.
        config, task: Of the run; None for a task that is not there yet.
        at_once: Sequences of a micro-batch.
        resumable: Whether there is a checkpoint, so that only settings count that a run can go on with.
    """
    stage = stage_of(error)
    at_work = f" of {at_once} sequences at once" if stage == STEP else ""
    start = f"{memory_asked(error)} {stage}{at_work}{_rank(runtime)}"
    if task is None:
        return f"{start}: take a smaller model, or less data"
    if not isinstance(config.model, TransformerConfig):
        return f"{start}: take less at once (--training.micro_batch_size), or a smaller model"
    shards = 1 if runtime.sharding is None else runtime.accelerator.num_processes
    use = Use(config, runtime.precision, 1 if stage == TRIED else at_once, shards)
    sizes = {name.partition(",")[0]: gigabytes(size) for name, size in needed(task, use, stage).items()}
    parts = ", ".join(f"{name} {size}" for name, size in sizes.items())
    helps = [f"{setting} saves {gigabytes(saved)}" for setting, saved in settings(task, use, stage, runtime, resumable)]
    helps += ["a smaller model"] if len(helps) < MAX_SETTINGS else []
    return f"{start}: by formula it takes {parts}{_allocated(runtime)}. What helps most: {', '.join(helps)}"


def stage_of(error: Exception) -> str:
    """Where a run was as an error came, in words."""
    code = [frame.f_code for frame, _ in walk_tb(error.__traceback__)]
    here = {(Path(each.co_filename).name, each.co_name) for each in code if is_ours(each.co_filename)}
    return next((words for stage, words in STAGES.items() if stage in here), AT_THE_START)


def is_ours(file: str) -> bool:
    """Whether a file is one of this package."""
    return Path(file).parent == Path(__file__).parent


def needed(task: Task, use: Use, stage: str) -> dict[str, int]:
    """What is kept at once at such a stage, in bytes by part, by a formula."""
    model, varying = task.model, batches_vary(task.data)
    tokens = padded_length(task.data, use.config.training.batch_size)
    asked = model, use.config, use.precision, use.at_once * tokens
    kept = expected_bytes(*asked, length=tokens, shards=use.shards, varying=varying)
    if stage in (STEP, TRIED):
        return kept
    state: dict[str, int] = {name: kept[name] for name in STATE if name in kept}
    if stage == EVALUATION:
        del state["gradients"]
        if use.shards > 1:
            state["gathered"] = use.shards * state["weights"]
        targets = use.config.training.eval_batch_size * tokens
        seen = tokens if use.config.is_masked else 0
        state["evaluated sequences"] = evaluated_bytes(model, use.precision, targets, seen)
    return state


def evaluated_bytes(model: nn.Module, precision: str, targets: int, masked_tokens: int = 0) -> int:
    """What an evaluation holds: its logits twice, or a chunk's, one block at work, and a mask.

    Args:
        model: What is evaluated.
        precision: The dtype of products.
        targets: Those that are evaluated at once.
        masked_tokens: Tokens of a sequence of which a mask says who sees whom: a byte, and as attention takes it.
    """
    width = 8 if precision == "fp64" else 4
    product_width = 2 if precision in ("bf16", "fp16") else width
    embeddings = (module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding))
    at_work = max((_features(block) for block in blocks_of(model)), default=0)
    logits = min(width * targets * next(embeddings, 0), MAX_LOGITS_BYTES)
    return 2 * logits + product_width * targets * at_work + (1 + product_width) * targets * masked_tokens


def _features(block: nn.Module) -> int:
    layers = [layer for layer in block.modules() if isinstance(layer, nn.Linear)]
    return sum(layer.in_features + layer.out_features for layer in layers)


def settings(task: Task, use: Use, stage: str, runtime: Runtime, resumable: bool) -> list[tuple[str, int]]:
    """The options that save most there, the best first, each with how many bytes."""
    total = sum(needed(task, use, stage).values())
    bf16 = use.precision == "fp32" and has_fast_bf16(runtime.accelerator.device)
    processes = runtime.accelerator.num_processes
    others = [*_smaller(use), *_in_shards(use, processes), *([] if resumable else _other_state(use))]
    others += _bf16(use) if bf16 else ()
    if not any(blocks_of(task.model)):
        others = [(option, other) for option, other in others if "recompute" not in option]
    saved = [(option, total - sum(needed(task, other, stage).values())) for option, other in others]
    return sorted((each for each in saved if each[1] > 0), key=lambda each: -each[1])[:MAX_SETTINGS]


def _smaller(use: Use) -> Iterator[tuple[str, Use]]:
    """Options that a run can go on with."""
    training = use.config.training
    if use.at_once > 1:
        half = use.at_once // 2
        alone = " --training.accumulation_steps null" if training.accumulation_steps else ""
        yield f"--training.micro_batch_size {half}{alone}", use._replace(at_once=half)
    if training.recompute != "blocks":
        yield "--training.recompute blocks", _with_training(use, recompute="blocks")
    if training.eval_batch_size > 1:
        half = training.eval_batch_size // 2
        yield f"--training.eval_batch_size {half}", _with_training(use, eval_batch_size=half)


def _in_shards(use: Use, processes: int) -> Iterator[tuple[str, Use]]:
    if use.shards < processes:
        yield "accelerate launch --config_file configs/accelerate/fsdp2.yaml", use._replace(shards=processes)


def _bf16(use: Use) -> Iterator[tuple[str, Use]]:
    yield "--training.precision bf16", use._replace(precision="bf16")


def _other_state(use: Use) -> Iterator[tuple[str, Use]]:
    """Options that make another state of a run, which one that goes on cannot take."""
    if use.config.optimizer.name == "adamw":
        muon = replace(use.config, optimizer=replace(use.config.optimizer, name="muon"))
        yield "--optimizer.name muon", use._replace(config=muon)
    if use.config.training.ema_decay:
        yield "--training.ema_decay 0", _with_training(use, ema_decay=0.0)


def _with_training(use: Use, **changes: object) -> Use:
    return use._replace(config=replace(use.config, training=replace(use.config.training, **changes)))  # type: ignore[arg-type]


def _rank(runtime: Runtime) -> str:
    accelerator = runtime.accelerator
    return f" on rank {accelerator.process_index}" if accelerator.num_processes > 1 else ""


def _allocated(runtime: Runtime) -> str:
    """What torch says of a GPU's memory."""
    device = runtime.accelerator.device
    if device.type != "cuda":
        return ""
    free, total = torch.cuda.mem_get_info(device)
    most, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.memory_reserved(device)
    return (
        f"; torch had allocated {gigabytes(most)} at most, and reserves {gigabytes(reserved)} of {gigabytes(total)}, "
        f"of which CUDA and other programs have {gigabytes(max(0, total - free - reserved))}"
    )
