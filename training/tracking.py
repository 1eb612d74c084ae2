"""Curves, through Accelerate's trackers."""

from typing import Any

from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker

from training.config import RunConfig
from training.run_folder import RunFolder


class Tracking:
    """Sends metrics to the tracker that the configuration names; does nothing in processes other than the main one.

    Args:
        accelerator: Of the run.
        config: Of the run.
        run: Its folder; TensorBoard's files go to `tensorboard/`.
        first_step: Steps done before: what was logged later than that is taken back.
    """

    def __init__(self, accelerator: Accelerator, config: RunConfig, run: RunFolder, first_step: int) -> None:
        self._trackers: list[TensorBoardTracker] = []
        if config.tracking == "tensorboard" and accelerator.is_main_process:
            purge = {"purge_step": first_step + 1} if first_step else {}
            tracker = TensorBoardTracker("tensorboard", logging_dir=run.path, **purge)
            tracker.start()
            self._trackers.append(tracker)

    def log(self, metrics: dict[str, Any]) -> None:
        """Send the metrics of a step."""
        names = {"train_loss": "loss/train", "val_loss": "loss/validation"}
        values = {names.get(key, key): value for key, value in metrics.items() if key != "step"}
        for tracker in self._trackers:
            tracker.log(values, step=metrics["step"])

    def finish(self) -> None:
        """Flush and close."""
        for tracker in self._trackers:
            tracker.finish()
