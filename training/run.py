"""One run from command to result: where it computes, where it writes, how far it had come, and the loop."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from training.config.command_line import config_to_yaml
from training.config.sections import RunConfig
from training.loop import Trainer
from training.micro_batch import check_split, sequences_at_once
from training.out_of_memory import explain
from training.planning.start import memory_line, work_line
from training.runtime.device import Runtime, make_runtime
from training.runtime.errors import CommandError, InputError, is_out_of_memory
from training.runtime.processes import in_main_process, naming_lost_processes
from training.shared_checkpoint import SharedCheckpoint
from training.storage.checkpoint import Checkpoint, CheckpointStore
from training.storage.own_class import end_if_imported
from training.storage.run_folder import RunFolder, choose_run_folder
from training.storage.state import Counters, flattened
from training.task import Begun, Task
from training.tracking import Tracker, start_trackers
from training.trained import num_trained


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    run: RunFolder
    counters: Counters
    num_steps: int
    is_main_process: bool


def train(
    make_task: Callable[[], Task],
    config: RunConfig,
    *,
    output_dir: Path | None = None,
    resume: bool = False,
    notes: Sequence[str] = (),
) -> Result:
    """Start or resume a run, and train it to its end.

    Args:
        make_task: Builds model and data.
        config: The configuration.
        output_dir: The run's folder; None for the next free runs/NAME-N, or to resume the newest.
        resume: Go on from the last sound checkpoint, if there is one.
        notes: What is to be said of the configuration as the run begins.

    Raises:
        InputError: Configuration, data or folder do not serve.
        StoppedBySignal, NonFiniteError, SaveError: As `Trainer.fit`.
    """
    end_if_imported()
    runtime = _started(config)
    accelerator = runtime.accelerator
    run, task, trainer = None, None, None
    try:
        with naming_lost_processes(accelerator):
            task = _agreed(config, make_task())
            run, checkpoint = _choose_start(accelerator, config, output_dir, resume=resume)
            config, origin = _begun(task, config, checkpoint)
            trainer = Trainer(runtime, task, config, run)
            if checkpoint is not None:
                trainer.restore(checkpoint)
                del checkpoint  # Its files are open: they would keep their space on the disk after they are pruned.
            trainer.choose_micro_batch()
            trainer.fit(in_main_process(accelerator, partial(_prepare, runtime, trainer, origin, notes)) or [])
        trainer.shutdown()
    except CommandError as error:
        # Leaving the process group takes all processes: one that fails alone must not wait for the others.
        if error.shared and trainer is not None:
            trainer.shutdown()
        raise
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(_explained(error, runtime, config, task, trainer)) from error
    finally:
        if run is not None:
            run.release()
    return Result(run, trainer.counters, trainer.num_steps, accelerator.is_main_process)


def _started(config: RunConfig) -> Runtime:
    """What a run computes on, which is said at once: reading the data and loading what trains takes seconds."""
    runtime = make_runtime(config.training)
    check_split(config.training, runtime.accelerator.num_processes, in_shards=runtime.sharding is not None)
    if runtime.accelerator.is_main_process:
        _say({"device": runtime.description})
    return runtime


def _explained(
    error: Exception, runtime: Runtime, config: RunConfig, task: Task | None, trainer: Trainer | None
) -> str:
    """Where memory ran out, and what would help."""
    if task is None or trainer is None:
        return explain(error, runtime, config, task, at_once=1, resumable=False)
    micro_batch = trainer.saver.setup["micro_batch"]
    at_once = sequences_at_once(config.training, runtime.accelerator.num_processes, micro_batch)
    return explain(error, runtime, config, task, at_once, resumable=bool(trainer.saver.store.steps()))


def _agreed(config: RunConfig, task: Task) -> Task:
    """The task, or an `InputError` in all processes where they have other options or data, wherever that lies."""
    asked: RunConfig = getattr(task, "config", config)  # With what a task has found out.
    own = flattened(asdict(asked)) | {"data.source": None, "init_from": None, "the data's SHA-256": task.data.sha256}
    first, *others = gather_object([own])
    for rank, other in enumerate(others, 1):
        for name in first:
            if other[name] != first[name]:
                raise InputError(
                    f"{name} is {first[name]!r} on rank 0, {other[name]!r} on rank {rank}: start the same command on "
                    f"every machine, with the same code and data"
                )
    return task


def _choose_start(
    accelerator: Accelerator, config: RunConfig, output_dir: Path | None, *, resume: bool
) -> tuple[RunFolder, Checkpoint | None]:
    """Let the main process choose folder and checkpoint for all, and read it."""

    def choose() -> tuple[RunFolder, Checkpoint | None]:
        run = choose_run_folder(config.name, output_dir, resume=resume)
        run.claim()
        return run, _newest_sound(run)

    run, checkpoint = in_main_process(accelerator, choose) or (None, None)
    said = [None if run is None else (run.path, checkpoint is not None)]
    broadcast_object_list(said)
    assert said[0] is not None
    path, going_on = said[0]
    if going_on and accelerator.num_processes > 1:
        checkpoint = SharedCheckpoint(accelerator, checkpoint)
    return run or RunFolder(path), checkpoint


def _begun(task: Task, config: RunConfig, checkpoint: Checkpoint | None) -> Begun:
    """Let a task take its first weights, if it has others than those that are drawn."""
    begin: Callable[[Checkpoint | None], Begun] | None = getattr(task, "begin", None)
    return Begun(config) if begin is None else begin(checkpoint)


def _newest_sound(run: RunFolder) -> Checkpoint | None:
    store = CheckpointStore(run.checkpoints)
    store.adopt_copies()
    checkpoint, damage = store.newest_sound()
    for problem in damage:
        print(f"warning     {problem}; it is quarantined")
    if damage and checkpoint is None:
        print("warning     no sound checkpoint is left: the run starts over")
    return checkpoint


def _prepare(runtime: Runtime, trainer: Trainer, origin: str | None, notes: Sequence[str]) -> list[Tracker]:
    """Take back what lies after the step that the run goes on from, start the trackers, and say what the run is."""
    run, counters, config = trainer.run, trainer.counters, trainer.config
    store = trainer.saver.store
    store.clean()
    space, warning = store.check_space(trainer.saver.checkpoint_bytes)
    space += ", written in the background from a copy in memory" if config.training.background_saves else ""
    run.forget_metrics_after(counters.reported_step)
    store.go_back_to(counters.step, counters.best_step)
    trackers = start_trackers(config, run, counters)
    run.create(config_to_yaml(config))
    said = {"weights": origin, "note": "\nnote        ".join([*notes, *trainer.task.data.notes])}
    _introduce(runtime, trainer, space, trackers, said)
    if warning:
        print(f"warning     {warning}: the run will go as far as it can", flush=True)
    return trackers


def _introduce(
    runtime: Runtime, trainer: Trainer, space: str, trackers: list[Tracker], said: Mapping[str, str | None]
) -> None:
    """Say what the run is, and what was `said` of how it begins, before the first step; the device was said."""
    data, training, step = trainer.task.data, trainer.config.training, trainer.counters.step
    parameters, learning = sum(p.numel() for p in trainer.task.model.parameters()), num_trained(trainer.task.model)
    tokens_per_epoch = data.samples_per_epoch * data.tokens_per_sample
    tokens_per_step = training.batch_size * data.tokens_per_sample
    epochs = trainer.num_steps * training.batch_size / data.samples_per_epoch
    tokens = trainer.num_steps * tokens_per_step
    every = trainer.counters.eval_every
    at_once = sequences_at_once(training, runtime.accelerator.num_processes, trainer.micro_batching.size)
    shards = 1 if runtime.sharding is None else runtime.accelerator.num_processes
    lines = {
        "model": f"{parameters:,} parameters" + (f", of which {learning:,} train" if learning < parameters else ""),
        "weights": said["weights"],
        "data": f"{data.origin}, {tokens_per_epoch:,.0f} tokens per epoch",
        "note": said["note"],
        "steps": f"{trainer.num_steps:,} of {tokens_per_step:,.0f} tokens, {tokens:,.0f} in all, {epochs:.3g} epochs",
        "work": work_line(trainer.task, trainer.config, trainer.counters),
        "memory": memory_line(trainer.task, trainer.config, runtime.precision, at_once, shards),
        "evaluation": None if every == 1 else f"val_loss_subset, over 1 in {every} windows of the validation split",
        "optimizer": ", ".join(f"{text} ({name})" for name, text in trainer.config.optimizer.rates.items()),
        "micro-batch": trainer.micro_batching.description,
        "compile": trainer.compiling.description,
        "sharding": None if runtime.sharding is None else runtime.sharding.description,
        "folder": str(trainer.run.path),
        "checkpoints": space,
        "tracking": "\ntracking    ".join(tracker.description for tracker in trackers),
        "resuming": f"after step {step:,}" if step else None,
        "changed": "\nchanged     ".join(trainer.changes),
        "warning": "\nwarning     ".join(runtime.warnings),
    }
    _say(lines)


def _say(lines: Mapping[str, str | None]) -> None:
    """Print what there is to say, each under its name."""
    print("\n".join(f"{name:<11} {text}" for name, text in lines.items() if text), flush=True)
