"""What the loop must be told about a model and its data.

Shapes: B batch, T target tokens, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from training.config.sections import RunConfig
    from training.storage.checkpoint import Checkpoint

IGNORED = -100
"""A target that does not count: padding."""
LOOK_AHEAD = 256
"""So many sequences are looked at for the longest, to whose length a batch is filled up."""


class Batch(NamedTuple):
    """What goes into a model, and what should come out: `targets_BT` holds token ids, or IGNORED."""

    inputs: tuple[Tensor, ...]
    targets_BT: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`, copied while the device goes on computing where it can."""
        if device.type == "cuda":
            pinned = self.pinned()
            inputs = tuple(t.to(device, non_blocking=True) for t in pinned.inputs)
            return Batch(inputs, pinned.targets_BT.to(device, non_blocking=True))
        return Batch(tuple(t.to(device) for t in self.inputs), self.targets_BT.to(device))

    def pinned(self) -> "Batch":
        """The batch in memory that a GPU copies from by itself."""
        return Batch(tuple(t.pin_memory() for t in self.inputs), self.targets_BT.pin_memory())

    @property
    def num_targets(self) -> int:
        """Number of targets that count; call it before the batch goes to a device."""
        return int((self.targets_BT != IGNORED).sum())


class Uncut(Protocol):
    """A batch that comes into being as it goes to the device, as a `Batch` can too."""

    @property
    def num_targets(self) -> int:
        """Number of targets that count."""

    def pinned(self) -> "Uncut":
        """The same, in memory that a GPU copies from by itself."""

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`."""


class Data(Protocol):
    """What a model is trained and validated on.

    It may have a method `cutter(device)`: what makes training batches with its tokens on the device, if they fit there.
    It may have `context`: how many tokens of a sequence go through the model, where not all of them are targets.
    And it may have `validation_parts`: what `validation_batches` gives, by part, where the loss of each is to be named.

    Attributes:
        samples_per_epoch: Training sequences in one pass over the data.
        tokens_per_sample: Targets in one of them, in the mean.
        origin: Where the data comes from, for people to read.
        sha256: Of the data; a run goes on only with the same.
        order: Version of the order in which its samples come; a run goes on only in the same.
    """

    samples_per_epoch: int
    tokens_per_sample: float
    origin: str
    sha256: str
    order: int

    @property
    def validation_targets(self) -> int:
        """Targets of the validation split."""

    @property
    def notes(self) -> Sequence[str]:
        """What was done to read it and what is left out, one line each."""

    def training_batch(self, first: int, count: int) -> Batch:
        """Samples `first` to `first + count` of the endless stream of all epochs; a pure function."""

    def validation_batches(self, batch_size: int, rank: int, num_ranks: int, every: int = 1) -> Iterable[Batch]:
        """This rank's share of the validation split; over all ranks every target comes once.

        With `every` k, the split is taken as stretches of k windows (or pairs), and the first of each comes.
        """

    def describe_samples(self, first: int, count: int) -> str:
        """Where samples `first` to `first + count` of the stream come from, for people to look at."""


class Begun(NamedTuple):
    """How a run begins: its configuration with what a task has found out, and where its first weights come from."""

    config: "RunConfig"
    origin: str | None = None


class Beginning(Protocol):
    """A task whose first weights are not drawn."""

    def begin(self, checkpoint: "Checkpoint | None") -> Begun:
        """Take the weights that a run begins with, unless it goes on from a checkpoint; all processes call this."""


def tokens_at_once(data: Data) -> float:
    """Tokens of a training sequence that go through the model: as many as targets, unless the data says otherwise."""
    return float(getattr(data, "context", data.tokens_per_sample))


def batches_vary(data: Data) -> bool:
    """Whether batches differ in size, as those of pairs do: such data has no `context` that each sequence fills."""
    return not hasattr(data, "context")


def padded_length(data: Data, batch_size: int) -> int:
    """Tokens of a training sequence with its padding: a batch is filled up to its longest one."""
    if not batches_vary(data):
        return int(tokens_at_once(data))
    return data.training_batch(0, min(LOOK_AHEAD, batch_size)).targets_BT.size(1)


class Task(Protocol):
    """A model with its data. The model maps `Batch.inputs` to logits of shape (B, T, V).

    It may have the method of a `Beginning`, which is called before anything is made of its weights.

    Attributes:
        model_type: What a checkpoint says of itself: which model's it is.
        flops_per_token: Floating point operations of one target's forward and backward pass.
        shows_samples: Whether samples are for the terminal as well.
    """

    model_type: str
    flops_per_token: float
    shows_samples: bool

    @property
    def model(self) -> nn.Module:
        """The model, with weights that are drawn."""

    @property
    def data(self) -> Data:
        """Its data."""

    def sample(self, seed: int) -> str:
        """Text that shows what the model can do now."""

    def metrics(self, val_loss: float | None) -> Mapping[str, float]:
        """What else to measure at an evaluation, in the main process alone: names and numbers for metrics.jsonl.

        `val_loss` is None where only a part of the validation split was measured.
        """

    def checkpoint_files(self) -> Mapping[str, str]:
        """Names and contents of text files that a checkpoint needs besides weights: vocabulary and the like."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, for a while."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def loss_sum(model: nn.Module, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
    """Sum over targets of the negative log-likelihood, in nats, computed in fp32 at least.

    With `label_smoothing` e, a target counts by 1 - e, and all V tokens of the vocabulary by e / V each.
    """
    logits_BTV = model(*batch.inputs)
    logits_BTV = logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))
    return F.cross_entropy(
        logits_BTV.flatten(0, 1),
        batch.targets_BT.flatten(),
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
