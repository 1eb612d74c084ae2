"""For a launch of several processes: trainings one after the other, as a JSON file lists them.

Each is a dictionary: `name` (of the run's folder), `kind` (gpt, seq2seq), `arguments` (of the command), and, where they
are wanted, `sharded` (false for DDP in the same launch), `copy` (a run to go on from, in the folder), `without` (steps
whose checkpoints are taken from it), `only_save` (take no step, and save to the folder SAVED-NAME), `failing` (the save
of this step fails half-way). What each rank holds comes out in `held-RANK.json`.
"""

import gc
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from gpt.task import GPTTask
from launch import train_gpt, train_seq2seq
from training import compiling
from training.loop import Trainer
from training.reporting import Reporter
from training.runtime.progress import Progress
from training.shards import local
from training.storage import checkpoint
from training.storage.checkpoint import CheckpointStore, checkpoint_name

RANK = int(os.environ["RANK"])
held: dict[str, Any] = {}
case: dict[str, Any] = {}
fit, write_sealed = Trainer.fit, checkpoint.write_sealed


def note_and_fit(trainer: Trainer, trackers: Any) -> None:
    """Note how many numbers this rank holds, of how many; then train, or only save."""
    groups = {name: [t for t in group.values() if t.ndim] for name, group in trainer.saver.tensors().items()}
    shares = {name: [sum(local(t).numel() for t in g), sum(t.numel() for t in g)] for name, g in groups.items()}
    held[case["name"]] = shares | {"compile": trainer.compiling.mode}
    if case.get("only_save"):
        trainer.saver.store = CheckpointStore(Path(f"saved-{case['name']}/checkpoints"))
        progress = Progress(0, 1, visible=False)
        trainer.saver.save(trainer.counters, Reporter(trainer.run, progress, []), last=True)
    else:
        fit(trainer, trackers)


def write_or_fail(folder: Path, tensors: Any, values: Any, texts: Any) -> None:
    """Write a checkpoint, or run out of space behind its first tensor."""
    if "failing" in case and checkpoint_name(case["failing"]) in folder.name:
        next(values)
        raise OSError(28, "No space left on device")
    write_sealed(folder, tensors, values, texts)


def main() -> None:
    """Train what the file lists."""
    GPTTask.sample_length, compiling.BACKEND = 20, "aot_eager"
    Trainer.fit, checkpoint.write_sealed = note_and_fit, write_or_fail  # type: ignore[method-assign,assignment]
    for each in json.loads(Path(sys.argv[1]).read_text()):
        case.clear()
        case.update(each)
        folder = Path(case["name"])
        if RANK == 0 and "copy" in case:  # The others meet it before they look.
            shutil.copytree(case["copy"], folder, symlinks=True)
            for step in case.get("without", []):
                shutil.rmtree(folder / "checkpoints" / checkpoint_name(step))
        os.environ["ACCELERATE_USE_FSDP"] = str(case.get("sharded", True)).lower()
        sys.argv[1:] = [*case["arguments"], "--output_dir", str(folder), *(["--resume"] if "copy" in case else [])]
        (train_gpt if case["kind"] == "gpt" else train_seq2seq).main()
        gc.collect()
    threads = [Path(f"/proc/self/task/{task}/comm").read_text() for task in os.listdir("/proc/self/task")]
    held["threads"] = sum("gloo" in name for name in threads)
    Path(f"held-{RANK}.json").write_text(json.dumps(held))


main()
