"""Dropout as a pure function of a sample's seed, on every way that computes it."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from gpt.config import ModelConfig
from layers import Block, MultiHeadAttention, RotaryPositions, SwiGLU
from layers.dropout import Dropout, keep_mask, set_sample_seeds
from layers.native import kernels
from layers.norm import RMSNorm

SEEDS_B = torch.tensor([3, -(2**62), 2**40 + 5])


def test_masks_are_honest_in_distribution() -> None:
    model = torch.nn.ModuleList([Dropout(0.2), Dropout(0.2)])
    set_sample_seeds(model, torch.arange(64))
    first, second = (module.keys_B for module in model)
    assert first is not None
    assert second is not None
    places = [keep_mask(first, torch.Size((64, 4096)), place, 0.2).double() for place in (0, 1)]
    masks = [*places, keep_mask(second, torch.Size((64, 4096)), 0, 0.2).double()]
    sigma = (0.2 * 0.8 / 4096) ** 0.5
    for mask_BN in masks:
        assert abs(mask_BN.mean() - 0.8) < 4 * sigma / 8
        assert 0.75 * sigma < mask_BN.mean(1).std() < 1.25 * sigma, "samples vary as independent ones do"
        assert (mask_BN.mean(0) - 0.8).abs().max() < 5 * 0.05, "and so do elements"
    centred = [(mask_BN - 0.8).flatten() for mask_BN in masks]
    apart = [shifted for step in (1, 2, 64, 4096) for shifted in [centred[0].roll(step)]]
    for other in [*centred[1:], *apart]:
        correlation = (centred[0] * other).mean() / 0.16
        assert abs(correlation) < 4 / 512, "of places, modules, neighbours, rows and samples none repeats another"


def test_a_sample_has_its_mask_in_whatever_batch() -> None:
    dropout = Dropout(0.3)
    x_BN = torch.ones(3, 50)
    set_sample_seeds(dropout, SEEDS_B)
    whole = dropout(x_BN)
    set_sample_seeds(dropout, SEEDS_B[[2, 0]])
    assert torch.equal(dropout(x_BN[:2]), whole[[2, 0]])
    assert not torch.equal(dropout(x_BN[:2], site=1), whole[[2, 0]])
    with pytest.raises(ValueError, match=r"as many sequences as there are seeds \(2\), got 3"):
        dropout(x_BN)
    dropout.eval()
    assert dropout(x_BN) is x_BN
    dropout.train()
    set_sample_seeds(dropout, None)
    torch.manual_seed(1)
    drawn = dropout(x_BN)
    torch.manual_seed(1)
    assert torch.equal(dropout(x_BN), drawn)


@dataclass
class Case:
    """A layer in training, and what it is called with."""

    layer: torch.nn.Module
    call: Callable[[torch.nn.Module, Tensor], Tensor]


def attention(*, dropout: float = 0.3, num_kv_heads: int | None = None, qk_norm: bool = True) -> MultiHeadAttention:
    return MultiHeadAttention(d_model=64, num_heads=4, num_kv_heads=num_kv_heads, dropout=dropout, qk_norm=qk_norm)


ROTARY = RotaryPositions(40, 16)
MEMORY_BSM = torch.randn(3, 30, 64, generator=torch.Generator().manual_seed(1))
MASK_B1S = torch.arange(40) < torch.tensor([40, 17, 1])[:, None, None]
POSITIONS_BT = torch.arange(40).expand(3, -1).flip(1)
BLOCK = Block(ModelConfig(d_model=64, num_heads=4, num_kv_heads=2, d_ff=96, dropout=0.2))
AS_GPT2 = Block(
    ModelConfig(
        d_model=64, num_heads=4, d_ff=96, dropout=0.2, positions="learned", qk_norm=False, norm="layer",
        activation="gelu", attention_bias=True, feed_forward_bias=True, head_dim=20,
    )
)  # fmt: skip
AS_GPT2.attention.key.bias.requires_grad_(False)  # It changes all scores of a query alike: its gradient is rounding.
CASES = {
    "norm": Case(RMSNorm(64), lambda layer, x: layer(x)),
    "swiglu": Case(SwiGLU(64, 48), lambda layer, x: layer(x)),
    "dropout": Case(Dropout(0.3), lambda layer, x: layer(x, site=2)),
    "causal": Case(attention(), lambda layer, x: layer(x, causal=True, rotary=ROTARY(40))),
    "grouped, own places": Case(
        attention(num_kv_heads=2), lambda layer, x: layer(x, causal=True, rotary=ROTARY(40, POSITIONS_BT))
    ),
    "padding": Case(attention(qk_norm=False), lambda layer, x: layer(x, mask_BTS=MASK_B1S)),
    "causal padding": Case(attention(num_kv_heads=1), lambda layer, x: layer(x, causal=True, mask_BTS=MASK_B1S)),
    "memory": Case(
        attention(),
        lambda layer, x: layer(x, MEMORY_BSM, mask_BTS=MASK_B1S[..., :30], rotary=ROTARY(40), memory_rotary=ROTARY(30)),
    ),
    "no dropout": Case(attention(dropout=0.0), lambda layer, x: layer(x, causal=True, rotary=ROTARY(40))),
    "biases, heads apart": Case(
        MultiHeadAttention(
            d_model=64, num_heads=3, num_kv_heads=1, head_size=16, bias=True, qk_norm=True, norm_eps=0.1
        ),
        lambda layer, x: layer(x, causal=True, rotary=ROTARY(40)),
    ),
    "swiglu with biases": Case(SwiGLU(64, 48, bias=True), lambda layer, x: layer(x)),
    "block": Case(BLOCK, lambda layer, x: layer(x, ROTARY(40), causal=True)),
    "GPT-2's block": Case(AS_GPT2, lambda layer, x: layer(x, None, causal=True)),
}


def results(case: Case, x_BTM: Tensor) -> list[Tensor]:
    """What comes out, and all gradients."""
    case.layer.zero_grad()
    x_BTM = x_BTM.clone().requires_grad_()
    y_BTM = case.call(case.layer, x_BTM)
    y_BTM.backward(torch.linspace(-1, 1, y_BTM.numel(), dtype=y_BTM.dtype).view_as(y_BTM))
    gradients = [parameter.grad for parameter in [x_BTM, *case.layer.parameters()]]
    return [y_BTM.detach(), *(gradient for gradient in gradients if gradient is not None)]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    case = CASES[request.param]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in case.layer.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    set_sample_seeds(case.layer, SEEDS_B)
    return case


@pytest.mark.parametrize("dtype", ["fp32", "autocast to bf16"])
def test_native_kernels_compute_what_torch_does(case: Case, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernels._library() is None:
        pytest.skip("there is no C++ compiler")
    x_BTM = torch.randn(3, 40, 64, generator=torch.Generator().manual_seed(2))
    found = []
    for min_elements in (1, 2**40):
        monkeypatch.setattr(kernels, "MIN_ELEMENTS", min_elements)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != "fp32"):
            found.append(results(case, x_BTM))
    for native, plain in zip(*found, strict=True):
        size = plain.abs().max()  # Gradients are sums of hundreds of products, in an order of each processor's own.
        assert (native - plain).abs().max() <= size * (5e-6 if dtype == "fp32" else 0.03)


@pytest.mark.parametrize("case", ["block", "GPT-2's block", "memory", "causal padding"], indirect=True)
def test_traced_code_drops_the_same(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "MIN_ELEMENTS", 1)
    x_BTM = torch.randn(3, 40, 64, generator=torch.Generator().manual_seed(2))
    expected = results(case, x_BTM)
    torch._dynamo.reset()
    traced = Case(case.layer, torch.compile(case.call, backend="aot_eager", fullgraph=True))
    for found, wanted in zip(results(traced, x_BTM), expected, strict=True):
        assert (found - wanted).abs().max() <= 2e-6 * wanted.abs().max()


def test_sizes_that_do_not_fit_are_errors_on_every_way(monkeypatch: pytest.MonkeyPatch) -> None:
    x_BTM, layer = torch.randn(3, 40, 64), attention()
    set_sample_seeds(layer, SEEDS_B)
    for min_elements in (1, 2**40):
        monkeypatch.setattr(kernels, "MIN_ELEMENTS", min_elements)
        with pytest.raises(RuntimeError):
            RMSNorm(32)(x_BTM)
        with pytest.raises((ValueError, RuntimeError)):
            layer(x_BTM, causal=True, rotary=ROTARY(30))
        with pytest.raises((ValueError, RuntimeError)):
            layer(x_BTM, mask_BTS=MASK_B1S[..., :30])
        with pytest.raises(ValueError, match=r"as many sequences as there are seeds \(3\), got 2"):
            layer(x_BTM[:2], causal=True)


def test_without_a_compiler_or_in_fp64_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(64, 128)
    assert not kernels.serve(x.double())
    assert not kernels.serve(x.half())
    assert not kernels.serve(x[0]), "too small"
    monkeypatch.setattr(kernels, "_library", lambda: None)
    assert not kernels.serve(x)
