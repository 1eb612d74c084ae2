"""The counters of a run: with weights and optimizer tensors, all that a resume needs."""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from training.config.fields import options_of
from training.config.sections import OnResume, RunConfig
from training.runtime.errors import InputError
from training.storage.checkpoint import Checkpoint, newest_state
from training.storage.own_class import class_record
from training.storage.reading import Amount, Count, MalformedFileError, Scalar, built, parse_yaml

if TYPE_CHECKING:
    from training.task import Task


FIRST_ORDER = 1
"""`Data.order` of runs that do not say it, and of data whose samples have come in the same order ever since."""


@dataclass(kw_only=True)
class Counters:
    """Where a run stands.

    Attributes:
        step: Optimizer steps done, and their numbers read; one more may be under way.
        samples: Training sequences seen.
        tokens: Training targets seen.
        seconds: Time spent in steps, over all resumes; evaluation and saving are not in it.
        eval_every: Evaluations go by every so many-th window of the validation split; 1 for all of it.
        val_loss: Of the newest evaluation, in nats per token; None where it took a part of the split.
        val_step: When that was.
        best_val_loss: The lowest one, of a run that goes by it.
        best_val_loss_subset: The lowest loss over a part of the split, of a run that goes by that.
        best_step: When the lowest one was measured.
        stale_evaluations: Evaluations since then.
        loss_scale: fp16's loss scale, None in other precisions.
        loss_scale_streak: Steps since the loss scale last moved.
        skipped_steps: Steps whose update was left out, because fp16 overflowed or a number was not finite.
        nonfinite_streak: How many in a row up to now, for numbers that were not finite.
        pending_evaluation: Metrics of the step, if its evaluation is still to be done.
        wandb_id: The run's id at Weights & Biases, None before it was tracked there.
    """

    step: Count = 0
    samples: Count = 0
    tokens: Count = 0
    seconds: Amount = 0.0
    eval_every: Count = 1
    val_loss: float | None = None
    val_step: Count | None = None
    best_val_loss: float | None = None
    best_val_loss_subset: float | None = None
    best_step: Count | None = None
    stale_evaluations: Count = 0
    loss_scale: Amount | None = None
    loss_scale_streak: Count = 0
    skipped_steps: Count = 0
    nonfinite_streak: Count = 0
    pending_evaluation: dict[str, float] | None = None
    wandb_id: str | None = None

    @property
    def reported_step(self) -> int:
        """The last step whose metrics are written."""
        return self.step if self.pending_evaluation is None else self.step - 1

    @property
    def best(self) -> float | None:
        """The lowest loss of those that the run goes by."""
        return self.best_val_loss if self.eval_every == 1 else self.best_val_loss_subset

    def progress(self, samples_per_epoch: float) -> dict[str, float]:
        """How far the run has come, as a line of metrics begins."""
        epoch = self.samples / samples_per_epoch
        return {"step": self.step, "epoch": epoch, "tokens": self.tokens, "seconds": self.seconds}

    def stale_with(self, loss: float) -> int:
        """Evaluations since the best one, where another one comes out with this loss."""
        return 0 if self.best is None or loss < self.best else self.stale_evaluations + 1

    def judge(self, loss: float) -> None:
        """Note a loss that the run goes by. A step counts once, however often it is evaluated."""
        if self.val_step == self.step:
            return
        self.val_step, self.stale_evaluations = self.step, self.stale_with(loss)
        if self.stale_evaluations == 0:
            self.best_val_loss, self.best_val_loss_subset = (loss, None) if self.eval_every == 1 else (None, loss)
            self.best_step = self.step

    def verdict(self, patience: int) -> str:
        """In words, how the newest loss compares, and whether a run of such patience ends for it."""
        if self.best_step == self.step:
            return "the best so far"
        best = f"best {self.best:.4f} at step {self.best_step}"
        if 0 < patience <= self.stale_evaluations:
            return f"{best}; stopping early, after {self.stale_evaluations} evaluations without a better one"
        return best

    def go_by(self, every: int) -> str | None:
        """Evaluate every so many-th window from here on; losses over other parts of the split do not compare with it.

        Returns:
            What is forgotten for that, in words.
        """
        if every == self.eval_every:
            return None
        best, step = self.best, self.best_step
        self.eval_every, self.stale_evaluations = every, 0
        self.val_step = self.best_step = self.best_val_loss = self.best_val_loss_subset = None
        if best is None:
            return None
        return f"the best so far ({best:.4f} at step {step}) is over another part of the split: it is chosen anew"


@dataclass
class SavedState:
    """The content of state.json; counters that are unknown here are left out.

    Attributes:
        step: Of the checkpoint.
        counters: Where the run stood.
        identity: What must not change when it goes on.
        setup: What it computed on.
        num_steps: Of the whole run; None of runs that did not say it.
    """

    step: Count
    counters: Counters
    identity: dict[str, Scalar]
    setup: dict[str, Scalar] = field(default_factory=dict)
    num_steps: Count | None = None


def saved_state(checkpoint: Checkpoint) -> SavedState:
    """Read the state of a run back.

    Raises:
        MalformedFileError: Something is missing, of another type or out of range.
    """
    file = checkpoint.folder / newest_state(checkpoint.files)
    counters = checkpoint.state.get("counters")
    if isinstance(counters, dict) and "unreported" in counters:  # As older checkpoints call it.
        counters["pending_evaluation"] = counters.pop("unreported")
    state: SavedState = built(SavedState, checkpoint.state, file)
    if state.counters.step != state.step:
        raise MalformedFileError(file, f"step is {state.step}, counters.step is {state.counters.step}")
    return state


def run_identity(config: RunConfig, task: "Task") -> dict[str, Any]:
    """What must not change when a run goes on, because its steps would not be those of one run any more."""
    refused = _options(config, "refused")
    data = {"data_sha256": task.data.sha256, "data_order": task.data.order}
    return (
        {"model_type": task.model_type}
        | class_record(type(task.model), task.model_type)
        | data
        | {name: value for name, value in flattened(asdict(config)).items() if name in refused}
    )


def check_identity(checkpoint: Checkpoint, identity: dict[str, Any]) -> None:
    """Raise an `InputError` that names what differs from the run in the checkpoint."""
    saved = {"data_order": FIRST_ORDER} | saved_state(checkpoint).identity
    if saved["data_order"] != identity["data_order"]:
        raise InputError(
            f"cannot go on with {checkpoint.folder}: its samples come in an order (version {saved['data_order']}) that "
            f"this version of the code does not make any more (it makes {identity['data_order']}). The run can be "
            f"sampled from and evaluated as ever: start another one in another --output_dir"
        )
    changed = _changed(saved, identity)
    for moved in ("model_class", "model_file"):  # A class may move. What it is called tells it from others.
        changed.pop(moved, None)
    before, now = (str(found.get("model_class", "")).rpartition(":")[2] for found in (saved, identity))
    if before not in ("", now):  # Older runs do not say it.
        changed["model_class"] = f"its model was made by the class {before}, is now by {now or 'the usual one'}"
    if changed:
        raise InputError(
            f"cannot go on with {checkpoint.folder}: {'; '.join(changed.values())}. Undo that, or start a run in "
            f"another --output_dir"
        )


def changes(checkpoint: Checkpoint, config: RunConfig, setup: dict[str, Any]) -> list[str]:
    """What differs from the run that wrote a checkpoint, and whether its steps go another way for that.

    Args:
        checkpoint: The checkpoint.
        config: Of the run that goes on.
        setup: What that one computes on.
    """
    file = checkpoint.folder / "config.yaml"
    saved = built(dict[str, Any], parse_yaml(checkpoint.text("config.yaml"), file), file)
    before, now = flattened(saved) | saved_state(checkpoint).setup, flattened(asdict(config)) | setup
    before.pop("device", None)  # In words, for people: what counts of it is told by the others.
    steps = "training.accumulation_steps"
    if before.get(steps) == 1 and now[steps] is None:  # Older files spell it out; both are no parts.
        del now[steps]
    note = {True: "the steps are the same", False: "the steps to come differ for it"}
    same = _options(config, "same")
    return [f"{change}: {note[name in same]}" for name, change in _changed(before, now).items()]


def _changed(before: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """What differs of that which both have, by name and in words."""
    names = sorted(name for name in before.keys() & now.keys() if before[name] != now[name])
    return {name: f"{name} was {before[name]!r}, is now {now[name]!r}" for name in names}


def _options(config: RunConfig, on_resume: OnResume) -> set[str]:
    """The options whose fields say this of a change on a resume."""
    return {option.name for option in options_of(type(config)) if option.on_resume == on_resume}


def flattened(sections: dict[str, Any]) -> dict[str, Any]:
    """Nested sections as `section.key`."""
    flat: dict[str, Any] = {}
    for name, value in sections.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in flattened(value).items()}
        else:
            flat[name] = value
    return flat
