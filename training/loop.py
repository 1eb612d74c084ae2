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

import torch
from torch import Tensor

from training.average import WeightAverage
from training.compiling import STEPS_TO_COMPILE_FOR, Compiling
from training.config.command_line import parse_config_text
from training.config.sections import RunConfig
from training.evaluation import Interrupted, evaluate
from training.loss import LossModel
from training.nonfinite import NonFinitePolicy
from training.optimizer import build_optimizer
from training.recompute import recompute_in_training
from training.reporting import Reporter
from training.runtime.device import Runtime
from training.runtime.errors import StoppedBySignal
from training.runtime.progress import Progress
from training.runtime.signals import StopSignals
from training.saving import Saver
from training.schedule import jump, learning_rate_scale
from training.seeds import derive_seed
from training.storage.checkpoint import Checkpoint
from training.storage.run_folder import RunFolder
from training.storage.state import Counters, changes, saved_state
from training.task import Batch, Task
from training.tracking import Tracker


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
        task.model.to(accelerator.device, torch.float64 if runtime.precision == "fp64" else torch.float32)
        self._optimizer = build_optimizer(task.model, config.optimizer, bf16=runtime.precision == "bf16")
        recompute_in_training(task.model, config.training.recompute)
        loss_model = LossModel(task.model, config.training.label_smoothing)
        self._parallel_model, self._accelerated_optimizer = accelerator.prepare(loss_model, self._optimizer)
        tokens = self.num_steps * config.training.batch_size * task.data.tokens_per_sample
        self.compiling = Compiling(loss_model, config.training, accelerator, work=task.flops_per_token * tokens)
        decay = config.training.ema_decay
        self._average = WeightAverage(task.model, decay) if decay else None
        self.saver = Saver(runtime, task, config, run, self._optimizer, self._average)
        self.saver.setup["compile"] = self.compiling.mode
        self._nonfinite = NonFinitePolicy(self.saver)
        self._reported = Counters()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of the same run; what differs from the run that wrote it is then in `changes`."""
        counters = self.counters = self.saver.restore(checkpoint)
        if self._is_over and counters.val_step != counters.step and counters.pending_evaluation is None:
            # It was to go on for longer, and is now asked for no further step than this one.
            counters.pending_evaluation = self.run.metrics_of(counters.step) or self._progress_metrics()
        self.compiling.go_on(str(saved_state(checkpoint).setup.get("compile", "off")))
        self.saver.setup["compile"] = self.compiling.mode
        self.changes = changes(checkpoint, self.config, self.saver.setup)
        if self.changes:
            before = parse_config_text(type(self.config), checkpoint.text("config.yaml"))
            steps_before = count_steps(before, self.task)
            rise = jump(before.schedule, steps_before, self.config.schedule, self.num_steps, counters.step)
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
                self._compile(reporter)
                self._warm_up_ddp_buckets()
                if self.counters.pending_evaluation is not None:
                    self._finish_step(signals, reporter, stopping=False)
                while not self._is_over:
                    metrics, stopping = self._train_step(signals, reporter)
                    progress.advance()
                    self._report_step(metrics, reporter)
                    self._finish_step(signals, reporter, stopping=stopping)
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

    def _report_step(self, metrics: dict[str, float], reporter: Reporter) -> None:
        """Report a step where that is due; one that is to be evaluated first has a pending evaluation from here on."""
        evaluating = self._is_due(self.config.training.eval_interval)
        logging = self._is_due(self.config.training.log_interval)
        if evaluating or logging:
            metrics |= self._speed()
        if evaluating:
            self.counters.pending_evaluation = metrics
        elif logging:
            self._report(metrics, None, reporter)

    def _finish_step(self, signals: StopSignals, reporter: Reporter, *, stopping: bool) -> None:
        """Do an evaluation that is pending, and save where that is due.

        A stop request does not wait for the evaluation: the step is saved with it pending, and a resume begins with it.
        """
        evaluated = False
        if self.counters.pending_evaluation is not None and not stopping:
            try:
                self._evaluate(self.counters.pending_evaluation, signals, reporter)
                evaluated = True
            except Interrupted:
                stopping = True
        if stopping:
            self.saver.save(self.counters, reporter, last=True)
            raise StoppedBySignal(f"saved step {self.counters.step}; go on with: {self.run.resume_command}")
        improved = evaluated and self.counters.best_step == self.counters.step
        if improved or self._is_due(self.config.training.checkpoint_interval):
            self.saver.save(self.counters, reporter, best=improved, last=self._is_over)

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
        if self._nonfinite.is_usable(loss_total, norm):
            self._accelerated_optimizer.step()
            skipped = self._accelerated_optimizer.step_was_skipped
            if self._average is not None and not skipped:
                self._average.update(step)
            counters.skipped_steps += skipped
            counters.nonfinite_streak = 0
        else:
            cause = f"gradient norm is {norm}" if math.isfinite(loss_total) else f"loss is {loss_total}"
            self._nonfinite.skip_step(counters, reporter, cause, losses, self._shares(step))
        self._accelerated_optimizer.zero_grad()
        counters.step, counters.samples = step, counters.samples + config.training.batch_size
        counters.tokens += num_targets
        counters.seconds += time.perf_counter() - start
        measures = {"train_loss": loss_total / num_targets, "learning_rate": learning_rate, "grad_norm": norm}
        return self._progress_metrics() | measures, stops > 0

    def _progress_metrics(self) -> dict[str, float]:
        """How far the run has come, as a line of metrics begins."""
        counters = self.counters
        epoch = counters.samples / self.task.data.samples_per_epoch
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
        batches = [self.task.data.training_batch(first, count) for first, count in self._shares(step)]
        # Filled on the device: copying a number there would wait for all that the device still has to do.
        targets_here = torch.full((), sum(batch.num_targets for batch in batches), device=accelerator.device)
        num_targets = accelerator.reduce(targets_here, "sum")
        losses = []
        for batch in batches:
            last = batch is batches[-1]
            with nullcontext() if last else accelerator.no_sync(self._parallel_model):
                inputs, targets_BT = batch.to(accelerator.device)
                loss = self._parallel_model(*inputs, targets_BT)
                # DDP takes the mean of the processes' gradients: times their number it is the sum.
                accelerator.backward(loss * accelerator.num_processes / num_targets)
            losses.append(loss.detach())
        return torch.stack(losses), num_targets

    def _compile(self, reporter: Reporter) -> None:
        """Compile a step, if that is to be, by passes whose gradients are thrown away."""
        if self.compiling.mode == "off":
            return

        def one_pass(batch: Batch) -> None:
            inputs, targets_BT = batch.to(self.accelerator.device)
            with self.accelerator.no_sync(self._parallel_model):
                self.accelerator.backward(self._parallel_model(*inputs, targets_BT) / targets_BT.numel())

        first_steps = range(1, 1 + STEPS_TO_COMPILE_FOR)
        batches = [self.task.data.training_batch(*share) for step in first_steps for share in self._shares(step)]
        self.compiling.compile(batches, one_pass, reporter)
        self._accelerated_optimizer.zero_grad()
        self.saver.setup["compile"] = self.compiling.mode

    def _warm_up_ddp_buckets(self) -> None:
        """Let DDP rebuild its buckets before the first step, so that a resumed run adds gradients in the same order."""
        if self.accelerator.num_processes > 1:
            for _ in range(2):
                self._backward(step=1)
                self._accelerated_optimizer.zero_grad()

    def _evaluate(self, metrics: dict[str, float], signals: StopSignals, reporter: Reporter) -> None:
        """Do the pending evaluation, judge its validation loss, and report the step with it.

        Raises:
            Interrupted: A stop request came; nothing is noted, and the evaluation is still pending.
            NonFiniteError: The validation loss is not finite.
        """
        counters, task = self.counters, self.task
        reporter.progress.doing("evaluating …")
        measures, sample = evaluate(
            self.accelerator,
            task,
            self._average,
            batch_size=self.config.training.eval_batch_size,
            sample_seed=derive_seed(self.config.seed, counters.step, "sample"),
            interrupted=lambda: signals.received is not None,
        )
        val_loss = measures["val_loss"]
        counters.pending_evaluation = None
        if not math.isfinite(val_loss):
            self._report(metrics, None, reporter)
            self._nonfinite.stop(f"at step {counters.step} the validation loss is {val_loss}", counters, reporter)
        reporter.say(
            f"step {counters.step}/{self.num_steps}  validation loss {val_loss:.4f}  ({self._judge(val_loss)})"
        )
        if sample is not None and task.shows_samples:
            reporter.say(sample)
        self._report(metrics | measures, sample, reporter)

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
        metrics |= self.compiling.take_measures()
        if self.accelerator.is_main_process:
            steps_left = self.num_steps - self.counters.step
            reporter.report(metrics, sample, self.counters.seconds / self.counters.step * steps_left)


def count_steps(config: RunConfig, task: Task) -> int:
    """Optimizer steps of a whole run: `max_steps`, or what `epochs` needs, whichever is less."""
    limits = [] if config.training.max_steps is None else [config.training.max_steps]
    if config.training.epochs is not None:
        limits.append(math.ceil(config.training.epochs * task.data.samples_per_epoch / config.training.batch_size))
    return min(limits)
