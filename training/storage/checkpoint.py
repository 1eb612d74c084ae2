"""Atomic checkpoints: they exist whole or not at all.

    checkpoints/step-00000500/    model.safetensors, optimizer.safetensors, state.json, … and manifest.json
                                  state-1.json in its place where the step was evaluated by a later resume
    checkpoints/last, best        relative links, or text files with a name where there are no links

A checkpoint is written beside its final name, flushed, sealed by a manifest of sizes and SHA-256 that is written last
and seals itself, and renamed into place. Only then are old ones pruned. Readers check the manifest first. Nothing in a
checkpoint is unpickled.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.config.sections import shown
from training.runtime.errors import InputError
from training.runtime.sizes import gigabytes
from training.storage.files import replace_link, sync
from training.storage.manifest import MANIFEST, SealedFiles, add_sealed, verified_manifest, write_sealed
from training.storage.manifest import CheckpointError as CheckpointError
from training.storage.manifest import DamagedCheckpointError as DamagedCheckpointError
from training.storage.reading import Count, built, decoded, parse_json, read_json, read_text
from training.storage.tensor_file import SUFFIX, Stored

if TYPE_CHECKING:
    from torch import Tensor

STATE = "state.json"
NAMES = ("best", "last")
_NAME = re.compile(r"step-([0-9]{8,18})")
_STATES = re.compile(r"state-([0-9]{1,9})[.]json")


def checkpoint_name(step: int) -> str:
    """The folder of a step; names sort as steps do."""
    return f"step-{step:08d}"


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps of which there are checkpoints in a folder, in rising order."""
    if not folder.is_dir():
        return []
    matches = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in matches if match and checkpoint_name(int(match[1])) == match[0])


@dataclass
class _Step:
    step: Count


def saved_step(state: Any, file: Path) -> int:
    """The step that a checkpoint's state is of, or a `MalformedFileError`."""
    saved: _Step = built(_Step, state, file)
    return saved.step


def newest_state(names: Iterable[str]) -> str:
    """Of the files of a checkpoint, the one that says where the run stood when it last wrote one."""
    later = [(int(match[1]), name) for name in names if (match := _STATES.fullmatch(name))]
    return max(later, default=(0, STATE))[1]


class Checkpoint:
    """One checkpoint, whose content is what was written.

    Args:
        folder: The folder, or a link to it.
        in_part: Compare a file of tensors when it is read, for those who read a part of them; else all are at once.

    Raises:
        DamagedCheckpointError: It is incomplete or damaged; the message names the file.
        CheckpointError: It is missing, cannot be read, or has the format of another version.
    """

    def __init__(self, folder: Path, *, in_part: bool = False) -> None:
        self.folder = folder.resolve()
        self._sealed = SealedFiles(self.folder)
        state = newest_state(self.files)
        self.state: dict[str, Any] = parse_json(self.text(state), self.folder / state)
        self.step = saved_step(self.state, self.folder / state)
        named = _NAME.fullmatch(self.folder.name)
        if named and int(named[1]) != self.step:  # A whole checkpoint in the place of another one is damage as well.
            raise DamagedCheckpointError(f"checkpoint {self.folder} is damaged: {state} is of step {self.step}")
        if not in_part:
            self._sealed.verify()

    @property
    def files(self) -> set[str]:
        """The names of its files."""
        return self._sealed.names

    def text(self, name: str) -> str:
        """The content of a text file."""
        self._find(name)
        return decoded(self._sealed.texts[name], self.folder / name)

    def header(self, name: str) -> dict[str, Stored]:
        """What `NAME.safetensors` holds: type and shape of each tensor. It may be damaged; `read` tells."""
        return self._sealed.header(self._find(f"{name}{SUFFIX}"))

    def read(self, name: str) -> "Iterator[tuple[str, Tensor]]":
        """The tensors of `NAME.safetensors`, on the CPU, one at a time; see `SealedFiles.tensors`."""
        return self._sealed.tensors(self._find(f"{name}{SUFFIX}"))

    def tensors(self, name: str) -> "dict[str, Tensor]":
        """All of them."""
        return dict(self.read(name))

    def verify(self, name: str) -> None:
        """Raise a `DamagedCheckpointError` unless `NAME.safetensors` is what was written."""
        self._sealed.verify(self._find(f"{name}{SUFFIX}"))

    def _find(self, name: str) -> str:
        if name not in self.files:
            raise CheckpointError(f"checkpoint {self.folder} holds no {name}")
        return name


def named_checkpoint(path: Path) -> Path:
    """The checkpoint beside `best` or `last` that it names, as a link or in a text file; it may be gone.

    Raises:
        CheckpointError: It names something else, or something outside the run.
        FileError: It cannot be read.
    """
    target = os.readlink(path) if path.is_symlink() else read_text(path, max_bytes=200).strip()
    found = path.parent / target
    if not _NAME.fullmatch(found.name) or found.resolve().parent != path.parent.resolve():
        raise CheckpointError(
            f"{path} names {shown(target)}, which is no checkpoint beside it: remove {path}, and the run does without"
        )
    return found


class CheckpointStore:
    """The `checkpoints/` folder of a run. One process at a time may write to it.

    Args:
        folder: The folder; it is made when the first checkpoint is written.
        keep: How many of the newest checkpoints to keep, besides the best; at least 2.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = max(keep, 2)

    def _path(self, step: int) -> Path:
        return self.folder / checkpoint_name(step)

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, sound or not, in rising order."""
        return checkpoint_steps(self.folder)

    def newest_first(self) -> list[Path]:
        """The folders of these checkpoints."""
        return [self._path(step) for step in reversed(self.steps())]

    def named(self, name: str) -> Path | None:
        """The checkpoint that `best` or `last` stands for; None where it does not.

        A tool that follows links makes a copy of the checkpoint in their place.

        Raises:
            CheckpointError, FileError: As `named_checkpoint`.
        """
        path = self.folder / name
        if path.is_dir() and not path.is_symlink():
            return path
        found = named_checkpoint(path) if os.path.lexists(path) else None
        return found if found is not None and found.is_dir() else None

    def best(self) -> Path | None:
        """The best checkpoint, or the last where none is best yet.

        Where a tool has dropped a name, the newest one with all its files says which one was best.
        """
        if (best := self.named("best")) is not None:
            return best
        last = self.named("last")
        for newest in self.newest_first() if last is None else [last]:
            with suppress(InputError, OSError):
                entries = verified_manifest(newest)
                if all((newest / name).stat().st_size == entry.size for name, entry in entries.items()):
                    counters = read_json(newest / newest_state(entries)).get("counters")
                    step = counters.get("best_step") if isinstance(counters, dict) else None
                    return self._path(step) if step in self.steps() else newest
        return last

    def adopt_copies(self) -> None:
        """Make names again of `best` and `last` where a tool that follows links has made copies of checkpoints.

        A copy is what the run goes on with where the checkpoint itself is gone or damaged.

        Raises:
            CheckpointError, FileError: As `named_checkpoint`.
        """
        for name in NAMES:
            copy = self.folder / name
            if self.named(name) != copy:
                continue
            try:
                path = self._path(Checkpoint(copy).step)
            except DamagedCheckpointError:
                self._quarantine(copy)
                continue
            sound = None
            with suppress(DamagedCheckpointError):
                sound = Checkpoint(path) if path.exists() else None
            if sound is None:
                self._quarantine(path)
                os.rename(copy, path)
            else:
                shutil.rmtree(copy)
            replace_link(copy, path.name)

    def _quarantine(self, path: Path) -> None:
        """Rename what is damaged, or of a run that goes back: it is kept, and not read again."""
        if path.exists():
            quarantined = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(quarantined, ignore_errors=True)
            os.rename(path, quarantined)

    def check_space(self, size: int) -> tuple[str, str | None]:
        """Compare the size of a checkpoint with the free space.

        Args:
            size: Of one checkpoint, in bytes.

        Returns:
            A line that tells both, and a warning where the space will not do for all that are kept.

        Raises:
            CheckpointError: Not even one fits.
        """
        path = next(folder for folder in (self.folder, *self.folder.parents) if folder.exists())
        free = shutil.disk_usage(path).free
        line = f"{gigabytes(size)} each, {gigabytes(free)} free"
        if free < size:
            raise CheckpointError(
                f"no space for a checkpoint in {path}: {line}; free some, or choose another --output_dir"
            )
        max_folders = self.keep + 2  # The best one, and one that is being written.
        if free < (max_folders - len(self.steps())) * size:
            return line, f"up to {max_folders} checkpoints of {gigabytes(size)} will not fit into {gigabytes(free)}"
        return line, None

    def newest_sound(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest sound checkpoint, and what was wrong with each newer one.

        Raises:
            CheckpointError: One cannot be read, though it may be whole.
        """
        damage: list[str] = []
        for step in reversed(self.steps()):
            try:
                return Checkpoint(self._path(step)), damage
            except DamagedCheckpointError as error:
                damage.append(str(error))
        return None, damage

    def save(
        self,
        step: int,
        *,
        tensors: "Mapping[str, Mapping[str, Tensor]]",
        state: Mapping[str, Any],
        files: Mapping[str, str],
        values: "Iterator[Tensor] | None" = None,
        best: bool = False,
    ) -> Path:
        """Write the checkpoint of a step, point `last` (and `best`) to it, and prune old ones.

        Args:
            step: The step that was just finished. Of a checkpoint that it has already, the counters are replaced.
            tensors: For each safetensors file, its tensors.
            state: Counters, for state.json.
            files: Other text files.
            values: What `wholes` gives of the tensors, where other ranks have a part in it.
            best: Whether this is the best checkpoint so far.

        Raises:
            CheckpointError: The disk refused; earlier checkpoints stand as they were.
        """
        texts = {STATE: json.dumps(state, indent=1), **files}
        path = self._path(step)
        beside = path.with_name(f".{path.name}.new")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                self.clean()
                write_sealed(beside, tensors, values, texts)
                os.rename(beside, path)
                sync(self.folder)
            else:
                _replace_counters(path, state)
            replace_link(self.folder / "last", path.name)
            if best:
                replace_link(self.folder / "best", path.name)
        except OSError as error:
            shutil.rmtree(beside, ignore_errors=True)
            raise CheckpointError(f"cannot write checkpoint {path}: {error.strerror or error}") from error
        with suppress(OSError, InputError):  # What cannot be removed now is tried again next time.
            self._prune()
        return path

    def go_back_to(self, step: int, best_step: int | None) -> None:
        """Quarantine what is newer than a step (renamed, not removed), and point `last` and `best` to what stays."""
        for newer in self.steps():
            if newer > step:
                self._quarantine(self._path(newer))
        for name, target in (("last", step), ("best", best_step)):
            if target is not None and target in self.steps():
                replace_link(self.folder / name, checkpoint_name(target))
            else:
                (self.folder / name).unlink(missing_ok=True)

    def clean(self) -> None:
        """Remove what a writer left that was interrupted."""
        for leftover in self.folder.glob(".step-*.new"):
            shutil.rmtree(leftover)

    def _prune(self) -> None:
        kept = {checkpoint_name(step) for step in self.steps()[-self.keep :]}
        kept |= {found.name for name in NAMES if (found := self.named(name)) is not None}
        for step in self.steps():
            if checkpoint_name(step) not in kept:
                # Unsealed first: a removal that is cut short must not leave what looks whole.
                (self._path(step) / MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(self._path(step))


def _replace_counters(path: Path, state: Mapping[str, Any]) -> None:
    """Let a checkpoint say what its run has come to know of that step since: a resume may have evaluated it."""
    saved = Checkpoint(path, in_part=True)
    counters = json.loads(json.dumps(state.get("counters")))
    if counters == saved.state.get("counters"):
        return
    newest = newest_state(saved.files)
    number = 1 if newest == STATE else 1 + int(newest.removeprefix("state-").removesuffix(".json"))
    text = json.dumps(saved.state | {"counters": counters}, indent=1)
    add_sealed(path, f"state-{number}.json", text, instead_of=None if newest == STATE else newest)
