"""Documents side by side in a window: each is read as if it stood alone."""

from dataclasses import replace

import pytest
import torch
from gpt_models import random_model
from torch import Tensor

from data.answers.tokens import RowTokens
from data.answers.windows import PackedRows
from gpt.config import ModelConfig
from gpt.model import GPT
from training import loss
from training.compiling import compile_step
from training.loss import LossModel
from training.recompute import recompute_in_training
from training.task import IGNORED, Batch

SHAPE = ModelConfig(num_layers=2, d_model=16, num_heads=4, num_kv_heads=2, d_ff=24, max_len=12, qk_norm=True)
LENGTHS = (5, 3, 2)
POSITIONS = ["rotary", "learned", "sinusoidal"]


def documents() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(19, (1, length), generator=generator) for length in LENGTHS]


def side_by_side(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The documents in one window, which is filled up, and the position of each token."""
    tokens = torch.cat([*parts, torch.zeros(1, 2, dtype=torch.long)], 1)
    places = torch.cat([*(torch.arange(length) for length in LENGTHS), torch.zeros(2, dtype=torch.long)])
    return tokens, places[None]


def gradients(model: GPT, *batches: Batch) -> list[Tensor]:
    model.zero_grad()
    for inputs, targets in batches:
        LossModel(model)(*inputs, targets).backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_each_document_is_read_as_if_it_stood_alone(positions: str) -> None:
    model = random_model(replace(SHAPE, positions=positions)).double()
    together = model(*side_by_side(documents()))[0, : sum(LENGTHS)].split(LENGTHS)
    for found, part in zip(together, documents(), strict=True):
        assert (found - model(part)[0]).abs().max() <= 1e-8
    joined = model(torch.cat(documents(), 1))[0].split(LENGTHS)
    assert (joined[0] - together[0]).abs().max() <= 1e-8
    assert (joined[1] - together[1]).abs().max() > 1e-2, "what sees the document before it is another"


@pytest.mark.parametrize("chunked", [False, True])
def test_gradients_are_the_sum_of_those_of_each_row_alone(chunked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if chunked:
        monkeypatch.setattr(loss, "MAX_LOGITS_BYTES", 4 * 19 * 3)
    model = random_model(SHAPE).double().train()
    tokens = torch.cat(documents(), 1)[0].numpy()
    counts = torch.tensor([0, 0, 1, 1, 1, 0, 0, 1, 0, 1]).bool().numpy()
    rows = RowTokens(tokens.astype("int32"), counts, torch.tensor([0, *LENGTHS]).cumsum(0).numpy())
    packed = PackedRows(rows, 8)
    assert packed.windows == [[0, 1, 2]]
    together = packed.batch([0])
    assert together.num_targets == counts.sum()
    alone = []
    for row, part in enumerate(documents()):
        own = torch.tensor(counts[rows.starts_R[row] + 1 : rows.starts_R[row + 1]])
        alone.append(Batch((part[:, :-1],), torch.where(own, part[:, 1:], IGNORED)))
    for found, expected in zip(gradients(model, together), gradients(model, *alone), strict=True):
        assert (found - expected).abs().max() <= 1e-8


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_no_document_follows_from_another_in_any_way_of_training(dropout: float) -> None:
    model = random_model(replace(SHAPE, dropout=dropout)).train()
    first, second, third = documents()
    seeds = torch.tensor([7])
    found = []
    for tokens in (second, (second + 1) % 19):
        model.set_sample_seeds(seeds)
        found.append(model(*side_by_side([first, tokens, third]))[0])
    assert torch.equal(found[0][:5], found[1][:5])
    assert torch.equal(found[0][8:], found[1][8:])
    assert not torch.allclose(found[0][5:8], found[1][5:8])


@pytest.mark.parametrize("what", ["blocks", "attention"])
def test_what_is_computed_twice_is_the_same(what: str) -> None:
    inputs = side_by_side(documents())
    batch = Batch(inputs, inputs[0])
    model = random_model(SHAPE).train()
    expected = gradients(model, batch)
    recompute_in_training(model, what)
    assert all(map(torch.equal, gradients(model, batch), expected))


def test_half_precision_reads_documents_side_by_side() -> None:
    model = random_model(SHAPE).train()
    with torch.autocast("cpu", torch.bfloat16):
        found = model(*side_by_side(documents()))[0, 5:8]
        alone = model(documents()[1])[0]
    assert (found - alone).abs().max() <= 0.05 * alone.abs().max()


@pytest.mark.ci
@pytest.mark.parametrize("mode", ["blocks", "model"])
def test_compiled_code_reads_documents_side_by_side(mode: str) -> None:
    inputs = side_by_side(documents())
    batch = Batch(inputs, inputs[0])
    model = random_model(SHAPE).train()
    loss_model = LossModel(model)
    expected = float(loss_model(*batch.inputs, batch.targets_BT).detach())
    undo = compile_step(loss_model, mode, "none", any_size=False)
    assert float(loss_model(*batch.inputs, batch.targets_BT).detach()) == pytest.approx(expected, rel=1e-5)
    undo()
