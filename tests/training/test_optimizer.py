"""The optimizer against torch's own, and against its equations."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from training import optimizer as optimizer_module
from training.config.sections import OptimizerConfig
from training.optimizer import MuonAdamW, build_optimizer, optimizer_tensors
from training.orthogonal import orthogonalize


class Net(nn.Module):
    """Two blocks between an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(5, 6)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 6)) for _ in range(2)])
        self.head = nn.Linear(6, 5, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for step in range(count):
        torch.manual_seed(step)
        tokens = torch.randint(5, (8,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(tokens), tokens).backward()
        optimizer.step()


def test_adamw_equals_torchs_with_decay_on_the_matrices_of_blocks_alone() -> None:
    ours, theirs = Net().double(), Net().double()
    config = OptimizerConfig(name="adamw", learning_rate=0.01, weight_decay=0.2, beta1=0.8, beta2=0.9, eps=1e-6)
    take_steps(ours, build_optimizer(ours, config, bf16=False), 10)
    matrices = [p for p in theirs.blocks.parameters() if p.ndim == 2]
    rest = [p for p in theirs.parameters() if all(p is not m for m in matrices)]
    groups = [{"params": matrices, "weight_decay": 0.2}, {"params": rest, "weight_decay": 0.0}]
    take_steps(theirs, torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.9), eps=1e-6), 10)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_a_muon_step_follows_its_equation() -> None:
    model = Net().double()
    config = OptimizerConfig(name="muon", muon_learning_rate=0.1, weight_decay=0.5, momentum=0.9)
    optimizer = build_optimizer(model, config, bf16=False)
    weight = model.get_parameter("blocks.1.0.weight")
    expected, momentum = weight.detach().clone(), torch.zeros_like(weight)
    for step in range(3):
        take_steps(model, optimizer, 1) if step == 0 else take_steps_from(model, optimizer, step)
        assert weight.grad is not None
        momentum = 0.9 * momentum + weight.grad
        direction = orthogonalize((weight.grad + 0.9 * momentum)[None], torch.float64)[0]
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * (9 / 6) ** 0.5 * direction
        torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-12)


def take_steps_from(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    torch.manual_seed(step)
    tokens = torch.randint(5, (8,))
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(tokens), tokens).backward()
    optimizer.step()


def muon_names(model: nn.Module, optimizer: MuonAdamW) -> set[str]:
    return {name for name, p in model.named_parameters() if "momentum" in optimizer.state[p]}


def test_muon_takes_the_matrices_of_blocks_and_adamw_the_rest() -> None:
    model = Net()
    optimizer = build_optimizer(model, OptimizerConfig(name="muon"), bf16=False)
    assert muon_names(model, optimizer) == {f"blocks.{i}.{j}.weight" for i in range(2) for j in range(2)}


def test_learning_rates_keep_their_ratio() -> None:
    config = OptimizerConfig(name="muon", learning_rate=0.004, muon_learning_rate=0.02)
    optimizer = build_optimizer(Net(), config, bf16=False)
    assert optimizer.set_learning_rate(0.5) == pytest.approx(0.002)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.002])


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_restored_tensors_go_on_as_if_never_stopped(name: str) -> None:
    config = OptimizerConfig(name=name, learning_rate=0.01)
    whole, first, second = Net(), Net(), Net()
    optimizers = [build_optimizer(model, config, bf16=False) for model in (whole, first, second)]
    take_steps(whole, optimizers[0], 3)
    take_steps_from(whole, optimizers[0], 3)
    take_steps(first, optimizers[1], 3)
    second.load_state_dict(first.state_dict())
    saved = optimizer_tensors(first, optimizers[1])
    for key, tensor in optimizer_tensors(second, optimizers[2]).items():
        tensor.copy_(saved[key])
    take_steps_from(second, optimizers[2], 3)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_bf16_is_used_only_where_training_uses_it() -> None:
    gradient = torch.randn(1, 16, 16, dtype=torch.float64)
    assert orthogonalize(gradient, torch.bfloat16).dtype == torch.bfloat16
    for bf16, exact in ((True, False), (False, True)):
        model = Net()
        optimizer = build_optimizer(model, OptimizerConfig(name="muon", weight_decay=0.0), bf16=bf16)
        weight = model.get_parameter("blocks.0.0.weight")
        before = weight.detach().clone()
        take_steps(model, optimizer, 1)
        assert weight.grad is not None
        direction = orthogonalize(weight.grad[None] * 1.95, torch.float32)[0]
        error = (before - weight.detach()) / (0.02 * (9 / 6) ** 0.5) - direction
        assert bool(error.abs().max() < 1e-4) == exact


def gradients_of(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)


def all_tensors(model: nn.Module, optimizer: MuonAdamW) -> dict[str, Tensor]:
    return model.state_dict() | optimizer_tensors(model, optimizer)


def bits(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: t.detach().contiguous().flatten().view(torch.uint8).tolist() for name, t in tensors.items()}


class HostReads(TorchDispatchMode):
    """Counts the times that the host asks for a number."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_found_inf_decides_on_the_device_whether_anything_changes(name: str, dtype: torch.dtype) -> None:
    """With 1 nothing does, whatever the gradients are; with 0 all does, as without it."""
    config = OptimizerConfig(name=name, learning_rate=0.01, weight_decay=0.1)
    models = [Net().to(dtype) for _ in range(2)]
    ours, plain = (build_optimizer(model, config, bf16=False) for model in models)
    for step, poison in enumerate([None, math.nan, 1.0, math.inf, None, -math.inf]):
        gradients_of(models[0], step)
        if poison is not None:
            for p in models[0].parameters():
                assert p.grad is not None
                p.grad[..., 0] *= poison
        ours.found_inf = torch.tensor([float(poison is not None)])
        before = bits(all_tensors(models[0], ours))
        with HostReads() as reads:
            ours.step()
        assert reads.count == 0, "the host does not know"
        if poison is None:
            gradients_of(models[1], step)
            plain.step()
        else:
            assert bits(all_tensors(models[0], ours)) == before
        assert bits(all_tensors(models[0], ours)) == bits(all_tensors(models[1], plain))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_on_a_gpu_is_left_out_without_a_wait(name: str) -> None:
    model = Net().cuda()
    optimizer = build_optimizer(model, OptimizerConfig(name=name), bf16=True)
    for step, poison in enumerate([1.0, math.nan]):
        for p in model.parameters():
            p.grad = torch.full_like(p, poison)
        before = {key: tensor.clone() for key, tensor in all_tensors(model, optimizer).items()}
        optimizer.found_inf = torch.full((), float(step), device="cuda")
        torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        after = all_tensors(model, optimizer)
        assert all(torch.equal(tensor, after[key]) for key, tensor in before.items()) == bool(step)


def test_a_device_whose_fused_adamw_ignores_found_inf_asks_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer_module, "NEEDS_HOST_TO_SKIP", ("cpu",))
    monkeypatch.setattr(optimizer_module, "adamw", None)
    model = Net()
    optimizer = build_optimizer(model, OptimizerConfig(), bf16=False)
    gradients_of(model, 0)
    optimizer.found_inf = torch.ones(1)
    optimizer.step()


@pytest.mark.parametrize("unscaled_before", [False, True])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_torchs_scaler_leaves_steps_out_and_unscales(name: str, unscaled_before: bool) -> None:
    config = OptimizerConfig(name=name, learning_rate=0.01)
    models = [Net() for _ in range(2)]
    ours, plain = (build_optimizer(model, config, bf16=False) for model in models)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=100)
    scaler.scale(torch.ones(()))
    for step, overflows in enumerate([False, True, False]):
        gradients_of(models[0], step)
        for p in models[0].parameters():
            assert p.grad is not None
            p.grad *= math.inf if overflows else scaler.get_scale()
        if unscaled_before:
            scaler.unscale_(ours)
        with HostReads() as reads:
            scaler.step(ours)
        assert reads.count == 0
        assert ours.found_inf is None
        scaler.update()
        if not overflows:
            gradients_of(models[1], step)
            plain.step()
        assert bits(all_tensors(models[0], ours)) == bits(all_tensors(models[1], plain))
    assert scaler.get_scale() == 512.0
