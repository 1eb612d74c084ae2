"""What launch files start here, by calling `accelerate launch`, and what is said of that."""

import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers import ROOT

from training.doctor.findings import Check, Finding, examine
from training.doctor.launching import Launched, default_file, judge, launch, look_at_environment, look_at_launch_file

FILE = Path("launch.yaml")
LAUNCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
RANK_0 = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.fixture(autouse=True)
def no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*LAUNCH, "ACCELERATE_USE_CPU", "ACCELERATE_MIXED_PRECISION", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


def write(folder: Path, **settings: object) -> Path:
    """A launch file that asks for two processes, at a port that is free, unless it says otherwise."""
    content = {"compute_environment": "LOCAL_MACHINE", "num_processes": 2, "main_process_port": 0, **settings}
    (folder / FILE).write_text(yaml.safe_dump(content))
    return folder / FILE


def look(file: Path, num_processes: int | None = None) -> list[Finding]:
    return list(examine(Check("launch file", lambda: look_at_launch_file("launch file", file, num_processes), True)))


def test_a_file_that_starts_one_process_of_two_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [finding] = look(write(tmp_path, distributed_type="MULTI_CPU", use_cpu=True))
    assert finding == Finding(
        "launch file",
        "fault",
        "launch.yaml starts 1 process, 2 were asked for",
        "say distributed_type: MULTI_GPU, which means several processes of any kind (on a CPU, too), or take "
        "--config_file accelerate_config.yaml",
    )


@pytest.mark.ci
def test_a_file_for_two_machines_is_tried_on_this_one(tmp_path: Path) -> None:
    machines = {"num_machines": 2, "machine_rank": 1, "main_process_ip": "203.0.113.1"}
    file = write(tmp_path, distributed_type="MULTI_GPU", num_processes=4, **machines)
    started, others = look(file)
    assert str(started) == f"good         launch file  {file} starts 2 processes"
    assert others.status == "not checked"
    assert others.measured == f"{file} is for 2 machines, of which this is one"
    [odd] = look(write(tmp_path, distributed_type="MULTI_GPU", num_processes=3, **machines))
    assert (odd.status, odd.measured) == ("fault", f"{file}: 3 processes do not divide by 2 machines")


@pytest.mark.ci
def test_our_file_for_fsdp2_is_good() -> None:
    """It takes Accelerate's own port, which it leaves for another where that is not free."""
    found = look(ROOT / "configs/accelerate/fsdp2.yaml", 2)
    assert [finding.status for finding in found] == ["good"], found
    assert found[0].measured.endswith("fsdp2.yaml starts 2 processes")


@pytest.mark.parametrize(("version", "statuses"), [("2", ["good"]), ("1", ["fault"])])
def test_of_the_two_fsdp_the_second_is_good(version: str, statuses: list[str]) -> None:
    launched = Launched([RANK_0 | {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": version}] * 2)
    assert [finding.status for finding in judge("launch file", FILE, 2, launched)] == statuses


@pytest.mark.ci
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 1}}, "FSDP"),
        ({"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 2}}, "DeepSpeed"),
        ({"distributed_type": "MEGATRON_LM"}, "Megatron-LM"),
        ({"distributed_type": "MULTI_GPU", "no_such_setting": 1}, "no_such_setting"),
    ],
)
def test_what_is_not_done_here_is_a_fault(tmp_path: Path, settings: dict[str, object], said: str) -> None:
    [finding] = look(write(tmp_path, **settings))
    assert finding.status == "fault"
    assert said in finding.measured


def test_a_launcher_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = tmp_path / "python"
    hangs.write_text("#!/bin/sh\nsleep 60\n")
    hangs.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(hangs))
    assert launch(FILE, 2, seconds=0.5) == Launched([], "it had not ended after 0.5 s")


@pytest.mark.parametrize("content", ["- 1", "num_processes: [", "a: &b 1"])
def test_a_file_that_is_none_is_a_fault(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    [finding] = look(tmp_path / FILE)
    assert finding.status == "fault"
    assert finding.measured.startswith(str(tmp_path / FILE))


@pytest.mark.parametrize(
    ("cards", "started", "variables", "status", "said"),
    [
        (2, 2, {}, "good", "launch.yaml starts 2 processes"),
        (
            4,
            2,
            {},
            "warning",
            "starts 2 processes, 2 of 4 GPUs stand idle: to use them all: accelerate launch --multi_gpu",
        ),
        (
            1,
            2,
            {},
            "fault",
            "starts 2 processes, and torch sees 1 GPUs: --num_processes 1, or look at CUDA_VISIBLE_DEV",
        ),
        (2, 2, {"ACCELERATE_USE_CPU": "true"}, "warning", "on the CPU: 2 GPUs stand idle: say use_cpu: false"),
        (0, 2, {}, "good", "launch.yaml starts 2 processes"),
    ],
)
def test_processes_are_held_against_the_cards(
    monkeypatch: pytest.MonkeyPatch,
    cards: int,
    started: int,
    variables: dict[str, str],
    status: str,
    said: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
    [finding] = judge("launch file", FILE, started, Launched([RANK_0 | variables] * started))
    assert finding.status == status
    assert said in str(finding)


def test_a_launch_that_starts_nothing_is_a_fault() -> None:
    [finding] = judge("launch file", FILE, None, Launched([]))
    assert (finding.status, finding.measured) == ("fault", "launch.yaml: accelerate launch fails: it starts nothing")


def test_settings_that_are_ignored_are_warned_of() -> None:
    launched = Launched([RANK_0 | {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}] * 2)
    good, ignored = judge("launch file", FILE, 2, launched)
    assert good.status == "good"
    assert ignored.status == "warning"
    assert ignored.measured == "ACCELERATE_DYNAMO_BACKEND=INDUCTOR of the launch configuration is ignored"


def test_a_leftover_of_a_launch_in_the_environment_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [finding.status for finding in look_at_environment()] == ["good"]
    monkeypatch.setenv("LOCAL_RANK", "0")
    [finding] = examine(Check("environment", look_at_environment))
    assert finding.status == "fault"
    assert "unset LOCAL_RANK" in finding.measured


def test_the_users_own_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "default_config.yaml"
    monkeypatch.setattr("accelerate.commands.config.default_config_file", str(file))
    assert default_file() is None
    file.write_text("")
    assert default_file() == file
