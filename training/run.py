"""One run from command to result: where it computes, where it writes, how far it had come, and the loop."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from training.checkpoint import Checkpoint, CheckpointStore
from training.config import RunConfig
from training.device import Setup, make_accelerator
from training.errors import CommandError
from training.loop import Trainer, check_batch_size, count_steps
from training.run_folder import RunFolder, choose_run_folder
from training.state import Counters
from training.task import Task
from training.tracking import Tracker, start_trackers

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a run ended."""

    run: RunFolder
    counters: Counters
    is_main_process: bool


def train(
    make_task: Callable[[], Task],
    config: RunConfig,
    *,
    config_yaml: str,
    output_dir: Path | None = None,
    resume: bool = False,
) -> Result:
    """Start or resume a run, and train it to its end.

    Args:
        make_task: Builds model and data, with the weights that a new run starts from.
        config: The configuration.
        config_yaml: The same, resolved, as text to keep with the run.
        output_dir: The run's folder; None for the next free runs/NAME-N, or to resume the newest.
        resume: Go on from the last sound checkpoint, if there is one.

    Raises:
        InputError: Configuration, data or folder do not serve.
        StoppedBySignal, NonFiniteError: As `Trainer.fit`.
    """
    setup = make_accelerator(config.training.precision)
    accelerator = setup.accelerator
    run = None
    try:
        check_batch_size(config, accelerator.num_processes)
        task = make_task()
        run, checkpoint = _choose_start(accelerator, config, output_dir, resume=resume)
        trainer = Trainer(setup, task, config, run)
        if checkpoint is not None:
            trainer.restore(checkpoint)
            del checkpoint  # Its bytes are as large as the model and its optimizer.
        trackers = _in_main_process(accelerator, lambda: _prepare(run, setup, config, config_yaml, task, trainer))
        trainer.fit(trackers or [])
        trainer.leave()
    except CommandError as error:
        # Leaving the process group takes all processes: one that fails alone must not wait for the others.
        if error.shared:
            trainer.leave()
        raise
    finally:
        if run is not None:
            run.release()
    return Result(run=run, counters=trainer.counters, is_main_process=accelerator.is_main_process)


def _in_main_process(accelerator: Accelerator, action: Callable[[], T]) -> T | None:
    """Do something in the main process, and give its result there; its errors are raised in all processes."""
    result = None
    errors: list[CommandError | None] = [None]
    if accelerator.is_main_process:
        try:
            result = action()
        except CommandError as error:
            errors = [error]
    broadcast_object_list(errors)
    if errors[0] is not None:
        raise errors[0]
    return result


def _choose_start(
    accelerator: Accelerator, config: RunConfig, output_dir: Path | None, *, resume: bool
) -> tuple[RunFolder, Checkpoint | None]:
    """Let the main process choose folder and checkpoint for all."""

    def choose() -> tuple[RunFolder, Checkpoint | None]:
        run = choose_run_folder(config.name, output_dir, resume=resume)
        run.claim()
        return run, _newest_sound(run)

    chosen = _in_main_process(accelerator, choose)
    paths = [None, None] if chosen is None else [chosen[0].path, chosen[1].folder if chosen[1] else None]
    broadcast_object_list(paths)
    if chosen is not None:
        return chosen
    assert paths[0] is not None
    return RunFolder(paths[0]), None if paths[1] is None else Checkpoint(paths[1])


def _newest_sound(run: RunFolder) -> Checkpoint | None:
    checkpoint, damage = CheckpointStore(run.checkpoints).newest_sound()
    for problem in damage:
        print(f"warning     {problem}; it is set aside")
    if damage and checkpoint is None:
        print("warning     no sound checkpoint is left: the run starts over")
    return checkpoint


def _prepare(
    run: RunFolder, setup: Setup, config: RunConfig, config_yaml: str, task: Task, trainer: Trainer
) -> list[Tracker]:
    """Take back what lies after the step that the run goes on from, start the trackers, and say what the run is."""
    counters = trainer.counters
    run.forget_metrics_after(counters.step)
    store = CheckpointStore(run.checkpoints, config.training.keep_checkpoints)
    store.go_back_to(counters.step, counters.best_step)
    space, warning = store.check_space(trainer.checkpoint_bytes)
    trackers = start_trackers(config, run, counters)
    run.create(config_yaml)
    _introduce(setup, config, task, run, counters, trackers, space)
    if warning:
        print(f"warning     {warning}: the run will go as far as it can", flush=True)
    return trackers


def _introduce(
    setup: Setup, config: RunConfig, task: Task, run: RunFolder, counters: Counters, trackers: list[Tracker], space: str
) -> None:
    """Say what the run is, before the first step."""
    parameters = sum(p.numel() for p in task.model.parameters())
    num_steps, training = count_steps(config, task), config.training
    tokens_per_epoch = task.samples_per_epoch * task.tokens_per_sample
    epochs = num_steps * training.batch_size / task.samples_per_epoch
    lines = {
        "device": setup.description,
        "model": f"{parameters:,} parameters",
        "data": f"{task.data_origin}, {tokens_per_epoch:,} tokens per epoch",
        "steps": f"{num_steps:,} of {training.batch_size * task.tokens_per_sample:,} tokens, {epochs:.3g} epochs",
        "folder": str(run.path),
        "checkpoints": space,
        "tracking": "\ntracking    ".join(tracker.description for tracker in trackers),
        "resuming": f"after step {counters.step:,}" if counters.step else None,
        "warning": "\nwarning     ".join(setup.warnings),
    }
    print("\n".join(f"{name:<11} {text}" for name, text in lines.items() if text), flush=True)
