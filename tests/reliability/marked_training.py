"""`launch/train_gpt.py` or `launch/train_seq2seq.py`, as the configuration wants it.

It says when an evaluation or a save begins, so that a kill can be aimed at it.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from data.batches.windows import TextData
from data.pairs.batches import PairData
from decoding.model_type import asked_model_type
from gpt.task import GPTTask
from launch import train_gpt, train_seq2seq
from seq2seq.task import Seq2SeqTask
from training import saving
from training.runtime.errors import exit_code
from training.storage.checkpoint import CheckpointStore
from training.task import Batch


class MarkedStore(CheckpointStore):
    """Prints `saving STEP` before a checkpoint is written, and `saved STEP` after."""

    def save(self, step: int, **content: Any) -> Path:
        say(f"saving {step}")
        place = super().save(step, **content)
        say(f"saved {step}")
        return place


def say(line: str) -> None:
    """Print a line in one piece, from whatever thread, also where another one has yet to end its own."""
    sys.stdout.write(f"\n{line}\n")
    sys.stdout.flush()


class MarkedEvaluations:
    """Prints `evaluating`; the end of an evaluation is told by the loop itself."""

    def validation_batches(self, batch_size: int, rank: int, num_ranks: int, every: int = 1) -> Iterator[Batch]:
        if rank == 0:
            print("evaluating", flush=True)
        return super().validation_batches(batch_size, rank, num_ranks, every)  # type: ignore[misc]


class MarkedText(MarkedEvaluations, TextData):
    """The text."""


class MarkedPairs(MarkedEvaluations, PairData):
    """The pairs."""


class MarkedGPT(GPTTask):
    """The GPT."""

    data_class = MarkedText


class MarkedSeq2Seq(Seq2SeqTask):
    """The encoder-decoder."""

    data_class = MarkedPairs


def main() -> None:
    if asked_model_type(sys.argv[1:]) == "seq2seq":
        train_seq2seq.main(MarkedSeq2Seq)
    else:
        train_gpt.main(MarkedGPT)


if __name__ == "__main__":
    with patch.object(saving, "CheckpointStore", MarkedStore):
        sys.exit(exit_code(main))
