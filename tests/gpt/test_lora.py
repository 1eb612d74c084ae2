"""Runs that train an adapter: what they change, keep, and go on from."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from helpers import read_metrics, with_training
from torch import Tensor

from decoding.decoder import Decoder
from gpt.config import GPTConfig, LoraConfig
from gpt.task import GPTTask, load_gpt, measure_split, train_gpt
from layers.lora import merge_lora
from training import compiling
from training.planning.memory import expected_bytes
from training.planning.work import optimizer_bytes, sent_bytes
from training.runtime.errors import InputError
from training.storage.checkpoint import Checkpoint

SCALE = 6.0 / 3


@pytest.fixture
def tuned(config: GPTConfig, tmp_path: Path) -> GPTConfig:
    """A run that trains an adapter on top of a base which is a run as well, with all that follows weights."""
    train_gpt(with_training(config, eval_interval=0), output_dir=tmp_path / "base")
    lora = LoraConfig(rank=3, alpha=6.0, dropout=0.1, targets="query,value,up")
    optimizer = replace(config.optimizer, learning_rate=0.05)
    origin = {"init_from": str(tmp_path / "base"), "lora": lora}
    return replace(with_training(config, ema_decay=0.9, eval_interval=4), optimizer=optimizer, **origin)


def base_of(tmp_path: Path) -> dict[str, Tensor]:
    return load_gpt(tmp_path / "base").model.state_dict()


def files(run: Path, step: int) -> list[bytes]:
    place = run / f"checkpoints/step-{step:08d}"
    return [(place / f"{name}.safetensors").read_bytes() for name in ("model", "optimizer", "ema")]


def losses(run: Path) -> list[float]:
    return [line["train_loss"] for line in read_metrics(run)]


def test_a_checkpoint_holds_the_adapter_alone_and_is_loaded_with_its_base(
    tuned: GPTConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train_gpt(tuned, output_dir=run)
    base, checkpoint = base_of(tmp_path), Checkpoint(run / "checkpoints/last")
    parts = [f"blocks.{i}.{part}" for i in (0, 1) for part in ("attention.query", "attention.value", "feed_forward.up")]
    names = {f"{part}.lora_{x}" for part in parts for x in "ab"}
    saved = {name: checkpoint.tensors(name) for name in ("model", "ema", "optimizer")}
    assert saved["model"].keys() == saved["ema"].keys() == names
    assert saved["optimizer"].keys() == {f"{name}/momentum" for name in names}, "the matrices of blocks follow Muon"
    trained = sum(tensor.numel() for tensor in saved["model"].values())
    whole = sum(tensor.numel() for tensor in base.values()) + trained
    assert f"model       {whole:,} parameters, of which {trained:,} train\n" in capsys.readouterr().out
    for weights, name in (("raw", "model"), ("ema", "ema")):
        model = load_gpt(run, weights=weights).model
        for key, tensor in model.state_dict().items():
            part = key.removesuffix(".weight")
            if part in parts:
                a, b = saved[name][f"{part}.lora_a"], saved[name][f"{part}.lora_b"]
                torch.testing.assert_close(tensor, base[key] + SCALE * b @ a)
                assert b.abs().max() > 0
            else:
                assert torch.equal(tensor, base[key]), key
    loaded = load_gpt(run / "checkpoints/last")
    assert loaded.weights == "ema"
    assert Decoder(loaded.model).mode == "native"
    measured = measure_split(Accelerator(cpu=True), loaded, "val").loss
    assert measured == pytest.approx(read_metrics(run)[-1]["val_loss"], rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"recompute": "blocks", "accumulation_steps": 2, "background_saves": True}])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_goes_on_to_the_last_bit(
    tuned: GPTConfig, tmp_path: Path, optimizer: Any, options: dict[str, Any]
) -> None:
    tuned = with_training(replace(tuned, optimizer=replace(tuned.optimizer, name=optimizer)), **options)
    train_gpt(tuned, output_dir=tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "again", symlinks=True)
    shutil.rmtree(tmp_path / "again/checkpoints/step-00000012")
    train_gpt(tuned, output_dir=tmp_path / "again", resume=True)
    assert losses(tmp_path / "again") == losses(tmp_path / "whole")
    assert files(tmp_path / "again", 12) == files(tmp_path / "whole", 12)
    val_loss = measure_split(Accelerator(cpu=True), load_gpt(tmp_path / "base"), "val").loss
    assert read_metrics(tmp_path / "whole")[-1]["val_loss"] < val_loss - 0.002


@pytest.mark.parametrize(
    "options",
    [
        {"recompute": "attention", "accumulation_steps": 4},
        pytest.param({"compile": "blocks", "recompute": "blocks"}, marks=pytest.mark.ci),
        pytest.param({"compile": "model"}, marks=pytest.mark.ci),
    ],
)
def test_ways_to_compute_a_step_change_no_number(
    tuned: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    short = with_training(tuned, max_steps=4, precision="fp64")
    train_gpt(short, output_dir=tmp_path / "plain")
    train_gpt(with_training(short, **options), output_dir=tmp_path / "other")
    assert losses(tmp_path / "other") == pytest.approx(losses(tmp_path / "plain"), abs=1e-8, rel=0)


def test_nothing_is_computed_or_kept_for_what_is_frozen(tuned: GPTConfig) -> None:
    task, whole = GPTTask(tuned), GPTTask(replace(tuned, lora=LoraConfig()))
    learning = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
    found, of_whole = (expected_bytes(each.model, tuned, "fp32", 100) for each in (task, whole))
    assert found["gradients"] == found["optimizer"] == found["average"] == 4 * learning, "Muon has one momentum"
    assert found["weights"] == of_whole["weights"] + 4 * learning
    assert sent_bytes(task.model, tuned, "fp32") == (4 * learning, 4 * learning)
    assert optimizer_bytes(task.model, tuned) == pytest.approx(52 * learning)
    linear = [p for name, p in whole.model.named_parameters() if p.ndim == 2 and "embedding" not in name]
    frozen = sum(p.numel() for p in linear)
    assert task.flops_per_token == whole.flops_per_token - 2 * frozen + 6 * learning


def test_a_large_frozen_head_has_no_gradient(tuned: GPTConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from training import loss

    model, tokens_BT = GPTTask(tuned).model.double().eval(), torch.arange(64).view(4, 16) % 10

    def gradients() -> dict[str, Tensor]:
        loss.LossModel(model)(tokens_BT, tokens_BT.roll(-1, 1)).backward()
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return found

    expected = gradients()
    monkeypatch.setattr(loss, "MAX_LOGITS_BYTES", 256)
    found = gradients()
    assert found.keys() == expected.keys() == model.adapter
    assert all(torch.allclose(found[name], expected[name], rtol=0, atol=1e-10) for name in found)


def test_what_an_adapter_was_put_on_may_move_and_is_named_where_it_is_gone_or_another(
    tuned: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_gpt(with_training(tuned, max_steps=2), output_dir=tmp_path / "run")
    (tmp_path / "base").rename(tmp_path / "moved")
    needs = "an adapter needs the model that it is put on: init_from: "
    longer = with_training(tuned, max_steps=3)
    load = partial(load_gpt, tmp_path / "run")
    for use in (load, partial(train_gpt, longer, output_dir=tmp_path / "run", resume=True)):
        with pytest.raises(InputError, match=f"^{needs}{tmp_path}/base/checkpoints/step-00000012 does not exist: .*$"):
            use()
    monkeypatch.chdir(tmp_path)
    train_gpt(replace(longer, init_from="moved"), output_dir=tmp_path / "run", resume=True)
    monkeypatch.chdir("/")
    load()
    shutil.rmtree(tmp_path / "moved")
    train_gpt(replace(tuned, init_from=None, lora=LoraConfig(), seed=2), output_dir=tmp_path / "moved")
    others = f"{needs}the weights of {tmp_path}/moved/.* are not those that are expected: their SHA-256"
    with pytest.raises(InputError, match=f"^{others} is [^\n]*$"):
        load_gpt(tmp_path / "run")


def test_an_adapter_is_put_on_a_model_with_an_adapter(tuned: GPTConfig, tmp_path: Path) -> None:
    train_gpt(with_training(tuned, max_steps=4), output_dir=tmp_path / "run")
    expected = load_gpt(tmp_path / "run").model.state_dict()
    on_top = replace(tuned, init_from=str(tmp_path / "run"), lora=LoraConfig(rank=2))
    task = GPTTask(on_top)
    task.begin(None)
    model = task.model
    assert len(model.adapter) == 2 * 7 * 2
    for name, tensor in model.state_dict().items():
        if name not in model.adapter:
            torch.testing.assert_close(tensor, expected[name])
    merge_lora(model)
    assert model.state_dict().keys() == expected.keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_from": None}, "lora.rank is for a run with init_from, .* got [0-9]+, and init_from null"),
        (
            {"init_vocabulary": "shared"},
            "lora.rank is for --init_vocabulary same: an adapter trains no embeddings",
        ),
    ],
)
def test_an_adapter_without_its_base_is_refused(config: GPTConfig, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(config, **{"init_from": "somewhere", "lora": LoraConfig(rank=1)} | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": -1}, "lora.rank must be at least 0, and at most 1000000, got -1"),
        ({"alpha": 0.0}, "lora.alpha must be above 0, and finite, got 0.0"),
        ({"dropout": 1.0}, "lora.dropout must be at least 0 and below 1, got 1.0"),
        ({"targets": "query,"}, "lora.targets must be all, or names with commas between them, got 'query,'"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}$"):
        LoraConfig(**options)


def test_layers_that_a_block_does_not_have_are_named(tuned: GPTConfig) -> None:
    with pytest.raises(InputError, match=r"^lora.targets: expected 'all' or names out of down, .* got 'query,qv'$"):
        GPTTask(replace(tuned, lora=replace(tuned.lora, targets="query,qv")))
