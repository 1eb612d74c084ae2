"""Damage to the files of a saved state, and what became of loading it."""

import os
import pickle  # noqa: TID251 to put one where it must not be read
import shutil
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Literal

from helpers import ROOT, command

from training.storage.checkpoint import Checkpoint

FILES = [
    "model.safetensors",
    "optimizer.safetensors",
    "ema.safetensors",
    "state.json",
    "config.yaml",
    "tokenizer.json",
    "manifest.json",
]
SEQ2SEQ_FILES = ["vocabulary.json" if name == "tokenizer.json" else name for name in FILES]
OLDER, NEWER = "step-00000010", "step-00000012"


def cut(share: float) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * share)])

    return damage


def flip(share: float) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[int((len(content) - 1) * share)] ^= 0x10
        file.write_bytes(content)

    return damage


def exchange(file: Path) -> None:
    shutil.copy(file.parent.with_name(OLDER) / file.name, file)


class Mine:
    """Unpickled, it would leave a file behind."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch unpickled",)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "emptied": cut(0.0),
    "cut in half": cut(0.5),
    "cut at 99 %": cut(0.99),
    "a bit at the start": flip(0.0),
    "a bit in the middle": flip(0.5),
    "a bit at the end": flip(1.0),
    "deleted": Path.unlink,
    "exchanged": exchange,
    "nonsense": lambda file: file.write_text('{"format": [], "files": 7, "seal": null}'),
    "a pickle": lambda file: file.write_bytes(pickle.dumps(Mine())),
}


def make_run(folder: Path, model: str = "gpt") -> None:
    """A run of 12 steps with checkpoints of steps 10 and 12.

    Args:
        folder: Where.
        model: gpt, or seq2seq, which saves in the background.
    """
    (folder / "text.txt").write_text("".join(f"{i} times {i % 7} is {i * (i % 7)}.\n" for i in range(300)))
    options = "--model.num_layers 1 --model.d_model 16 --model.num_heads 2 --model.max_len 16 --tracking none"
    loop = "--training.max_steps 12 --training.checkpoint_interval 10 --training.eval_interval 10"
    average = "--training.ema_decay 0.9 --output_dir run"
    data = {"gpt": "--data.source text.txt", "seq2seq": "--data.max_length 6 --data.val_samples 20"}[model]
    data += " --training.background_saves true" if model == "seq2seq" else ""
    done = command(ROOT / f"launch/train_{model}.py", *f"{options} {loop} {average} {data}".split(), cwd=folder)
    assert done.returncode == 0, done.stderr


Verdict = Literal["refused, named", "refused, unnamed", "loaded, differs", "loaded, equal", "ran code"]


def verdict(name: str, damage: str, *, saved: Path, work: Path, load: Callable[[Path], bool]) -> Verdict | None:
    """Damage one file of a copy of the newer saved state, and load that.

    Args:
        name: The file.
        damage: One of `DAMAGES`.
        saved: Holds step-00000010 and step-00000012.
        work: A folder that does not exist yet.
        load: Loads a folder and tells whether it found what was saved.

    Returns:
        What happened; None where the damage leaves the file as it was. A file counts as named by a message that holds
        its name without the suffix.
    """
    shutil.copytree(saved, work, symlinks=True)
    file = work / NEWER / name
    before = file.read_bytes()
    DAMAGES[damage](file)
    if file.exists() and file.read_bytes() == before:
        return None
    with chdir(work):
        try:
            found: Verdict = "loaded, equal" if load(work / NEWER) else "loaded, differs"
        except Exception as error:
            named = Path(name).stem in f"{error}"
            found = "refused, named" if named else "refused, unnamed"
    return "ran code" if (work / "unpickled").exists() else found


def examine_ours(folder: Path) -> dict[str, dict[str, Verdict]]:
    """Damage each file of a checkpoint in each way; return the verdicts by file and damage."""
    make_run(folder)
    saved = folder / "run/checkpoints"
    whole = Checkpoint(saved / NEWER)

    def load(place: Path) -> bool:
        read = Checkpoint(place)
        return all(read.text(name) == whole.text(name) for name in whole.files if "safetensors" not in name) and all(
            (read.tensors(name)[key] == tensor).all()
            for name in ("model", "optimizer", "ema")
            for key, tensor in whole.tensors(name).items()
        )

    work = folder / "work"
    return examine(FILES, work, lambda name, damage: verdict(name, damage, saved=saved, work=work, load=load))


def examine(files: list[str], work: Path, judge: Callable[[str, str], Verdict | None]) -> dict[str, dict[str, Verdict]]:
    """Ask for a verdict on each file and damage; remove the folder of the damaged copy after each."""
    verdicts: dict[str, dict[str, Verdict]] = {}
    for name in files:
        for damage in DAMAGES:
            found = judge(name, damage)
            shutil.rmtree(work)
            if found is not None:
                verdicts.setdefault(name, {})[damage] = found
    return verdicts
