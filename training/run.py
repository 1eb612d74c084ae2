"""One run from command to result: where it computes, where it writes, how far it had come, and the loop."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from training.checkpoint import Checkpoint, CheckpointStore
from training.config import RunConfig
from training.device import idle_gpus_warning, make_accelerator
from training.errors import CommandError
from training.loop import Trainer, check_batch_size, count_steps
from training.run_folder import RunFolder, choose_run_folder
from training.state import Counters
from training.task import Task


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
    accelerator, precision, description = make_accelerator(config.training.precision)
    run = None
    try:
        check_batch_size(config, accelerator.num_processes)
        task = make_task()
        run, checkpoint = _choose_start(accelerator, config, output_dir, resume=resume)
        trainer = Trainer(accelerator, precision, task, config, run)
        if checkpoint is not None:
            trainer.restore(checkpoint)
            del checkpoint  # Its bytes are as large as the model and its optimizer.
        if accelerator.is_main_process:
            _clear_the_way(run, trainer.counters, config_yaml)
            _introduce(description, config, task, run, trainer.counters, accelerator.num_processes)
        accelerator.wait_for_everyone()
        trainer.fit()
        accelerator.end_training()
    except CommandError as error:
        # Leaving the process group takes all processes: one that fails alone must not wait for the others.
        if error.shared:
            accelerator.end_training()
        raise
    finally:
        if run is not None:
            run.release()
    return Result(run=run, counters=trainer.counters, is_main_process=accelerator.is_main_process)


def _choose_start(
    accelerator: Accelerator, config: RunConfig, output_dir: Path | None, *, resume: bool
) -> tuple[RunFolder, Checkpoint | None]:
    """Let the main process choose folder and checkpoint for all; its errors are raised in all of them."""
    choice: list[Path | CommandError | None] = [None, None]
    run, checkpoint = None, None
    if accelerator.is_main_process:
        try:
            run = choose_run_folder(config.name, output_dir, resume=resume)
            run.claim()
            checkpoint = _newest_sound(run)
            choice = [run.path, checkpoint.folder if checkpoint else None]
        except CommandError as error:
            choice = [error, None]
    broadcast_object_list(choice)
    path, checkpoint_folder = choice
    if isinstance(path, CommandError):
        raise path
    if isinstance(checkpoint_folder, Path) and checkpoint is None:
        checkpoint = Checkpoint(checkpoint_folder)
    assert isinstance(path, Path)
    return run or RunFolder(path), checkpoint


def _newest_sound(run: RunFolder) -> Checkpoint | None:
    checkpoint, damage = CheckpointStore(run.checkpoints).newest_sound()
    for problem in damage:
        print(f"warning     {problem}; it is set aside")
    if damage and checkpoint is None:
        print("warning     no sound checkpoint is left: the run starts over")
    return checkpoint


def _clear_the_way(run: RunFolder, counters: Counters, config_yaml: str) -> None:
    """Take back what lies after the step that the run goes on from."""
    run.create(config_yaml)
    run.forget_metrics_after(counters.step)
    CheckpointStore(run.checkpoints).go_back_to(counters.step, counters.best_step)


def _introduce(
    description: str, config: RunConfig, task: Task, run: RunFolder, counters: Counters, num_processes: int
) -> None:
    """Say what the run is, before the first step."""
    parameters = sum(p.numel() for p in task.model.parameters())
    num_steps, training = count_steps(config, task), config.training
    tokens_per_epoch = task.samples_per_epoch * task.tokens_per_sample
    epochs = num_steps * training.batch_size / task.samples_per_epoch
    lines = {
        "device": description,
        "model": f"{parameters:,} parameters",
        "data": f"{task.data_origin}, {tokens_per_epoch:,} tokens per epoch",
        "steps": f"{num_steps:,} of {training.batch_size * task.tokens_per_sample:,} tokens, {epochs:.3g} epochs",
        "folder": str(run.path),
        "resuming": f"after step {counters.step:,}" if counters.step else None,
        "warning": idle_gpus_warning(num_processes),
    }
    print("\n".join(f"{name:<11} {text}" for name, text in lines.items() if text), flush=True)
