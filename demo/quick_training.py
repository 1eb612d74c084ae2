"""The quick model, trained by the training command as a process of its own, for a machine that has no run yet."""

import contextlib
import signal
import subprocess
import sys
import tempfile
import threading
from itertools import count
from pathlib import Path
from typing import IO

from demo.catalogue import setting
from training.runtime.errors import InputError
from training.storage.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/gpt/quick.yaml"


class QuickTraining:
    """At most one training at a time.

    Args:
        runs: Where the run is written.
        options: More options for the command.
    """

    def __init__(self, runs: Path, options: tuple[str, ...] = ()) -> None:
        self._runs, self._options = runs, options
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self._run: RunFolder | None = None
        self._lock = threading.Lock()

    @property
    def running(self) -> bool:
        """Whether it is training now."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, unless it is running."""
        with self._lock:
            if self.running:
                return
            folders = (self._runs / f"gpt-quick-{number}" for number in count(1))
            self._run = RunFolder(next(folder for folder in folders if not folder.exists()))
            self._said = tempfile.TemporaryFile()  # noqa: SIM115  It outlives this call.
            self._process = subprocess.Popen(
                [
                    *(sys.executable, str(ROOT / "launch/train_gpt.py"), "--config", str(CONFIG)),
                    *("--output_dir", str(self._run.path), "--tracking", "none", *self._options),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
            )

    def stop(self) -> None:
        """Let it save a checkpoint and end; wait for that."""
        with self._lock:
            if self.running and self._process is not None:
                self._process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(60)

    def progress(self) -> tuple[int, int, str]:
        """Steps done, steps in all, and what to say of it."""
        if self._process is None or self._run is None:
            return 0, 0, ""
        try:
            steps = int(setting(self._run.config_file, "max_steps") or 0)
        except InputError:
            steps = 0  # The training has yet to write it.
        last = next(self._run.iterate_metrics(newest_first=True), None) or {}
        step = int(last.get("step", 0))
        code = self._process.poll()
        if code is None:
            rate = last.get("tokens_per_second")
            words = f"step {step:,} of {steps:,}" if step else "starting: the first steps take some seconds"
            return step, steps, f"training the quick model: {words}" + (f", {rate:,.0f} tokens/s" if rate else "")
        if code == 0:
            return step, steps, f"{self._run.path.name} is trained: press Generate"
        return step, steps, f"the training ended early (exit code {code}): {self._last_line()}"

    def _last_line(self) -> str:
        if self._said is None:
            return ""
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return lines[-1].replace(f"{ROOT}/", "") if lines else "it said nothing"
