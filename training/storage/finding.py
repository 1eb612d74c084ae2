"""Which checkpoint a path stands for: a run's folder, a checkpoint's, or a name of one."""

import os
import shlex
from contextlib import suppress
from pathlib import Path

from training.storage.checkpoint import NAMES, Checkpoint, CheckpointError, CheckpointStore, named_checkpoint
from training.storage.manifest import MANIFEST
from training.storage.run_folder import RunFolder


def find_checkpoint(path: Path) -> Path:
    """The folder of a run's best checkpoint (its last where none is best yet), or of the checkpoint that `path` is.

    Raises:
        CheckpointError: There is none.
        FileError: What says which one is the best cannot be read.
    """
    if (path / "checkpoints").is_dir():
        found = CheckpointStore(path / "checkpoints").best()
        if found is None:
            raise CheckpointError(f"{path} holds no checkpoint yet")
        return found
    if _is_name(path):
        return _named(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: expected a run's folder or a checkpoint's")
    if not path.is_dir():
        raise CheckpointError(f"{path} is a file: expected a run's folder or a checkpoint's")
    if not (path / MANIFEST).exists():
        names = (path / name for name in NAMES)
        found = CheckpointStore(path).best() or next((_named(name) for name in names if os.path.lexists(name)), None)
        return found or _no_checkpoint(path)
    return path


def _no_checkpoint(path: Path) -> Path:
    """The path itself, of which a reader says what is wrong with it, unless more can be said here."""
    if RunFolder(path).holds_run:
        raise CheckpointError(f"{path} holds no checkpoint yet")
    with suppress(OSError):
        for inner in sorted(path.iterdir()):
            if RunFolder(inner).holds_run:
                raise CheckpointError(f"{path} is no run, but holds some: name one of them, such as {inner}")
    return path


def _is_name(path: Path) -> bool:
    """Whether a path is `best` or `last`, not what they lead to; a link that leads nowhere may have been one."""
    own = path.is_file() or (path.is_symlink() and path.absolute().parent.name == "checkpoints")
    return (path.name in NAMES and own) or (path.is_symlink() and not path.exists())


def _named(path: Path) -> Path:
    """The checkpoint that a name stands for, which must be there."""
    found = named_checkpoint(path)
    if not found.is_dir():
        quoted = shlex.quote(str(path))
        raise CheckpointError(
            f"{path} is only the name of {found.name}, which is not beside it: a link was copied, not the checkpoint. "
            f"With the run's folder for RUN, type: rm {quoted} && cp -r RUN/checkpoints/{found.name} {quoted}"
        )
    return found


def open_checkpoint(path: Path, *, in_part: bool = False) -> Checkpoint:
    """The checkpoint that `find_checkpoint` finds; `in_part` as of `Checkpoint`.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    return Checkpoint(find_checkpoint(path), in_part=in_part)
