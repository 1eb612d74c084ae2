"""Weights of one byte."""

import pytest
import torch
from torch import nn

from decoding.int8 import Int8Linear


def linear(inputs: int, outputs: int, scale: float = 1.0) -> nn.Linear:
    torch.manual_seed(7)
    layer = nn.Linear(inputs, outputs, bias=False)
    with torch.no_grad():
        layer.weight.copy_(scale * torch.randn(outputs, inputs) * torch.logspace(-6, 3, outputs)[:, None])
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_each_weight_is_within_half_a_step_of_its_output(scale: float, dtype: torch.dtype) -> None:
    layer = linear(50, 12, scale).to(dtype)
    before = layer.weight.detach().clone()
    rounded = Int8Linear(layer)
    assert rounded.weight.dtype == torch.int8
    assert rounded.weight.nbytes == 50 * 12
    assert torch.equal(layer.weight, before), "the layer given is left as it is"
    exact, step = before.double(), rounded.scale_O.double()[:, None]
    assert ((rounded.weight.double() * step - exact).abs() <= (0.5 + 1e-4) * step).all()
    # As small a step as can be, and the same range on both sides.
    torch.testing.assert_close(step * 127, exact.abs().amax(1, keepdim=True), rtol=1e-6, atol=0)
    assert rounded.weight.abs().amax(1).eq(127).all()
    assert rounded.weight.int().abs().max() == 127


def test_an_output_without_weights_stays_zero_and_finite() -> None:
    layer = linear(8, 3)
    with torch.no_grad():
        layer.weight[1] = 0
        layer.weight[2] = torch.finfo(torch.float32).tiny / 1000
    rounded = Int8Linear(layer)
    y_TO = rounded(1e3 * torch.randn(5, 8))
    assert rounded.scale_O.isfinite().all()
    assert rounded.scale_O.gt(0).all(), "weights are divided by it"
    assert y_TO.isfinite().all()
    assert y_TO[:, 1].eq(0).all()
    assert y_TO[:, 2].abs().max() < 1e-30


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("shape", [(2, 3, 50), (1, 1, 50), (4, 50)])
def test_the_product_is_that_of_the_rounded_weights_in_the_numbers_of_the_input(
    shape: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    rounded = Int8Linear(linear(50, 12))
    x = torch.randn(shape).to(dtype)
    y = rounded(x)
    assert (y.dtype, y.shape) == (dtype, (*shape[:-1], 12))
    for o in range(12):  # Each output has a scale of its own.
        terms = [int(n) * rounded.scale_O[o].item() * x[..., i].double() for i, n in enumerate(rounded.weight[o])]
        expected, largest = torch.stack(terms).sum(0), torch.stack(terms).abs().sum(0)
        assert ((y[..., o].double() - expected).abs() <= tolerance * largest).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bias_is_added_as_it_is(dtype: torch.dtype) -> None:
    layer = nn.Linear(50, 12).to(dtype)
    before, x = Int8Linear(linear_of(layer)), torch.randn(2, 50).to(dtype)
    rounded = Int8Linear(layer)
    assert rounded.bias is not None
    assert rounded.bias.dtype == torch.float32
    assert layer.bias.data_ptr() != rounded.bias.data_ptr()
    expected = before(x.float()) + layer.bias.float()
    torch.testing.assert_close(rounded(x).float(), expected, rtol=1e-6 if dtype == torch.float32 else 0.02, atol=1e-2)
    assert set(rounded.state_dict()) == {"weight", "scale_O", "bias"}


def linear_of(layer: nn.Linear) -> nn.Linear:
    alone = nn.Linear(layer.in_features, layer.out_features, bias=False)
    alone.weight = nn.Parameter(layer.weight.detach().clone())
    return alone


def test_it_has_nothing_to_train_and_all_of_it_is_in_the_state() -> None:
    rounded = Int8Linear(linear(4, 3))
    assert not list(rounded.parameters())
    assert set(rounded.state_dict()) == {"weight", "scale_O"}
