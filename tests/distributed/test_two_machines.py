"""Two machines for real, each a network namespace with one process: the numbers of one, and no night lost to a hang."""

import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from distributed.machines import PORT, Machine, NoNamespacesError, accelerate_launch, start, two_machines
from helpers import ROOT, command, read_metrics, torchrun, with_training

from data.config import TextConfig
from gpt.config import GPTConfig, ModelConfig
from gpt.task import train_gpt
from training.config.command_line import config_to_yaml
from training.config.sections import OptimizerConfig, TrainingConfig

pytestmark = pytest.mark.ci
TRAIN = ROOT / "launch/train_gpt.py"
MODEL = "checkpoints/last/model.safetensors"
LAST_WORDS = 10
"""Seconds that a process waits with an error of its own for that of the main process."""


class Run:
    """A run on two machines: a folder for each, so that they share no disk."""

    def __init__(self, machines: tuple[Machine, Machine], config: GPTConfig, folder: Path) -> None:
        self.machines, self.folder = machines, folder
        self.config_file = folder / "config.yaml"
        self.config_file.write_text(config_to_yaml(config))
        self.launched: list[subprocess.Popen[str]] = []

    @property
    def output(self) -> Path:
        return self.folder / "machine0/run"

    def log(self, rank: int) -> str:
        file = self.folder / f"log{rank}"
        return file.read_text() if file.exists() else ""

    def start_one(self, rank: int, *options: str, launcher: str = "accelerate") -> "subprocess.Popen[str]":
        launch = accelerate_launch(rank, self.machines[0])
        if launcher == "torchrun":
            here = ["--nnodes", "2", "--node_rank", str(rank), "--nproc_per_node", "1", "--max_restarts", "3"]
            there = ["--master_addr", self.machines[0].address, "--master_port", PORT]
            launch = ["-m", "torch.distributed.run", *here, *there]
        train = [TRAIN, "--config", self.config_file, "--output_dir", "run", *options]
        log = self.folder / f"log{rank}"
        return start(self.machines[rank], [*launch, *train], self.folder / f"machine{rank}", log)

    def start(self, *options: str, launcher: str = "accelerate") -> None:
        self.launched = [self.start_one(rank, *options, launcher=launcher) for rank in range(2)]

    def wait(self, rank: int, seconds: float = 90) -> int:
        return self.launched[rank].wait(timeout=seconds)

    def wait_for_step(self, step: int, launch: int = 0) -> None:
        """Until the main process has come to a step, after so many lines about what it goes on from."""
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            said = self.log(0).split("resuming    ")
            steps = re.findall(r"^step +(\d+)/", said[launch], re.MULTILINE) if len(said) > launch else []
            if steps and int(steps[-1]) >= step:
                return
            time.sleep(0.02)
        raise AssertionError(f"no step {step}: {self.log(0)}")


@pytest.fixture
def machines() -> Iterator[tuple[Machine, Machine]]:
    try:
        with two_machines() as both:
            yield both
    except NoNamespacesError as error:
        pytest.skip(f"no network namespaces here: {error}")


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> GPTConfig:
    """Long enough that a fault finds it under way."""
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("".join(f"{i} times {i % 7} is {i * (i % 7)}.\n" for i in range(300)))
    return GPTConfig(
        name="small",
        tracking="none",
        model=ModelConfig(num_layers=1, d_model=16, num_heads=2, d_ff=32, max_len=16, dropout=0.1),
        data=TextConfig(source=str(text)),
        training=TrainingConfig(
            max_steps=300, batch_size=8, precision="fp32", eval_interval=0, log_interval=1, checkpoint_interval=20
        ),
        optimizer=OptimizerConfig(name="muon", learning_rate=5e-3),
    )


@pytest.fixture(scope="module")
def whole(long: GPTConfig, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights that two processes come to whom nothing happens."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "config.yaml").write_text(config_to_yaml(long))
    train = [*torchrun(2), TRAIN, "--config", "config.yaml", "--output_dir", "run"]
    done = command(*train, cwd=folder, ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    return (folder / "run" / MODEL).read_bytes()


def test_two_machines_give_the_losses_of_one_process(
    machines: tuple[Machine, Machine], config: GPTConfig, tmp_path: Path
) -> None:
    exact = with_training(config, precision="fp64", max_steps=20, eval_interval=10, ema_decay=0.9)
    exact = replace(exact, model=replace(exact.model, dropout=0.0))
    train_gpt(exact, output_dir=tmp_path / "one")
    run = Run(machines, exact, tmp_path)
    run.start()
    assert [run.wait(rank) for rank in range(2)] == [0, 0], run.log(0) + run.log(1)
    assert run.log(0).count("device      cpu, 2 processes, ") == 1
    assert not (tmp_path / "machine1/run").exists(), "the main process alone writes"
    one, two = read_metrics(tmp_path / "one"), read_metrics(run.output)
    assert len(one) == len(two) == 20
    for a, b in zip(one, two, strict=True):
        for key in {"train_loss", "val_loss"} & (a.keys() | b.keys()):
            assert b[key] == pytest.approx(a[key], abs=1e-8, rel=0), key


@pytest.mark.nightly
@pytest.mark.parametrize("fault", ["the cable is pulled", "machine 0 dies", "machine 1 dies"])
def test_what_is_left_ends_with_one_line_and_both_go_on_from_the_last_checkpoint(
    machines: tuple[Machine, Machine], long: GPTConfig, whole: bytes, tmp_path: Path, fault: str
) -> None:
    run = Run(machines, with_training(long, collective_timeout=3.0), tmp_path)
    run.start()
    run.wait_for_step(50)
    if fault == "the cable is pulled":
        machines[1].set_card("down")
        left, reason, seconds = [0, 1], "silent (after 3 s|for too long)", 3.0
    else:
        died = int(fault.split()[1])
        machines[died].kill()
        left, reason, seconds = [1 - died], "its connection is closed", 0.0
    start = time.monotonic()
    for rank in left:
        assert run.wait(rank) != 0
        assert time.monotonic() - start < seconds + LAST_WORDS + 10, "bounded"
        line = rf"error: lost touch with another process \({reason}\)"
        assert len(re.findall(line, run.log(rank))) == 1, run.log(rank)
        assert "Traceback" not in run.log(rank).split("error: lost touch")[0], run.log(rank)
    machines[1].set_card("up")
    run.start("--resume")
    assert [run.wait(rank) for rank in range(2)] == [0, 0], run.log(0) + run.log(1)
    assert int(re.findall(r"resuming    after step (\d+)", run.log(0))[0]) >= 40
    assert not (tmp_path / "machine1/run").exists(), "the main process reads for both"
    assert (run.output / MODEL).read_bytes() == whole


@pytest.mark.nightly
def test_torchrun_restarts_over_both_machines_and_lets_one_come_back(
    machines: tuple[Machine, Machine], long: GPTConfig, whole: bytes, tmp_path: Path
) -> None:
    """A process dies, and both launchers start theirs again; then a machine does, and what is left waits for it."""
    run = Run(machines, with_training(long, collective_timeout=60.0), tmp_path)
    run.start("--resume", launcher="torchrun")
    run.wait_for_step(30)
    workers = [process for process in machines[1].processes() if "RANK" in process.environ()]
    for process in workers:
        process.kill()
    run.wait_for_step(100, launch=1)
    machines[1].kill()
    run.launched[1].wait(timeout=10)
    run.launched[1] = run.start_one(1, "--resume", launcher="torchrun")
    assert [run.wait(rank) for rank in range(2)] == [0, 0], run.log(0) + run.log(1)
    assert run.log(0).count("resuming    after step ") == 2, run.log(0)
    assert [line["step"] for line in read_metrics(run.output)] == list(range(1, 301))
    assert (run.output / MODEL).read_bytes() == whole
