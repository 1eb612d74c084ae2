"""What a person sees while a run goes on."""

import os
import sys
import time
from collections.abc import Mapping
from types import TracebackType

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BEFORE_BAR = 1.0


class Progress:
    """A bar on a terminal, one line per logging interval elsewhere, nothing unless `visible`.

    Args:
        first_step: Steps done before.
        num_steps: Steps in all.
        visible: Whether this is the process that speaks.
        unit: What a step is called.
    """

    def __init__(self, first_step: int, num_steps: int, *, visible: bool, unit: str = "step") -> None:
        self._visible = visible
        self._num_steps = num_steps
        on_terminal = visible and sys.stderr.isatty()
        self._bar = tqdm(
            total=num_steps, initial=first_step, unit=unit, dynamic_ncols=True, disable=not on_terminal, leave=False
        )

    def say(self, text: str) -> None:
        """Print a line, above the bar where there is one."""
        if self._visible:
            self._bar.clear()
            print(text, flush=True)
            self._bar.refresh()

    def doing(self, what: str) -> None:
        """Show on the bar what takes its time."""
        self._bar.set_postfix_str(what)

    def advance(self, steps: int = 1) -> None:
        """Steps are done."""
        self._bar.update(steps)

    def report(self, metrics: Mapping[str, float], seconds_left: float) -> None:
        """Show the metrics of a logging interval."""
        formats = {"train_loss": "loss {:.4f}", "learning_rate": "lr {:.2e}", "tokens_per_second": "{:,.0f} tokens/s"}
        line = "  ".join(text.format(metrics[name]) for name, text in formats.items() if name in metrics)
        if self._bar.disable:
            step = f"{metrics['step']:>{len(str(self._num_steps))}}/{self._num_steps}"
            self.say(f"step {step}  {line}  {tqdm.format_interval(max(seconds_left, 0.0))} left")
        else:
            self._bar.set_postfix_str(line, refresh=False)

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()


class Reading:
    """How far something of many bytes is read: a bar on a terminal, elsewhere a line now and then, of what takes long.

    One process of a launch speaks.

    Args:
        what: What is done.
        num_bytes: In all; None where that is not known.
    """

    def __init__(self, what: str, num_bytes: int | None = None) -> None:
        self._visible = os.environ.get("RANK", "0") == "0"
        self._bar = tqdm(
            desc=what, total=num_bytes, unit="B", unit_scale=True, dynamic_ncols=True, leave=False,
            delay=SECONDS_BEFORE_BAR, disable=not (self._visible and sys.stderr.isatty()),
        )  # fmt: skip
        self._what, self._total, self._done = what, num_bytes, 0
        self._start = self._said = time.monotonic()

    def __enter__(self) -> "Reading":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def advance(self, num_bytes: int) -> None:
        """So many more are read."""
        self._done += num_bytes
        self._bar.update(num_bytes)
        now = time.monotonic()
        if self._visible and self._bar.disable and now - self._said >= SECONDS_BETWEEN_LINES:
            self._said = now
            print(f"{self._what}: {self._line(now - self._start)}", file=sys.stderr, flush=True)

    def _line(self, seconds: float) -> str:
        done = f"{self._done / 1e6:,.0f} MB"
        if self._total is None:
            return done
        left = seconds * (self._total - self._done) / max(self._done, 1)
        return f"{done} of {self._total / 1e6:,.0f} MB, {tqdm.format_interval(max(left, 0.0))} left"
