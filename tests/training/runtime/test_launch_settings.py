"""What a launcher's environment may change, and what not."""

from pathlib import Path

import pytest
from helpers import read_metrics, with_training

from gpt.config import GPTConfig
from gpt.task import train_gpt
from training.runtime.errors import InputError
from training.runtime.launch_settings import Sharding, asked_sharding, check_launch, ignored_settings

LAUNCH = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.fixture(autouse=True)
def no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*LAUNCH, "LOCAL_WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"MASTER_ADDR": "", "MASTER_PORT": ""},
            "WORLD_SIZE=2 in the environment is half of a launch: MASTER_ADDR, MAST",
        ),
        (
            {"MASTER_PORT": ""},
            "MASTER_PORT is not set. Start with accelerate launch or torchrun, or .* unset WORLD_SIZE",
        ),
        ({"WORLD_SIZE": "", "RANK": "0"}, "WORLD_SIZE in the environment must be a number, got ''"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE in the environment must be a number, got 'two'"),
        ({"LOCAL_WORLD_SIZE": "-1"}, "LOCAL_WORLD_SIZE in the environment must be a number, got '-1'"),
        ({"RANK": "2"}, "RANK=2 in the environment is none of WORLD_SIZE=2 processes"),
        (
            {"ACCELERATE_USE_FSDP": "true"},
            "asks for FSDP 1, which is not done here: set fsdp_version to 2 in its fsdp_c",
        ),
        (
            FSDP2 | {"FSDP_OFFLOAD_PARAMS": "true"},
            r"memory \(fsdp_offload_params\), .*: set it to false in its fsdp_conf",
        ),
        (FSDP2 | {"FSDP_IGNORED_MODULES": "head"}, r"\(fsdp_ignored_modules\), .* or take --config_file configs/acc"),
        (
            FSDP2 | {"FSDP_RESHARD_AFTER_FORWARD": "2"},
            "asks for fsdp_reshard_after_forward 2, .*: set it to true or false",
        ),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "asks for DeepSpeed"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "asks for Megatron-LM"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "asks for a parallelism configuration"),
    ],
)
def test_half_of_a_launch_and_what_is_not_done_are_one_line(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], said: str
) -> None:
    for name, value in (LAUNCH | changes).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=said):
        check_launch()


@pytest.mark.parametrize("launch", [{}, LAUNCH, {"RANK": "0", "WORLD_SIZE": "1"}, {"ACCELERATE_USE_FSDP": "false"}])
def test_a_whole_launch_or_none_passes(monkeypatch: pytest.MonkeyPatch, launch: dict[str, str]) -> None:
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    check_launch()


@pytest.mark.parametrize(
    ("asked", "resharding"), [("true", True), ("full_shard", True), ("false", False), ("shard_grad_op", False)]
)
def test_fsdp2_is_taken_from_the_launch_and_what_it_does_not_do_is_named(
    monkeypatch: pytest.MonkeyPatch, asked: str, resharding: bool
) -> None:
    assert asked_sharding() is None
    for name, value in (LAUNCH | FSDP2 | {"FSDP_RESHARD_AFTER_FORWARD": asked}).items():
        monkeypatch.setenv(name, value)
    check_launch()
    assert asked_sharding() == Sharding(resharding)
    assert ignored_settings() == []
    monkeypatch.setenv("FSDP_ACTIVATION_CHECKPOINTING", "true")
    (said,) = ignored_settings()
    assert said.startswith("FSDP_ACTIVATION_CHECKPOINTING=true of the launch configuration is ignored: --training.rec")


def test_a_leftover_rank_says_what_to_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(
        InputError, match="LOCAL_RANK=0 .*: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT are not set.*unset L"
    ):
        check_launch()


def test_what_accelerate_refuses_is_one_line(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "maybe")
    with pytest.raises(InputError, match="the launch does not serve: invalid truth value maybe"):
        train_gpt(config, output_dir=tmp_path / "run")


def test_no_setting_of_accelerate_changes_a_number_and_each_that_would_is_named(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_training(config, max_steps=3, accumulation_steps=2)
    train_gpt(config, output_dir=tmp_path / "plain")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")  # As launchers set it where nothing was asked.
    assert ignored_settings() == []
    capsys.readouterr()
    asked = {
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
        "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
        "ACCELERATE_MIXED_PRECISION": "fp8",
    }
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.compile", lambda *arguments, **options: pytest.fail("it is compiled"))
    train_gpt(config, output_dir=tmp_path / "asked")
    said = capsys.readouterr().out
    for name, value in asked.items():
        assert said.count(f"warning     {name}={value} of the launch configuration is ignored: ") == 1
    names = ("train_loss", "grad_norm", "val_loss")
    plain, other = (
        [[line.get(name) for name in names] for line in read_metrics(tmp_path / run)] for run in ("plain", "asked")
    )
    assert plain == other
