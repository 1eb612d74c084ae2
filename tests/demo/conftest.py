"""Fixtures of this suite."""

from pathlib import Path

import pytest
from demo_runs import make_runs


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `small` and `copy`."""
    return make_runs(tmp_path_factory.mktemp("demo"))
