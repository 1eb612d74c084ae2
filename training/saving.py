"""The state of a run, saved as checkpoints and restored from one."""

from dataclasses import asdict
from functools import partial
from typing import Any

from torch import Tensor

from training.average import WeightAverage
from training.config.command_line import config_to_yaml
from training.config.sections import RunConfig
from training.evaluation import stride
from training.optimizer import MuonAdamW, optimizer_tensors
from training.reporting import Reporter
from training.runtime.device import Runtime
from training.runtime.errors import CommandError, InputError, SaveError
from training.runtime.processes import in_main_process
from training.schedule import count_steps
from training.storage.background import Background, Snapshot
from training.storage.checkpoint import Checkpoint, CheckpointStore
from training.storage.loading import read_into
from training.storage.run_folder import RunFolder
from training.storage.state import Counters, SavedState, check_identity, run_identity, saved_state
from training.storage.whole import exhaust, in_shards, take_part, wholes
from training.task import Task
from training.trained import kept

Best = tuple[float | None, float | None, int | None]
"""The best losses so far, and their step, as `Counters` have them."""


class Saver:
    """Writes a run's checkpoints; where one cannot be written, the run goes on without or ends, as configured.

    Args:
        runtime, task, config, run: As of `Trainer`.
        optimizer, average: What a checkpoint holds besides the model.

    Attributes:
        forgotten: What a run that goes on no longer knows, in words.
    """

    def __init__(
        self,
        runtime: Runtime,
        task: Task,
        config: RunConfig,
        run: RunFolder,
        optimizer: MuonAdamW,
        average: WeightAverage | None,
    ) -> None:
        self.accelerator, self.task, self.config, self.run = runtime.accelerator, task, config, run
        self._optimizer, self._average = optimizer, average
        self.store = CheckpointStore(run.checkpoints, config.training.keep_checkpoints)
        self.setup: dict[str, Any] = {"processes": runtime.accelerator.num_processes, "precision": runtime.precision}
        self.setup["device"] = runtime.description
        self._identity, self._config_text = run_identity(config, task), config_to_yaml(config)
        self._num_steps = count_steps(config, task)
        self._every = stride(task.data, config.training.eval_tokens)
        self._background, self._snapshot = Background(), Snapshot()
        self._best_on_disk = _best(Counters())
        self._best_pending: Best | None = None  # Of a checkpoint that is under way.
        self._failure: CommandError | None = None
        self.forgotten: str | None = None

    @property
    def checkpoint_bytes(self) -> int:
        """Size of a checkpoint's tensors; the other files are small beside them."""
        return sum(t.numel() * t.element_size() for group in self.tensors().values() for t in group.values())

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds, by the name of its file."""
        model = self.task.model
        tensors = {"model": kept(model), "optimizer": optimizer_tensors(model, self._optimizer)}
        return tensors if self._average is None else tensors | {"ema": self._average.tensors}

    def restore(self, checkpoint: Checkpoint) -> Counters:
        """Take all tensors and the loss scale from a checkpoint, and return where the run stood.

        Raises:
            InputError: It is another run's.
        """
        check_identity(checkpoint, self._identity)
        counters = saved_state(checkpoint).counters
        self.forgotten = counters.go_by(self._every)
        self._best_on_disk = _best(counters)
        for name, text in self.task.checkpoint_files().items():
            if checkpoint.text(name) != text:
                raise InputError(f"{checkpoint.folder / name} is not the one of the run's data: its symbols differ")
        for name, wanted in self.tensors().items():
            read_into(wanted, checkpoint, name)
        scaler = self.accelerator.scaler
        if scaler is not None and counters.loss_scale is not None:
            scale = {"scale": counters.loss_scale, "_growth_tracker": counters.loss_scale_streak}
            scaler.load_state_dict(scaler.state_dict() | scale)
        return counters

    def save(self, counters: Counters, reporter: Reporter, *, best: bool = False, last: bool = False) -> None:
        """Write a checkpoint, or begin to where `training.background_saves` asks for it; all processes call this.

        The last one is written before this returns, and so is the one after a failure.

        Args:
            counters: Where the run stands.
            reporter: To warn with.
            best: Whether it is the best one so far.
            last: Whether the run ends with it, so that it cannot go on without.

        Raises:
            SaveError: It, or the one before, could not be written, and the run is not to go on without.
        """
        self.wait(counters, reporter)
        beside = self.config.training.background_saves and not last and self._failure is None
        if not self.accelerator.is_main_process:
            take_part(self.tensors())  # Of all of them, whatever becomes of the checkpoint.
        try:
            in_main_process(self.accelerator, lambda: self.write(counters, best=best, beside=beside))
        except CommandError as error:
            self._fail(error, counters, reporter, last=last)
        else:
            self._best_pending = _best(counters)
            if not beside:
                self._best_on_disk, self._best_pending = self._best_pending, None
        if self._failure is not None:
            raise SaveError(
                f"{self._failure}; {self._newest}. When that is mended, go on with: {self.run.resume_command}"
            ) from self._failure

    def wait(self, counters: Counters, reporter: Reporter) -> None:
        """Wait for a checkpoint that is under way, and note how it ended; all processes call this.

        An evaluation comes after this, too: it is judged by the best that is on the disk.
        """
        if self._best_pending is None:
            return
        pending, self._best_pending = self._best_pending, None
        try:
            in_main_process(self.accelerator, self._background.wait)
        except CommandError as error:
            self._fail(error, counters, reporter)
        else:
            self._best_on_disk = pending

    def close(self, reporter: Reporter) -> None:
        """Wait for a checkpoint that is under way where a run ends without a save."""
        try:
            self._background.close()
        except CommandError as error:
            reporter.say(f"warning     {error}; {self._newest}")

    def _fail(self, error: CommandError, counters: Counters, reporter: Reporter, *, last: bool = False) -> None:
        """Go on without a checkpoint, or note why the run is to end."""
        counters.best_val_loss, counters.best_val_loss_subset, counters.best_step = self._best_on_disk
        if last or self.config.training.on_save_error == "stop":
            self._failure = error
        else:
            reporter.say(f"warning     {error}; the run goes on, {self._newest}")

    @property
    def _newest(self) -> str:
        steps = self.store.steps()
        return f"the newest checkpoint is of step {steps[-1]}" if steps else "there is no checkpoint yet"

    def write(self, counters: Counters, *, best: bool = False, beside: bool = False) -> None:
        """Write a checkpoint, in the main process alone; `beside` the run, from a copy of what it is at this moment."""
        tensors = self.tensors()
        values = wholes(tensors) if in_shards(tensors) else None
        try:
            if self.accelerator.scaler is not None:
                scale = self.accelerator.scaler.state_dict()
                counters.loss_scale, counters.loss_scale_streak = scale["scale"], scale["_growth_tracker"]
            self.run.sync_metrics()
            files = {"config.yaml": self._config_text} | dict(self.task.checkpoint_files())
            state = asdict(SavedState(counters.step, counters, self._identity, self.setup, self._num_steps))
            save = partial(self.store.save, counters.step, state=state, files=files, best=best)
            if beside:
                self._background.start(partial(save, tensors=self._snapshot.take(tensors, values or wholes(tensors))))
            else:
                save(tensors=tensors, values=values)
        finally:
            exhaust(values or ())  # The others wait for each of them.


def _best(counters: Counters) -> Best:
    return counters.best_val_loss, counters.best_val_loss_subset, counters.best_step
