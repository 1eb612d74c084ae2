"""Curves, samples and the configuration, through Accelerate's trackers."""

import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from accelerate.tracking import TensorBoardTracker, WandBTracker

from training.config.command_line import config_to_yaml
from training.config.sections import RunConfig
from training.runtime.errors import InputError
from training.runtime.packages import needed_package
from training.storage.run_folder import RunFolder
from training.storage.state import Counters

CURVES = {
    "train_loss": "loss/train",
    "val_loss": "loss/validation",
    "val_loss_subset": "loss/validation_subset",
    "raw_val_loss": "loss/validation_raw_weights",
    "raw_val_loss_subset": "loss/validation_subset_raw_weights",
    "learning_rate": "optimizer/learning_rate",
    "grad_norm": "optimizer/grad_norm",
    "tokens_per_second": "speed/tokens_per_second",
    "mfu": "speed/mfu",
    "gpu_memory_gib": "speed/gpu_memory_gib",
    "seconds": "progress/seconds",
    "epoch": "progress/epoch",
    "tokens": "progress/tokens",
}
"""Names in metrics.jsonl and those of their curves; what a task measures itself stands under `validation/`."""


def curves(metrics: Mapping[str, float]) -> dict[str, float]:
    """A line of metrics under the names of its curves."""
    names = {key: key.partition("/") for key in metrics if key != "step"}  # val_loss/NAME is of a part of the data.
    return {
        f"{CURVES.get(head, f'validation/{head}')}{slash}{part}": metrics[key]
        for key, (head, slash, part) in names.items()
    }


INIT_TIMEOUT_SECONDS = 30
"""How long a run waits for Weights & Biases at its start."""


class Tracker(Protocol):
    """Where curves go."""

    description: str

    def log(self, metrics: Mapping[str, float], sample: str | None) -> None:
        """Send a line of metrics, and the text that was sampled at its step."""

    def finish(self) -> None:
        """Flush and close."""


class TensorBoard:
    """Event files in the run's `tensorboard/`.

    Args:
        config: Of the run.
        run: Its folder.
        first_step: Steps done before: what an earlier process logged after that is taken back.

    Raises:
        InputError: TensorBoard is not installed.
    """

    def __init__(self, config: RunConfig, run: RunFolder, first_step: int) -> None:
        needed_package("tensorboard", "--tracking tensorboard")
        # Given at the very first start too: TensorBoard's reader takes back nothing at the first mark that it meets.
        purge_step = first_step + 1 if first_step else 0
        _put_in_the_past(list(run.path.glob("tensorboard/*.tfevents.*")), int(time.time()))
        self._tracker = TensorBoardTracker("tensorboard", logging_dir=run.path, purge_step=purge_step)
        self._tracker.start()
        self.description = f"TensorBoard, in {run.path / 'tensorboard'}"
        self._tracker.log({"configuration": _indented(config_to_yaml(config))}, step=purge_step)

    def log(self, metrics: Mapping[str, float], sample: str | None) -> None:
        """Send a line of metrics, and the text that was sampled at its step."""
        values: dict[str, Any] = curves(metrics)
        if sample is not None:
            values["sample"] = _indented(sample)
        self._tracker.log(values, step=int(metrics["step"]))

    def finish(self) -> None:
        """Flush and close."""
        self._tracker.finish()


def _put_in_the_past(files: Sequence[Path], now: int) -> None:
    """Rename event files of a time to come, after a clock went back: TensorBoard reads them in the order of names.

    Args:
        files: Named `events.out.tfevents.SECONDS.HOST.PROCESS.NUMBER` by their writer.
        now: The time that the next file will have in its name.
    """
    latest = now - 1
    for file in sorted(files, reverse=True):
        head, stamp, rest = re.split(r"(?<=tfevents\.)(\d+)", file.name, maxsplit=1)
        if int(stamp) <= latest:
            break
        file.rename(file.with_name(f"{head}{latest:010d}{rest}"))
        latest -= 1


def _indented(text: str) -> str:
    """Text that Markdown shows letter by letter, line by line."""
    return "".join(f"    {line}\n" for line in text.split("\n"))


class WeightsAndBiases:
    """A run of Weights & Biases, recorded offline where no account is configured.

    A resumed run keeps its id. What W&B has not got yet is sent again from the run's own files, so that the folder of
    an offline run always holds the whole run: W&B cannot join two offline folders of one run.

    Args:
        config: Of the run; its name is the project's.
        run: Its folder; W&B's files go to `wandb/`.
        run_id: W&B's id of the run.

    Raises:
        InputError: W&B is not installed, or refuses; the message says what to do.
    """

    def __init__(self, config: RunConfig, run: RunFolder, run_id: str) -> None:
        wandb = needed_package("wandb", "--tracking wandb")
        try:
            settings = wandb.Settings(silent=True, console="off", init_timeout=INIT_TIMEOUT_SECONDS)
            wandb.setup(settings=settings)
            mode = os.environ.get("WANDB_MODE") or ("online" if _has_account() else "offline")
            (run.path / "wandb").mkdir(exist_ok=True)
            own = {"name": run.path.name, "id": run_id, "resume": "allow", "dir": run.path}
            self._tracker = WandBTracker(config.name, mode=mode, settings=settings, **own)
            self._tracker.start()
        except (wandb.Error, ValueError) as error:  # a ValueError for a mode that there is not
            reason = " ".join(str(error).split())
            raise InputError(
                f"Weights & Biases refuses ({reason[:200]}): set WANDB_MODE=offline, or choose --tracking tensorboard"
            ) from error
        where = self._tracker.tracker.url or mode
        if mode == "offline":
            where = f"offline; to upload: wandb sync {os.path.relpath(os.path.dirname(self._tracker.tracker.dir))}"
        self.description = f"Weights & Biases, {where}"
        self._tracker.store_init_configuration(asdict(config))
        for metrics in run.read_metrics():
            if metrics["step"] >= self._tracker.tracker.step:
                evaluated = not metrics.keys().isdisjoint(("val_loss", "val_loss_subset"))
                self.log(metrics, run.read_sample(int(metrics["step"])) if evaluated else None)

    def log(self, metrics: Mapping[str, float], sample: str | None) -> None:
        """Send a line of metrics, and the text that was sampled at its step."""
        import wandb

        values: dict[str, Any] = curves(metrics)
        if sample is not None:
            values["sample"] = wandb.Table(columns=["step", "text"], data=[[metrics["step"], sample]])
        with _leaving_a_lost_service():
            self._tracker.log(values, step=int(metrics["step"]))

    def finish(self) -> None:
        """Flush and close."""
        with _leaving_a_lost_service():
            self._tracker.finish()


@contextmanager
def _leaving_a_lost_service() -> Iterator[None]:
    """Where W&B fails, let it not look for its service once more as the process ends, with a traceback of its own."""
    import wandb

    try:
        yield
    except Exception:
        with suppress(Exception, SystemExit):
            wandb.teardown()
        raise


def _has_account() -> bool:
    import wandb

    return wandb.login(prompt=False, verify=False)


def start_trackers(config: RunConfig, run: RunFolder, counters: Counters) -> list[Tracker]:
    """Start what `--tracking` names; to be called in the main process only.

    Args:
        config: Of the run.
        run: Its folder.
        counters: Where the run stands; it keeps W&B's id.

    Raises:
        InputError: A tracker cannot start.
    """
    trackers: list[Tracker] = []
    if config.tracking in ("wandb", "both"):  # First, as it may refuse.
        counters.wandb_id = counters.wandb_id or secrets.token_hex(4)
        trackers.append(WeightsAndBiases(config, run, counters.wandb_id))
    if config.tracking in ("tensorboard", "both"):
        trackers.append(TensorBoard(config, run, counters.reported_step))
    return trackers
