"""The environment as another process would have it."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

TELLING = (
    *("ACCELERATE_", "CUDA_", "FSDP_", "GLOO_", "GOMP_", "KMP_", "MASTER_", "NCCL_", "OMP_", "PYTORCH_"),
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCH"),
)
"""How the names of variables begin that change how a run is started, or what it does."""


def telling_variables() -> dict[str, str]:
    """Those that are set, for a report: nothing else of the environment leaves the machine."""
    return {name: value for name, value in os.environ.items() if name.startswith(TELLING)}


@contextmanager
def environment(changes: Mapping[str, str]) -> Iterator[None]:
    """While entered, some variables have other values."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
