"""The state of a run, saved as checkpoints and restored from one."""

from dataclasses import asdict
from typing import Any

from torch import Tensor

from training.average import WeightAverage
from training.batches import choose_micro_batch
from training.config.command_line import config_to_yaml
from training.config.sections import RunConfig
from training.evaluation import stride
from training.optimizer import MuonAdamW, optimizer_tensors
from training.reporting import Reporter
from training.runtime.device import Runtime
from training.runtime.errors import CommandError, InputError, SaveError
from training.runtime.processes import in_main_process
from training.sharding import is_sharded
from training.storage.checkpoint import Checkpoint, CheckpointStore
from training.storage.loading import saved_tensors
from training.storage.run_folder import RunFolder
from training.storage.state import Counters, SavedState, check_identity, run_identity, saved_state
from training.storage.whole import exhaust, fill, wholes
from training.task import Task


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
        self.setup["micro_batch"] = choose_micro_batch(runtime.accelerator.device, task.data.tokens_per_sample)
        self._identity = run_identity(config, task)
        self._every = stride(task.data, config.training.eval_tokens)
        self._best_on_disk = _best(Counters())
        self.forgotten: str | None = None

    @property
    def checkpoint_bytes(self) -> int:
        """Size of a checkpoint's tensors; the other files are small beside them."""
        return sum(t.numel() * t.element_size() for group in self.tensors().values() for t in group.values())

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds, by the name of its file."""
        model = self.task.model
        tensors = {"model": model.state_dict(), "optimizer": optimizer_tensors(model, self._optimizer)}
        return tensors if self._average is None else tensors | {"ema": self._average.tensors}

    def restore(self, checkpoint: Checkpoint) -> Counters:
        """Take all tensors and the loss scale from a checkpoint, and return where the run stood.

        Raises:
            InputError: It is another run's.
        """
        check_identity(checkpoint, self._identity)
        state = saved_state(checkpoint)
        counters, recorded = state.counters, state.setup.get("micro_batch")
        device, tokens_per_sample = self.accelerator.device, self.task.data.tokens_per_sample
        self.setup["micro_batch"] = choose_micro_batch(device, tokens_per_sample, recorded)
        self.forgotten = counters.go_by(self._every)
        self._best_on_disk = _best(counters)
        for name, text in self.task.checkpoint_files().items():
            if checkpoint.text(name) != text:
                raise InputError(f"{checkpoint.folder / name} is not the one of the run's data: its symbols differ")
        for name, wanted in self.tensors().items():
            saved = saved_tensors(checkpoint, name, wanted)
            for key, tensor in wanted.items():
                fill(tensor, saved[key])
        scaler = self.accelerator.scaler
        if scaler is not None and counters.loss_scale is not None:
            scale = {"scale": counters.loss_scale, "_growth_tracker": counters.loss_scale_streak}
            scaler.load_state_dict(scaler.state_dict() | scale)
        return counters

    def save(self, counters: Counters, reporter: Reporter, *, best: bool = False, last: bool = False) -> None:
        """Write a checkpoint; all processes call this.

        Args:
            counters: Where the run stands.
            reporter: To warn with.
            best: Whether it is the best one so far.
            last: Whether the run ends with it, so that it cannot go on without.

        Raises:
            SaveError: It could not be written, and the run is not to go on without.
        """
        if not self.accelerator.is_main_process and is_sharded(self.task.model):
            exhaust(wholes(self.tensors()))  # As the main process does, whatever becomes of the checkpoint.
        try:
            in_main_process(self.accelerator, lambda: self.write(counters, best=best))
        except CommandError as error:
            steps = self.store.steps()
            newest = f"the newest checkpoint is of step {steps[-1]}" if steps else "there is no checkpoint yet"
            if last or self.config.training.on_save_error == "stop":
                raise SaveError(
                    f"{error}; {newest}. When that is mended, go on with: {self.run.resume_command}"
                ) from error
            reporter.say(f"warning     {error}; the run goes on, {newest}")
            counters.best_val_loss, counters.best_val_loss_subset, counters.best_step = self._best_on_disk
        else:
            self._best_on_disk = _best(counters)

    def write(self, counters: Counters, *, best: bool = False) -> None:
        """Write a checkpoint, in the main process alone."""
        tensors = self.tensors()
        values = wholes(tensors)
        try:
            if self.accelerator.scaler is not None:
                scale = self.accelerator.scaler.state_dict()
                counters.loss_scale, counters.loss_scale_streak = scale["scale"], scale["_growth_tracker"]
            self.run.sync_metrics()
            files = {"config.yaml": config_to_yaml(self.config)} | dict(self.task.checkpoint_files())
            state = asdict(SavedState(counters.step, counters, self._identity, self.setup))
            self.store.save(counters.step, tensors=tensors, values=values, state=state, files=files, best=best)
        finally:
            exhaust(values)  # Other processes may have a part in each of them.


def _best(counters: Counters) -> tuple[float | None, float | None, int | None]:
    return counters.best_val_loss, counters.best_val_loss_subset, counters.best_step
