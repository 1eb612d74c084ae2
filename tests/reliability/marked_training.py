"""`launch/train_gpt.py`, which here says when an evaluation or a save begins, so that a kill can be aimed at it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from gpt.trainer import GPTTask
from launch.train_gpt import main
from training import loop
from training.checkpoint import CheckpointStore
from training.errors import exit_code
from training.task import Batch


class MarkedStore(CheckpointStore):
    """Prints `saving STEP` before a checkpoint is written, and `saved STEP` after."""

    def save(self, step: int, **content: Any) -> Path:
        print(f"saving {step}", flush=True)
        place = super().save(step, **content)
        print(f"saved {step}", flush=True)
        return place


class MarkedTask(GPTTask):
    """Prints `evaluating`; the end of an evaluation is told by the loop itself."""

    def validation_batches(self, batch_size: int, rank: int, num_ranks: int) -> Iterator[Batch]:
        if rank == 0:
            print("evaluating", flush=True)
        return super().validation_batches(batch_size, rank, num_ranks)


if __name__ == "__main__":
    with patch.object(loop, "CheckpointStore", MarkedStore):
        sys.exit(exit_code(lambda: main(MarkedTask)))
