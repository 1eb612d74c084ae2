"""Cross-entropy in chunks, beside the plain one, and when it is taken."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from seq2seq_models import small_config
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from data.tokenizers.vocabulary import PAD
from gpt.config import GPTConfig
from gpt.model import GPT
from seq2seq.model import EncoderDecoder
from training import loss
from training.evaluation import mean_loss
from training.loss import LossModel, chunked_loss_sum
from training.task import IGNORED, Batch, loss_sum

VOCAB = 101


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of seven tokens at most."""
    monkeypatch.setattr(loss, "MAX_LOGITS_BYTES", 7 * 4 * VOCAB + 100)


def drawn(model: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return model.to(dtype)


def gpt(config: GPTConfig, model_class: type[GPT] = GPT, dtype: torch.dtype = torch.float64) -> nn.Module:
    return drawn(model_class(config.model, VOCAB), dtype).eval()


def text_batch(vocab: int = VOCAB) -> Batch:
    generator = torch.Generator().manual_seed(6)
    tokens_BT = torch.randint(vocab, (3, 11), generator=generator)
    targets_BT = tokens_BT[:, 1:].clone()
    targets_BT[1, 6:] = IGNORED
    return Batch((tokens_BT[:, :-1],), targets_BT)


def pair_batch() -> Batch:
    generator = torch.Generator().manual_seed(6)
    source_BS = torch.randint(4, VOCAB, (3, 6), generator=generator)
    source_BS[0, 4:] = PAD
    batch = text_batch()
    return Batch((source_BS, *batch.inputs), batch.targets_BT)


def outcome(compute: Callable[[], Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The loss, and the gradients of all parameters."""
    model.zero_grad()
    total = compute()
    (total / 7).backward()
    return {"": total.detach()} | {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The largest difference, in sizes of the second's tensors."""
    assert first.keys() == second.keys()
    return max(float((first[k] - second[k]).norm() / second[k].norm()) for k in first)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("tied", [False, True])
def test_chunks_give_the_loss_and_the_gradients_of_the_whole(
    config: GPTConfig, small_chunks: None, monkeypatch: pytest.MonkeyPatch, smoothing: float, tied: bool
) -> None:
    object.__setattr__(config.model, "tie_embeddings", tied)
    sizes: list[int] = []
    monkeypatch.setattr(loss, "chunk_logits", noting(loss.chunk_logits, sizes))
    model, batch = gpt(config), text_batch()
    plain = outcome(lambda: loss_sum(model, batch, smoothing), model)
    assert sizes == []
    chunked = outcome(lambda: LossModel(model, smoothing)(*batch.inputs, batch.targets_BT), model)
    assert sizes == [6, 6, 6, 6, 6]
    assert distance(chunked, plain) < 1e-10


def noting(function: Callable[[Tensor, Tensor], Tensor], sizes: list[int]) -> Callable[[Tensor, Tensor], Tensor]:
    def noted(hidden_CM: Tensor, weight_VM: Tensor) -> Tensor:
        sizes.append(len(hidden_CM))
        return function(hidden_CM, weight_VM)

    return noted


def test_chunks_serve_the_encoder_decoder(small_chunks: None) -> None:
    model, batch = drawn(EncoderDecoder(small_config().model, VOCAB)).eval(), pair_batch()
    plain = outcome(lambda: loss_sum(model, batch), model)
    chunked = outcome(lambda: LossModel(model)(*batch.inputs, batch.targets_BT), model)
    assert distance(chunked, plain) < 1e-10
    assert not all(torch.equal(chunked[name], plain[name]) for name in plain), "they were computed in another order"


@pytest.mark.parametrize(("autocast", "bound"), [(False, 1e-5), (True, 2e-2)])
def test_chunks_are_as_near_to_exact_gradients_as_the_whole(
    config: GPTConfig, small_chunks: None, autocast: bool, bound: float
) -> None:
    batch, exact = text_batch(), gpt(config)
    expected = outcome(lambda: loss_sum(exact, batch), exact)
    model = gpt(config, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain = outcome(lambda: loss_sum(model, batch), model)
        chunked = outcome(lambda: LossModel(model)(*batch.inputs, batch.targets_BT), model)
    assert chunked[""].dtype == torch.float32
    assert {gradient.dtype for gradient in chunked.values()} == {torch.float32}
    assert distance(chunked, expected) < min(bound, 1.5 * distance(plain, expected) + 1e-6)


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that an operation makes."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


def test_a_large_vocabulary_costs_no_more_than_a_chunk_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    vocab, count, width = 5000, 2000, 8
    monkeypatch.setattr(loss, "MAX_LOGITS_BYTES", 4 * vocab * 100)
    hidden_NM, weight_VM = torch.randn(count, width, requires_grad=True), torch.randn(vocab, width, requires_grad=True)
    targets_N = torch.randint(vocab, (count,))
    with Largest() as training:
        chunked_loss_sum(hidden_NM, weight_VM, targets_N).backward()
    with Largest() as evaluation, torch.no_grad():
        chunked_loss_sum(hidden_NM, weight_VM, targets_N)
    assert training.bytes == evaluation.bytes == 4 * vocab * 100


def test_an_evaluation_computes_no_gradients(
    config: GPTConfig, small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = gpt(config), text_batch()
    monkeypatch.setattr(loss, "chunk_gradients", None)
    with torch.no_grad():
        chunked = LossModel(model)(*batch.inputs, batch.targets_BT)
        torch.testing.assert_close(chunked, loss_sum(model, batch), rtol=1e-12, atol=0)


@pytest.mark.parametrize("chunks", [False, True])
def test_an_evaluation_computes_in_the_precision_of_the_run(
    config: GPTConfig, monkeypatch: pytest.MonkeyPatch, chunks: bool
) -> None:
    if chunks:
        monkeypatch.setattr(loss, "MAX_LOGITS_BYTES", 7 * 4 * VOCAB)
    model, dtypes = gpt(config, dtype=torch.float32), set()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    mean_loss(Accelerator(cpu=True, mixed_precision="bf16"), model, [text_batch()])
    assert dtypes == {torch.bfloat16}


class OtherLogits(GPT):
    def logits(self, hidden_BTM: Tensor) -> Tensor:
        return 5 * torch.tanh(super().logits(hidden_BTM) / 5)


class OtherForward(GPT):
    def forward(self, *arguments: Any, **options: Any) -> Tensor:
        return 2 * super().forward(*arguments, **options)


class OtherHead(GPT):
    def add_head(self) -> None:
        super().add_head()
        self.head = nn.Sequential(nn.LayerNorm(self.config.d_model), self.head)  # type: ignore[assignment, arg-type]


@pytest.mark.parametrize("model_class", [OtherLogits, OtherForward, OtherHead])
def test_a_model_that_makes_its_logits_in_another_way_has_its_own_loss(
    config: GPTConfig, small_chunks: None, model_class: type[GPT]
) -> None:
    model, batch = gpt(config, model_class), text_batch()
    assert torch.equal(LossModel(model)(*batch.inputs, batch.targets_BT), loss_sum(model, batch))


def test_a_model_of_another_kind_needs_only_to_make_logits(small_chunks: None) -> None:
    model, batch = drawn(nn.Sequential(nn.Embedding(VOCAB, 4), nn.Linear(4, VOCAB))), text_batch()
    assert torch.equal(LossModel(model)(*batch.inputs, batch.targets_BT), loss_sum(model, batch))
