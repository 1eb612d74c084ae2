"""A folder of runs, and a server of the page over it, for the suites of the demo."""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from forking import python
from helpers import ROOT, command, free_port

TEXT = "<b>&amp;</b>\n" + "".join(f"{i} times {i % 7} is {i * (i % 7)}.\n" for i in range(300))


class Server(NamedTuple):
    """Where it listens, and its process."""

    url: str
    pid: int


def make_runs(folder: Path) -> Path:
    """A GPT and an encoder-decoder, trained for a moment."""
    (folder / "text.txt").write_text(TEXT)
    loop = "--training.max_steps 40 --training.eval_interval 20 --training.log_interval 5 --tracking none"
    gpt = (
        f"--data.source text.txt --model.num_layers 1 --model.d_model 16 --model.num_heads 2 --model.max_len 32 {loop}"
    )
    pairs = (
        f"--config {ROOT}/configs/seq2seq/copy.yaml --model.d_model 32 --data.max_length 4 --data.val_samples 20 {loop}"
    )
    for script, options, run in (("train_gpt", gpt, "small"), ("train_seq2seq", pairs, "copy")):
        done = command(ROOT / f"launch/{script}.py", *options.split(), "--output_dir", f"runs/{run}", cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder / "runs"


@contextmanager
def serving(folder: Path, *options: str, script: Path = ROOT / "demo/app.py", **environment: str) -> Iterator[Server]:
    """A server that was started in a folder."""
    process = subprocess.Popen(
        [*python(), script, "--port", free_port(), *options],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if found := re.match(r"open (http://\S+)", line):
                yield Server(found[1], process.pid)
                return
        raise AssertionError(said)
    finally:
        process.terminate()
        process.wait(20)
