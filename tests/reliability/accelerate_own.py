"""What Accelerate itself offers to save and resume, under what our checkpoints go through.

`Accelerator.save_state`, `load_state` and `skip_first_batches` with their defaults, as in
https://huggingface.co/docs/accelerate/usage_guides/checkpoint. Its stateful data loader needs one more package
(torchdata), and is not among the ways compared.
"""

import hashlib
import random
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from reliability.damage import NEWER, OLDER, Verdict, examine, verdict
from reliability.isolated import isolated
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

FILES = [
    "model.safetensors",
    "optimizer.bin",
    "scheduler.bin",
    "random_states_0.pkl",
    "custom_checkpoint_0.pkl",
]
NUM_SAMPLES, BATCH_SIZE, EPOCHS = 40, 4, 3
STOP_EPOCH, STOP_BATCH = 1, 4


class Counter:
    """What a training script counts by itself, registered as the documentation shows."""

    def __init__(self) -> None:
        self.step = 0

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]


class Session:
    """A model, AdamW, a schedule, shuffled data and a counter in Accelerate's hands."""

    def __init__(self, seed: int, *, dropout: float = 0.1, seedable_sampler: bool = False) -> None:
        set_seed(seed)
        torch.set_num_threads(1)
        loading = DataLoaderConfiguration(use_seedable_sampler=seedable_sampler, data_seed=seed)
        self.accelerator = Accelerator(cpu=True, dataloader_config=loading)
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.9)
        data = TensorDataset(torch.arange(NUM_SAMPLES), torch.linspace(-1, 1, NUM_SAMPLES * 8).view(NUM_SAMPLES, 8))
        loader = DataLoader(data, batch_size=BATCH_SIZE, shuffle=True)
        prepared = self.accelerator.prepare(model, optimizer, schedule, loader)
        self.model, self.optimizer, self.schedule, self.loader = prepared
        self.counter = Counter()
        self.accelerator.register_for_checkpointing(self.counter)

    def step(self, numbers: Tensor, inputs: Tensor) -> list[int]:
        """One step; return which samples it saw."""
        loss = (self.model(inputs).squeeze(1) - inputs.sum(1)).square().mean()
        self.accelerator.backward(loss)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.counter.step += 1
        return numbers.tolist()

    def save(self, folder: Path) -> None:
        """Accelerate's own way."""
        self.accelerator.save_state(str(folder))

    def load(self, folder: Path) -> None:
        """Accelerate's own way."""
        self.accelerator.load_state(str(folder))

    def weights(self) -> str:
        """SHA-256 of the weights."""
        return digest(self.model.state_dict())

    def fingerprint(self) -> str:
        """SHA-256 of all that a saved state is to bring back."""
        parts = (self.model, self.optimizer, self.schedule, self.counter)
        return digest([[part.state_dict() for part in parts], torch.get_rng_state(), random.getstate()])


def digest(state: Any) -> str:
    """SHA-256 of nested containers of tensors and plain values."""
    if isinstance(state, Tensor):
        content = state.numpy().tobytes()
    elif isinstance(state, Mapping):
        content = repr([(key, digest(value)) for key, value in state.items()]).encode()
    elif isinstance(state, Sequence) and not isinstance(state, str):
        content = repr([digest(value) for value in state]).encode()
    else:
        content = repr(state).encode()
    return hashlib.sha256(content).hexdigest()


def save_two(folder: Path) -> str:
    """Save the states of steps 10 and 12; return the fingerprint of the second."""
    session = Session(seed=1)
    while session.counter.step < 12:
        for batch in session.loader:
            session.step(*batch)
            if session.counter.step in (10, 12):
                session.save(folder / {10: OLDER, 12: NEWER}[session.counter.step])
            if session.counter.step == 12:
                break
    return session.fingerprint()


def finds(fingerprint: str, folder: Path) -> bool:
    """Load a state into a session with another seed, and tell whether it is the saved one."""
    session = Session(seed=2)
    session.load(folder)
    return session.fingerprint() == fingerprint


def judge(name: str, damage: str, saved: Path, work: Path, fingerprint: str) -> Verdict | None:
    """The verdict on one damage, for a process of its own."""
    return verdict(name, damage, saved=saved, work=work, load=lambda folder: finds(fingerprint, folder))


def examine_accelerate(folder: Path) -> dict[str, dict[str, Verdict]]:
    """Damage each file of a saved state in each way; return the verdicts by file and damage."""
    saved, work = folder / "saved", folder / "work"
    fingerprint = isolated(save_two, saved)
    assert {file.name for file in (saved / NEWER).iterdir()} == set(FILES)
    assert isolated(finds, fingerprint, saved / NEWER), "undamaged, it brings back what was saved"

    def judge_apart(name: str, damage: str) -> Verdict | None:
        try:
            return isolated(judge, name, damage, saved, work, fingerprint)
        except BrokenProcessPool:
            return "refused, unnamed"  # The process died of it.

    return examine(FILES, work, judge_apart)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A way to resume in the middle of an epoch.

    Attributes:
        name: In words.
        seedable_sampler: `use_seedable_sampler`, which shuffles by seed and epoch.
        set_epoch: Whether the script tells the loader which epoch it resumes in; the documentation does not.
    """

    name: str
    seedable_sampler: bool = False
    set_epoch: bool = False


RECIPES = (
    Recipe(name="skip_first_batches, as documented"),
    Recipe(name="and use_seedable_sampler", seedable_sampler=True),
    Recipe(name="and use_seedable_sampler and set_epoch", seedable_sampler=True, set_epoch=True),
)


def train_whole(recipe: Recipe, dropout: float, folder: Path) -> tuple[list[list[int]], str]:
    """Train without a stop, saving a state on the way; return the samples in order after it, and the weights."""
    session = Session(seed=1, dropout=dropout, seedable_sampler=recipe.seedable_sampler)
    seen = []
    for epoch in range(EPOCHS):
        if recipe.set_epoch:
            session.loader.set_epoch(epoch)
        for number, batch in enumerate(session.loader, start=1):
            seen.append(session.step(*batch))
            if (epoch, number) == (STOP_EPOCH, STOP_BATCH):
                session.save(folder)
                seen.clear()
    return seen, session.weights()


def train_rest(recipe: Recipe, dropout: float, folder: Path) -> tuple[list[list[int]], str]:
    """Load the state in a new process, and train to the end as the documentation shows."""
    session = Session(seed=1, dropout=dropout, seedable_sampler=recipe.seedable_sampler)
    session.load(folder)
    seen = []
    for epoch in range(STOP_EPOCH, EPOCHS):
        loader = session.loader
        if recipe.set_epoch:
            loader.set_epoch(epoch)
        if epoch == STOP_EPOCH:
            loader = session.accelerator.skip_first_batches(loader, STOP_BATCH)
        seen += [session.step(*batch) for batch in loader]
    return seen, session.weights()


def compare_resume(folder: Path) -> list[dict[str, Any]]:
    """For each recipe, without and with dropout: does the resumed run see the same samples and end the same?"""
    rows = []
    for recipe in RECIPES:
        for dropout in (0.0, 0.1):
            shutil.rmtree(folder, ignore_errors=True)
            order, weights = isolated(train_whole, recipe, dropout, folder)
            found_order, found_weights = isolated(train_rest, recipe, dropout, folder)
            row = {"recipe": f"Accelerate: {recipe.name}", "dropout": dropout}
            rows.append(row | {"same_samples": order == found_order, "same_weights": weights == found_weights})
    return rows
