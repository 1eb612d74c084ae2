"""The training loop. It knows no model: a `Task` brings model and data.

One optimizer step works on one global batch. Its samples are split over processes, accumulation steps and
micro-batches, losses are summed, and the sum is divided by the number of targets of the whole global batch, so that a
step is the same however it is split. A step depends on (seed, step, rank) and the state in a checkpoint, on nothing
else.

The host is a step ahead: it launches step s + 1, and then settles step s, which is to read its numbers, count and
report it. Nothing is under way during an evaluation or a save.
"""

import math
import time
from collections.abc import Sequence

import torch

from training.average import WeightAverage
from training.batches import Batches
from training.compiling import STEPS_TO_COMPILE_FOR, Compiling
from training.config.command_line import parse_config_text
from training.config.sections import RunConfig
from training.evaluation import LOSSES, WHOLE, Evaluator, Interrupted, in_words, stride
from training.loss import LossModel
from training.micro_batch import MicroBatching
from training.nonfinite import NonFinitePolicy
from training.optimizer import build_optimizer
from training.recompute import recompute_in_training
from training.replicas import check_replicas
from training.reporting import Reporter, Speed
from training.runtime.device import Runtime
from training.runtime.errors import StoppedBySignal
from training.runtime.progress import Progress
from training.runtime.signals import StopSignals
from training.saving import Saver
from training.schedule import count_steps, jump
from training.seeds import derive_seed
from training.sharding import leave_group, parallelized
from training.step import DeviceStep, Launched, Outcome
from training.storage.checkpoint import Checkpoint
from training.storage.run_folder import PROGRESS, RunFolder
from training.storage.state import Counters, changes, saved_state
from training.task import Task, tokens_at_once
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
        self.num_steps = count_steps(config, task)
        self.counters = Counters(eval_every=stride(task.data, config.training.eval_tokens))
        self.changes: list[str] = []
        task.model.to(torch.float64 if runtime.precision == "fp64" else torch.float32)
        recompute_in_training(task.model, config.training.recompute)
        loss_model = LossModel(task.model, config.training.label_smoothing)
        parallel_model = parallelized(accelerator, loss_model, runtime.sharding, runtime.precision)
        # What follows the weights is made after that: it is in shards where they are.
        optimizer = build_optimizer(task.model, config.optimizer, bf16=runtime.precision == "bf16")
        tokens = self.num_steps * config.training.batch_size * task.data.tokens_per_sample
        self.compiling = Compiling(loss_model, config.training, accelerator, work=task.flops_per_token * tokens)
        decay = config.training.ema_decay
        average = WeightAverage(task.model, decay) if decay else None
        self.device_step = DeviceStep(accelerator, parallel_model, task, config, optimizer, average)
        self._evaluator = Evaluator(accelerator, task, parallel_model, average, config.training)
        self.saver = Saver(runtime, task, config, run, optimizer, average)
        self.micro_batching = MicroBatching(config.training, accelerator, tokens_at_once(task.data))
        self.saver.setup |= {"compile": self.compiling.mode} | self.micro_batching.record
        self._nonfinite = NonFinitePolicy(self.saver)
        self._speed, self._clock = Speed(accelerator.device, task.flops_per_token, runtime.peak_flops), 0.0

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of the same run; what differs from the run that wrote it is then in `changes`."""
        counters = self.counters = self.saver.restore(checkpoint)
        measured = counters.val_step == counters.step and counters.val_loss is not None
        if self._is_over and not measured and counters.pending_evaluation is None:
            # It was to go on for longer, and is now asked for no further step than this one.
            line = self.run.metrics_of(counters.step) or counters.progress(self.task.data.samples_per_epoch)
            counters.pending_evaluation = {name: value for name, value in line.items() if name in PROGRESS}
        setup = saved_state(checkpoint).setup
        self.compiling.go_on(str(setup.get("compile", "off")))
        self.micro_batching.go_on(setup)
        own = self.micro_batching.record  # What it does otherwise is said when that is chosen.
        self.saver.setup |= {"compile": self.compiling.mode} | own
        compared = {name: value for name, value in self.saver.setup.items() if name not in own}
        self.changes = changes(checkpoint, self.config, compared)
        if self.changes:
            before = parse_config_text(type(self.config), checkpoint.text("config.yaml"))
            steps_before = count_steps(before, self.task)
            rise = jump(before.schedule, steps_before, self.config.schedule, self.num_steps, counters.step)
            self.changes += [rise] if rise else []
        self.changes += [self.saver.forgotten] if self.saver.forgotten else []

    def choose_micro_batch(self) -> None:
        """Choose how many sequences go through the model at once; all processes call this before `fit`.

        Raises:
            MemoryError: Not a single one fits.
        """
        batching, step = self.micro_batching, self.device_step
        if batching.is_to_be_tried and not self._is_over:
            precision = self.saver.setup["precision"]
            batching.choose(self.task, self.config, precision, step.discarded_pass, in_shards=step.in_shards)
        self.saver.setup |= batching.record
        self.changes += batching.changes

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
        self._speed.start(self.counters)
        with StopSignals() as signals, self.batches() as batches:
            try:
                self._compile(batches, reporter)
                if self.accelerator.num_processes > 1:
                    self.device_step.warm_up_ddp_buckets(batches.make(1))
                if self.counters.pending_evaluation is not None:
                    self._finish_step(signals, reporter, stopping=False)
                self._train(batches, signals, reporter)
            finally:
                self.saver.close(reporter)
                reporter.close()

    def batches(self) -> Batches:
        """This process's share of the batches of all steps; to be closed."""
        micro_batch = self.saver.setup["micro_batch"]
        return Batches(self.task.data, self.config, self.accelerator, micro_batch, self.num_steps)

    def shutdown(self) -> None:
        """Leave the process group; all processes do, after `fit`.

        DDP goes first: where it is the last to hold the group, it waits for gloo's threads while Python stands still,
        and a thread that has yet to give a tensor back to Python waits for ever.
        """
        self.accelerator.free_memory()
        del self.device_step, self._evaluator
        self.accelerator.end_training()
        leave_group(self.task.model)

    def _train(self, batches: Batches, signals: StopSignals, reporter: Reporter) -> None:
        """Take steps to the end, with one under way behind the one that is settled, unless the run pauses between."""
        behind = None
        while not self._is_over:
            if behind is None:
                self._clock = time.perf_counter()
            now = behind or self._launch(self.counters.step + 1, batches, signals)
            pausing = self._pauses_after(now.step) or self._stops_alone(signals)
            behind = None if pausing else self._launch(now.step + 1, batches, signals)
            outcome = self._settle(now, reporter)
            stopping = outcome.stop or self._stops_alone(signals)
            if not outcome.usable:
                behind = None  # It has changed nothing, and is done again.
            if stopping and behind is not None:
                self._settle(behind, reporter)
            self._finish_step(signals, reporter, stopping=stopping)

    def _launch(self, step: int, batches: Batches, signals: StopSignals) -> Launched:
        return self.device_step.launch(step, batches.take(step), stop=signals.received is not None)

    def _pauses_after(self, step: int) -> bool:
        """Whether the last step is done, or an evaluation or a save may be due."""
        training = self.config.training
        intervals = (training.eval_interval, training.checkpoint_interval)
        return step >= self.num_steps or any(interval and step % interval == 0 for interval in intervals)

    def _stops_alone(self, signals: StopSignals) -> bool:
        """Whether the only process was asked to stop: it has no others to agree with, by what a step sums up."""
        return signals.received is not None and self.accelerator.num_processes == 1

    def _settle(self, launched: Launched, reporter: Reporter) -> Outcome:
        """Wait for a step, count it, and report it where that is due.

        Raises:
            NonFiniteError: Its loss or gradient is not finite, and it is one too many.
        """
        counters, outcome = self.counters, launched.outcome()
        loss, norm = outcome.loss, outcome.grad_norm
        if outcome.usable:
            counters.skipped_steps += not math.isfinite(norm)  # For fp16's loss scale.
            counters.nonfinite_streak = 0
        else:
            cause = f"gradient norm is {norm}" if math.isfinite(loss) else f"loss is {loss}"
            self._nonfinite.skip_step(counters, reporter, cause, launched.losses, launched.shares)
            self.device_step.guard.skip()
        counters.step, counters.samples = launched.step, counters.samples + self.config.training.batch_size
        counters.tokens += outcome.num_targets
        counters.seconds += outcome.time - self._clock
        self._clock = outcome.time
        reporter.progress.advance()
        metrics = counters.progress(self.task.data.samples_per_epoch)
        metrics |= {"train_loss": loss / outcome.num_targets, "learning_rate": launched.learning_rate}
        self._report_step(metrics | {"grad_norm": norm}, reporter)
        return outcome

    def _report_step(self, metrics: dict[str, float], reporter: Reporter) -> None:
        """Report a step where that is due; of one that is to be evaluated first, keep what `_evaluate` reports then."""
        evaluating = self._is_due(self.config.training.eval_interval)
        logging = self._is_due(self.config.training.log_interval)
        if evaluating or logging:
            metrics |= self._speed.measures(self.counters)
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

    def _compile(self, batches: Batches, reporter: Reporter) -> None:
        """Compile a step, if that is to be, and there are steps to come."""
        if self.compiling.mode == "off" or self._is_over:
            return
        first = [batches.make(step) for step in range(1, 1 + STEPS_TO_COMPILE_FOR)]
        parts = [(batch.to(self.accelerator.device), seeds_B) for made in first for batch, seeds_B in made.parts]
        self.compiling.compile(parts, self.device_step.discarded_pass, reporter)
        self.saver.setup["compile"] = self.compiling.mode

    def _evaluate(self, metrics: dict[str, float], signals: StopSignals, reporter: Reporter) -> None:
        """Do the pending evaluation, judge its validation loss, and report the step with it.

        Raises:
            Interrupted: A stop request came; nothing is noted, and the evaluation is still pending.
            NonFiniteError: The validation loss is not finite.
            DivergedReplicasError: The ranks' weights are not the same.
        """
        counters, patience = self.counters, self.config.training.patience
        self.saver.wait(counters, reporter)
        check_replicas(self.saver, counters)
        reporter.progress.doing("evaluating …")
        measures, sample = self._evaluator.evaluate(
            is_last=lambda loss: self._is_over or 0 < patience <= counters.stale_with(loss),
            sample_seed=derive_seed(self.config.seed, counters.step, "sample"),
            interrupted=lambda: signals.received is not None,
        )
        losses = {words: measures[name] for name, words in LOSSES.items() if name in measures}
        counters.pending_evaluation = None
        for name, loss in losses.items():
            if not math.isfinite(loss):
                self._report(metrics, None, reporter)
                self._nonfinite.stop(f"at step {counters.step} the {name} is {loss}", counters, reporter)
        counters.val_loss = measures.get(WHOLE)
        counters.judge(next(iter(losses.values())))
        said = f"step {counters.step}/{self.num_steps}  {in_words(measures)}"
        reporter.say(f"{said}  ({counters.verdict(patience)})")
        if sample is not None and self.task.shows_samples:
            reporter.say(sample)
        self._report(metrics | measures, sample, reporter)

    def _report(self, metrics: dict[str, float], sample: str | None, reporter: Reporter) -> None:
        metrics |= self.compiling.take_measures()
        if self.accelerator.is_main_process:
            steps_left = self.num_steps - self.counters.step
            reporter.report(metrics, sample, self.counters.seconds / self.counters.step * steps_left)
