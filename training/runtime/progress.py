"""What a person sees while a run goes on."""

import sys
from collections.abc import Mapping

from tqdm import tqdm


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
