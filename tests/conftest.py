"""Fixtures of several suites."""

import atexit
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # As many workers as there are cores share them.

import training  # noqa: F401  Before torch: it says how OpenMP's threads wait.

# isort: split
import forking
import pytest
from accelerate.state import AcceleratorState, GradientState
from demo_runs import make_runs

from data.config import TextConfig
from gpt.config import GPTConfig, ModelConfig
from gpt.task import GPTTask
from training.config.sections import OptimizerConfig, ScheduleConfig, TrainingConfig

if forking.ADDRESS not in os.environ:
    # Tokens of tests, and of the commands that they start, are no one's who runs them.
    os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="home-of-tests-")
    atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
forking.prepare()
os.fsync = lambda _: None  # What a test writes need not outlive a power failure.


_imported = 0
"""How many modules the garbage collector leaves out."""


def freeze_imports() -> None:
    """What is imported stays: the end of each training, which collects garbage, need not look through it again."""
    global _imported
    if len(sys.modules) > _imported + 50:
        gc.collect()
        gc.freeze()
        _imported = len(sys.modules)


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps its state for the life of a process; each test starts without."""
    freeze_imports()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="session", autouse=True)
def short_samples() -> Iterator[None]:
    """The text that is written at each evaluation takes most of a small run's time; commands write it whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPTTask, "sample_length", 20)
        yield


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the trained runs `small` (a GPT) and `copy` (an encoder-decoder)."""
    return make_runs(tmp_path_factory.mktemp("demo"))


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """A small text to learn."""
    file = tmp_path / "text.txt"
    file.write_text("".join(f"{i} times {i % 7} is {i * (i % 7)}.\n" for i in range(300)))
    return file


@pytest.fixture
def config(text_file: Path) -> GPTConfig:
    """A run of seconds, with dropout, warm-up, Muon, evaluation and checkpoints."""
    return GPTConfig(
        name="small",
        tracking="none",
        model=ModelConfig(num_layers=2, d_model=16, num_heads=2, d_ff=32, max_len=16, dropout=0.1),
        data=TextConfig(source=str(text_file)),
        training=TrainingConfig(
            max_steps=12, batch_size=8, precision="fp32", eval_interval=5, log_interval=1, checkpoint_interval=4
        ),
        optimizer=OptimizerConfig(name="muon", learning_rate=5e-3),
        schedule=ScheduleConfig(name="linear", warmup_steps=2),
    )
