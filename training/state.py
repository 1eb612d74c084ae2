"""The counters of a run: with weights and optimizer tensors, all that a resume needs."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from training.checkpoint import Checkpoint
from training.config import RunConfig
from training.errors import InputError
from training.task import Task


@dataclass(kw_only=True)
class Counters:
    """Where a run stands.

    Attributes:
        step: Optimizer steps done.
        samples: Training sequences seen.
        tokens: Training targets seen.
        seconds: Time spent in steps, over all resumes; evaluation and writing are not in it.
        val_loss: The newest validation loss, in nats per token.
        best_val_loss: The lowest one.
        best_step: When that was.
        stale_evaluations: Evaluations since then.
        loss_scale: fp16's loss scale, None in other precisions.
        loss_scale_streak: Steps since the loss scale last moved.
        skipped_steps: Steps whose update was left out because fp16 overflowed.
        wandb_id: The run's id at Weights & Biases, None before it was tracked there.
    """

    step: int = 0
    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    val_loss: float | None = None
    best_val_loss: float | None = None
    best_step: int | None = None
    stale_evaluations: int = 0
    loss_scale: float | None = None
    loss_scale_streak: int = 0
    skipped_steps: int = 0
    wandb_id: str | None = None

    def to_json(self, identity: dict[str, Any]) -> dict[str, Any]:
        """The content of state.json."""
        return {"step": self.step, "counters": asdict(self), "identity": identity}

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> "Counters":
        """Read the counters back; unknown ones are left out."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in checkpoint.state["counters"].items() if name in known})


def run_identity(config: RunConfig, task: Task) -> dict[str, Any]:
    """What must not change when a run goes on, because its steps would not be those of one run any more."""
    return {
        "seed": config.seed,
        "data_sha256": task.data_sha256,
        "training.batch_size": config.training.batch_size,
        "training.ema_decay": config.training.ema_decay,
        "optimizer.name": config.optimizer.name,
    } | {f"model.{name}": value for name, value in asdict(config.model).items()}


def check_identity(checkpoint: Checkpoint, identity: dict[str, Any]) -> None:
    """Raise an `InputError` that names what differs from the run in the checkpoint."""
    saved = checkpoint.state["identity"]
    names = sorted(name for name in saved.keys() & identity.keys() if saved[name] != identity[name])
    if names:
        changes = "; ".join(f"{name} was {saved[name]!r}, is now {identity[name]!r}" for name in names)
        raise InputError(
            f"cannot go on with {checkpoint.folder}: {changes}. Undo that, or start a run in another --output_dir"
        )
