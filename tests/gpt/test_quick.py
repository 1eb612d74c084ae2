"""The default experiment keeps its promise."""

from pathlib import Path

import pytest
from helpers import ROOT, command, read_metrics


@pytest.mark.nightly
def test_the_default_configuration_reaches_its_loss(tmp_path: Path) -> None:
    done = command(ROOT / "launch/train_gpt.py", "--output_dir", "run", cwd=tmp_path, timeout=1500)
    assert done.returncode == 0, done.stderr
    assert read_metrics(tmp_path / "run")[-1]["val_loss"] <= 1.58
