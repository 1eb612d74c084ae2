"""The training loop. It knows no model: a `Task` brings model and data.

One optimizer step works on one global batch. Its samples are split over processes and accumulation steps, losses are
summed, and the sum is divided by the number of targets of the whole global batch, so that a step is the same however
it is split. A step depends on (seed, step, rank) and the state in a checkpoint, on nothing else.
"""

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import NoReturn

import torch
from accelerate.utils import gather_object
from torch import Tensor

from training.average import WeightAverage
from training.config.command_line import config_to_yaml, parse_config_text
from training.config.sections import RunConfig
from training.evaluation import Interrupted, validation_loss
from training.optimizer import MuonAdamW, build_optimizer, optimizer_tensors
from training.reporting import Reporter
from training.runtime.device import Runtime
from training.runtime.errors import CommandError, InputError, NonFiniteError, SaveError, StoppedBySignal
from training.runtime.processes import in_main_process
from training.runtime.progress import Progress
from training.runtime.signals import StopSignals
from training.schedule import jump, learning_rate_scale
from training.seeds import derive_seed
from training.storage.checkpoint import Checkpoint, CheckpointStore
from training.storage.loading import saved_tensors
from training.storage.run_folder import RunFolder
from training.storage.state import Counters, changes, check_identity, run_identity
from training.task import Task, loss_sum
from training.tracking import Tracker

LOSS_SCALE_FLOOR = 1.0
"""Below this loss scale fp16 has no excuse left: a gradient that is still infinite is so by itself."""


class Trainer:
    """Trains a task, from the beginning or from a checkpoint.

    Args:
        runtime: What to compute on.
        task: The model and its data.
        config: The configuration.
        run: Where to write.
    """

    def __init__(self, runtime: Runtime, task: Task, config: RunConfig, run: RunFolder) -> None:
        accelerator = runtime.accelerator
        self.accelerator, self.task, self.config, self.run = accelerator, task, config, run
        self._peak_flops = runtime.peak_flops
        self.num_steps = count_steps(config, task)
        self.counters = Counters()
        self.changes: list[str] = []
        self._identity = run_identity(config, task)
        self._setup = {"processes": accelerator.num_processes, "precision": runtime.precision}
        self.store = CheckpointStore(run.checkpoints, config.training.keep_checkpoints)
        task.model.to(accelerator.device, torch.float64 if runtime.precision == "fp64" else torch.float32)
        optimizer = build_optimizer(task.model, config.optimizer, bf16=runtime.precision == "bf16")
        self._parallel_model, self._accelerated_optimizer = accelerator.prepare(task.model, optimizer)
        decay = config.training.ema_decay
        self._average = WeightAverage(task.model, decay) if decay else None
        self._reported = Counters()
        self._best_on_disk: tuple[float | None, int | None] = (None, None)

    @property
    def _optimizer(self) -> MuonAdamW:
        optimizer: MuonAdamW = self._accelerated_optimizer.optimizer
        return optimizer

    @property
    def checkpoint_bytes(self) -> int:
        """Size of a checkpoint's tensors; the other files are small beside them."""
        return sum(t.numel() * t.element_size() for group in self._tensors().values() for t in group.values())

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds, by the name of its file."""
        tensors = {
            "model": self.task.model.state_dict(),
            "optimizer": optimizer_tensors(self.task.model, self._optimizer),
        }
        return tensors if self._average is None else tensors | {"ema": self._average.tensors}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take weights, their average, optimizer tensors and counters from a checkpoint of the same run.

        What differs from the run that wrote it, in words, is then in `changes`.
        """
        check_identity(checkpoint, self._identity)
        self.changes = changes(checkpoint, self.config, self._setup)
        counters = self.counters = Counters.from_checkpoint(checkpoint)
        self._best_on_disk = (counters.best_val_loss, counters.best_step)
        if self._is_over and counters.val_step != counters.step and counters.unreported is None:
            # It was to go on for longer, and is now asked for no further step than this one.
            counters.unreported = self.run.metrics_of(counters.step) or self._progress_metrics()
        for name, text in self.task.checkpoint_files().items():
            if checkpoint.text(name) != text:
                raise InputError(f"{checkpoint.folder / name} is not the one of the run's data: its symbols differ")
        for name, wanted in self._tensors().items():
            saved = saved_tensors(checkpoint, name, wanted)
            for key, tensor in wanted.items():
                tensor.copy_(saved[key])
        if self.accelerator.scaler is not None and self.counters.loss_scale is not None:
            scale = {"scale": self.counters.loss_scale, "_growth_tracker": self.counters.loss_scale_streak}
            self.accelerator.scaler.load_state_dict(self.accelerator.scaler.state_dict() | scale)
        if self.changes:
            before = parse_config_text(type(self.config), checkpoint.text("config.yaml"))
            steps_before = count_steps(before, self.task)
            rise = jump(before.schedule, steps_before, self.config.schedule, self.num_steps, self.counters.step)
            self.changes += [rise] if rise else []

    def fit(self, trackers: Sequence[Tracker]) -> None:
        """Train to the last step.

        Args:
            trackers: Where curves go, in the main process; they are closed at the end.

        Raises:
            StoppedBySignal: After the checkpoint that a signal asked for.
            NonFiniteError: A loss or gradient is not finite; the weights are those of the step before.
            SaveError: A checkpoint could not be written, and the run is not to go on without.
        """
        progress = Progress(self.counters.step, self.num_steps, visible=self.accelerator.is_main_process)
        reporter = Reporter(self.run, progress, trackers)
        self._reported = replace(self.counters)
        with StopSignals() as signals:
            try:
                self._warm_up_ddp_buckets()
                if self.counters.unreported is not None:
                    self._finish_step(self.counters.unreported, signals, reporter, stopping=False)
                while not self._is_over:
                    metrics, stopping = self._train_step(signals, reporter)
                    progress.advance()
                    self._finish_step(metrics, signals, reporter, stopping=stopping)
            finally:
                reporter.close()

    def shutdown(self) -> None:
        """Leave the process group; all processes do, after `fit`.

        DDP goes first: where it is the last to hold the group, it waits for gloo's threads while Python stands still,
        and a thread that has yet to give a tensor back to Python waits for ever.
        """
        self.accelerator.free_memory()
        del self._parallel_model
        self.accelerator.end_training()

    def _finish_step(
        self, metrics: dict[str, float], signals: StopSignals, reporter: Reporter, *, stopping: bool
    ) -> None:
        """Evaluate, report and save, as far as it is time for that.

        A signal does not wait for an evaluation: the step is saved with its metrics, and a resume begins with the
        evaluation.
        """
        training, counters = self.config.training, self.counters
        sample, evaluated = None, counters.unreported is not None or self._is_due(training.eval_interval)
        if (evaluated or self._is_due(training.log_interval)) and counters.unreported is None:
            metrics |= self._speed()
        if evaluated:
            counters.unreported = metrics
            try:
                if stopping:
                    raise Interrupted
                measures, sample = self._evaluate(signals, reporter)
            except Interrupted:
                self._stop(reporter)
            counters.unreported = None
            metrics |= measures
        if evaluated or self._is_due(training.log_interval):
            self._report(metrics, sample, reporter)
        improved = evaluated and counters.best_step == counters.step
        if stopping:
            self._stop(reporter)
        if improved or self._is_due(training.checkpoint_interval):
            self._save(reporter, best=improved)

    def _stop(self, reporter: Reporter) -> NoReturn:
        """Save, and end the run as a signal asked."""
        self._save(reporter, best=False, last=True)
        raise StoppedBySignal(f"saved step {self.counters.step}; go on with: {self.run.resume_command}")

    @property
    def _is_over(self) -> bool:
        patience = self.config.training.patience
        return self.counters.step >= self.num_steps or 0 < patience <= self.counters.stale_evaluations

    def _is_due(self, interval: int) -> bool:
        return self._is_over or (interval > 0 and self.counters.step % interval == 0)

    def _train_step(self, signals: StopSignals, reporter: Reporter) -> tuple[dict[str, float], bool]:
        """Do one optimizer step; return its metrics, and whether any process was asked to stop."""
        start = time.perf_counter()
        accelerator, counters, config = self.accelerator, self.counters, self.config
        step = counters.step + 1
        torch.manual_seed(derive_seed(config.seed, step, accelerator.process_index, "dropout"))
        learning_rate = self._optimizer.set_learning_rate(learning_rate_scale(config.schedule, step, self.num_steps))
        losses, targets = self._backward(step)
        grad_norm = accelerator.clip_grad_norm_(
            self._parallel_model.parameters(), config.training.max_grad_norm or math.inf
        )
        # The wait for the device in a step, which also lets all processes agree to stop.
        loss_here = losses.sum()
        stop_here = torch.full_like(loss_here, signals.received is not None)
        summed = accelerator.reduce(torch.stack((loss_here, stop_here)), "sum")
        loss_total, stops, norm = torch.stack((*summed, grad_norm)).tolist()
        num_targets = int(targets)
        if self._is_usable(loss_total, norm):
            self._accelerated_optimizer.step()
            skipped = self._accelerated_optimizer.step_was_skipped
            if self._average is not None and not skipped:
                self._average.update(step)
            counters.skipped_steps += skipped
            counters.nonfinite_streak = 0
        else:
            self._skip_step(step, losses, loss_total, norm, reporter)
        self._accelerated_optimizer.zero_grad()
        counters.step, counters.samples = step, counters.samples + config.training.batch_size
        counters.tokens += num_targets
        counters.seconds += time.perf_counter() - start
        measures = {"train_loss": loss_total / num_targets, "learning_rate": learning_rate, "grad_norm": norm}
        return self._progress_metrics() | measures, stops > 0

    def _progress_metrics(self) -> dict[str, float]:
        """How far the run has come, as a line of metrics begins."""
        counters = self.counters
        epoch = counters.samples / self.task.samples_per_epoch
        return {"step": counters.step, "epoch": epoch, "tokens": counters.tokens, "seconds": counters.seconds}

    def _shares(self, step: int) -> list[tuple[int, int]]:
        """This process's share of a step's global batch, by first sample and count of each accumulation step.

        The counts differ by one at most.
        """
        accelerator, training = self.accelerator, self.config.training
        parts = training.accumulation_steps * accelerator.num_processes
        edges = [(step - 1) * training.batch_size + training.batch_size * part // parts for part in range(parts + 1)]
        mine = range(accelerator.process_index, parts, accelerator.num_processes)
        return [(edges[part], edges[part + 1] - edges[part]) for part in mine]

    def _backward(self, step: int) -> tuple[Tensor, Tensor]:
        """Add up the gradients of a global batch.

        Returns:
            The sums of losses of this process's accumulation steps, and the number of targets of all processes.
        """
        accelerator = self.accelerator
        batches = [self.task.training_batch(first, count) for first, count in self._shares(step)]
        # Filled on the device: copying a number there would wait for all that the device still has to do.
        targets_here = torch.full((), sum(batch.num_targets for batch in batches), device=accelerator.device)
        num_targets = accelerator.reduce(targets_here, "sum")
        losses = []
        for batch in batches:
            last = batch is batches[-1]
            with nullcontext() if last else accelerator.no_sync(self._parallel_model):
                loss = loss_sum(
                    self._parallel_model, batch.to(accelerator.device), self.config.training.label_smoothing
                )
                # DDP takes the mean of the processes' gradients: times their number it is the sum.
                accelerator.backward(loss * accelerator.num_processes / num_targets)
            losses.append(loss.detach())
        return torch.stack(losses), num_targets

    def _warm_up_ddp_buckets(self) -> None:
        """Let DDP rebuild its buckets before the first step, so that a resumed run adds gradients in the same order."""
        if self.accelerator.num_processes > 1:
            for _ in range(2):
                self._backward(step=1)
                self._accelerated_optimizer.zero_grad()

    def _is_usable(self, loss_total: float, grad_norm: float) -> bool:
        """Whether a step may change the weights; fp16's scaler sees to gradients that a lower loss scale may help."""
        scaler = self.accelerator.scaler
        may_help = scaler is not None and scaler.get_scale() > LOSS_SCALE_FLOOR
        return math.isfinite(loss_total) and (math.isfinite(grad_norm) or may_help)

    def _skip_step(self, step: int, losses: Tensor, loss_total: float, grad_norm: float, reporter: Reporter) -> None:
        """Count a step whose numbers are not finite, or stop the run for it."""
        counters, max_streak = self.counters, self.config.training.max_nonfinite_steps
        cause = f"gradient norm is {grad_norm}" if math.isfinite(loss_total) else f"loss is {loss_total}"
        cause = f"at step {step} the {cause} {self._origin(step, losses)}"
        if counters.nonfinite_streak >= max_streak:
            self._stop_for(cause, reporter)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.update()  # It must hear of the end of each step.
        counters.nonfinite_streak += 1
        counters.skipped_steps += 1
        reporter.say(
            f"warning     {cause}; the step is left out ({counters.nonfinite_streak} of {max_streak} in a row)"
        )

    def _origin(self, step: int, losses: Tensor) -> str:
        """Which ranks and samples a loss that is not finite comes from; called by all processes."""
        rank, task = self.accelerator.process_index, self.task
        bad = [
            share for share, loss in zip(self._shares(step), losses.tolist(), strict=True) if not math.isfinite(loss)
        ]
        found = gather_object([f"rank {rank}: {task.describe_samples(first, count)}" for first, count in bad])
        if not found:
            size = self.config.training.batch_size
            found = [f"all ranks: {task.describe_samples((step - 1) * size, size)}"]
        return f"({'; '.join(found)})"

    def _stop_for(self, cause: str, reporter: Reporter) -> NoReturn:
        """Save what there is, and raise a `NonFiniteError`."""
        try:
            self._save(reporter, best=False, last=True)
        except SaveError as error:
            raise NonFiniteError(f"{cause}; {error}") from error
        raise NonFiniteError(
            f"{cause}; the weights of step {self.counters.step} are saved in {self.run.checkpoints / 'last'}. "
            f"A lower {' and '.join(self.config.optimizer.rates)} or a longer schedule.warmup_steps helps most often; "
            f"go on with: {self.run.resume_command}"
        )

    def _evaluate(self, signals: StopSignals, reporter: Reporter) -> tuple[dict[str, float], str | None]:
        """Measure the validation loss, note whether it is the best, and take a sample in the main process.

        Where there is an average of the weights it is the one to be measured and sampled from, and `raw_val_loss` is
        that of the weights themselves.

        Raises:
            Interrupted: A signal came; nothing is noted.
        """
        accelerator, counters, task = self.accelerator, self.counters, self.task
        reporter.progress.doing("evaluating …")
        measures, sample = {}, None
        measure = partial(
            validation_loss,
            accelerator,
            task,
            self.config.training.eval_batch_size,
            lambda: signals.received is not None,
        )
        if self._average is not None:
            measures["raw_val_loss"] = measure()
        with self._average.in_model() if self._average else nullcontext():
            val_loss = measure()
            if math.isfinite(val_loss) and accelerator.is_main_process:
                measures |= {name: float(value) for name, value in task.metrics(val_loss).items()}
                sample = task.sample(derive_seed(self.config.seed, counters.step, "sample"))
        if not math.isfinite(val_loss):
            if counters.unreported is not None:
                self._report(counters.unreported, None, reporter)
                counters.unreported = None
            self._stop_for(f"at step {counters.step} the validation loss is {val_loss}", reporter)
        reporter.say(
            f"step {counters.step}/{self.num_steps}  validation loss {val_loss:.4f}  ({self._judge(val_loss)})"
        )
        if sample is not None and task.shows_samples:
            reporter.say(sample)
        return {"val_loss": val_loss} | measures, sample

    def _judge(self, val_loss: float) -> str:
        """Note a new validation loss, and say in words how it compares."""
        counters, patience = self.counters, self.config.training.patience
        counters.val_loss, counters.val_step = val_loss, counters.step
        if counters.best_val_loss is None or val_loss < counters.best_val_loss:
            counters.best_val_loss, counters.best_step, counters.stale_evaluations = val_loss, counters.step, 0
            return "the best so far"
        counters.stale_evaluations += 1
        best = f"best {counters.best_val_loss:.4f} at step {counters.best_step}"
        if 0 < patience <= counters.stale_evaluations:
            return f"{best}; stopping early, after {counters.stale_evaluations} evaluations without a better one"
        return best

    def _speed(self) -> dict[str, float]:
        """The speed since the last report, and the most GPU memory that was taken so far."""
        seconds, tokens = self.counters.seconds, self.counters.tokens
        rate = (tokens - self._reported.tokens) / (seconds - self._reported.seconds)
        self._reported = replace(self.counters)
        measures = {"tokens_per_second": rate}
        if self._peak_flops is not None:
            measures["mfu"] = rate * self.task.flops_per_token / self._peak_flops
        if self.accelerator.device.type == "cuda":
            measures["gpu_memory_gib"] = torch.cuda.max_memory_allocated(self.accelerator.device) / 2**30
        return measures

    def _report(self, metrics: dict[str, float], sample: str | None, reporter: Reporter) -> None:
        if self.accelerator.is_main_process:
            steps_left = self.num_steps - self.counters.step
            reporter.report(metrics, sample, self.counters.seconds / self.counters.step * steps_left)

    def _save(self, reporter: Reporter, *, best: bool, last: bool = False) -> None:
        """Write a checkpoint; where that fails, go on without or end the run, as configured, in all processes.

        Args:
            reporter: To warn with.
            best: Whether it is the best one so far.
            last: Whether the run ends with it, so that it cannot go on without.
        """
        counters = self.counters
        try:
            in_main_process(self.accelerator, lambda: self._write_checkpoint(best=best))
        except CommandError as error:
            steps = self.store.steps()
            newest = f"the newest checkpoint is of step {steps[-1]}" if steps else "there is no checkpoint yet"
            if last or self._is_over or self.config.training.on_save_error == "stop":
                raise SaveError(
                    f"{error}; {newest}. When that is mended, go on with: {self.run.resume_command}"
                ) from error
            reporter.say(f"warning     {error}; the run goes on, {newest}")
            counters.best_val_loss, counters.best_step = self._best_on_disk
        else:
            self._best_on_disk = (counters.best_val_loss, counters.best_step)

    def _write_checkpoint(self, *, best: bool) -> None:
        if self.accelerator.scaler is not None:
            scale = self.accelerator.scaler.state_dict()
            self.counters.loss_scale, self.counters.loss_scale_streak = scale["scale"], scale["_growth_tracker"]
        self.run.sync_metrics()
        files = {"config.yaml": config_to_yaml(self.config)} | dict(self.task.checkpoint_files())
        state = self.counters.to_json(self._identity, self._setup)
        self.store.save(self.counters.step, tensors=self._tensors(), state=state, files=files, best=best)


def check_batch_size(config: RunConfig, num_processes: int) -> None:
    """Raise an `InputError` unless every process has a sample for each of its accumulation steps."""
    parts = num_processes * config.training.accumulation_steps
    if config.training.batch_size < parts:
        raise InputError(
            f"training.batch_size must be at least processes x training.accumulation_steps "
            f"({num_processes} x {config.training.accumulation_steps}), got {config.training.batch_size}"
        )


def count_steps(config: RunConfig, task: Task) -> int:
    """Optimizer steps of a whole run: `max_steps`, or what `epochs` needs, whichever is less."""
    limits = [] if config.training.max_steps is None else [config.training.max_steps]
    if config.training.epochs is not None:
        limits.append(math.ceil(config.training.epochs * task.samples_per_epoch / config.training.batch_size))
    return min(limits)
