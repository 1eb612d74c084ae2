"""What a run says while it goes on, to the terminal, to its folder and to its trackers; and how fast it trains."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from training.runtime.progress import Progress
from training.storage.run_folder import RunFolder
from training.storage.state import Counters
from training.tracking import Tracker


class Reporter:
    """Speaks in the main process. A disk that refuses costs curves and samples, never the run.

    Args:
        run: Where metrics and samples go.
        progress: The terminal.
        trackers: Where curves go; they are closed by `close`.
    """

    def __init__(self, run: RunFolder, progress: Progress, trackers: Sequence[Tracker]) -> None:
        self.progress = progress
        self._run = run
        self._trackers = list(trackers)

    def say(self, text: str) -> None:
        """Print a line."""
        self.progress.say(text)

    def report(self, metrics: Mapping[str, float], sample: str | None, seconds_left: float) -> None:
        """Tell everyone the metrics of a step, and the text that was sampled at it."""
        try:
            self._run.append_metrics(metrics)
        except OSError as error:
            self.say(f"warning     {error.filename or self._run.path}: {error.strerror}; metrics are kept for later")
        try:
            if sample is not None:
                self._run.write_sample(int(metrics["step"]), sample)
        except OSError as error:
            self.say(f"warning     {error.filename or self._run.path}: {error.strerror}; this sample is not kept")
        for tracker in list(self._trackers):
            try:
                tracker.log(metrics, sample)
            except Exception as error:  # Whatever a tracker's package raises: curves do not end a run.
                self._trackers.remove(tracker)
                self._warn(tracker, error, "; it ends here, and the run goes on")
        self.progress.report(metrics, seconds_left)

    def close(self) -> None:
        """Take the bar away, and close the trackers."""
        self.progress.close()
        for tracker in self._trackers:
            try:
                tracker.finish()
            except Exception as error:
                self._warn(tracker, error, "")

    def _warn(self, tracker: Tracker, error: Exception, ending: str) -> None:
        name = tracker.description.partition(",")[0]
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__
        self.say(f"warning     {name}: {reason}{ending}")


class Speed:
    """How fast a run trains from one report to the next.

    Args:
        device: Of this process.
        flops_per_token: What a token takes.
        peak_flops: FLOP/s that all devices do together at most; None where that is not known.
    """

    def __init__(self, device: torch.device, flops_per_token: float, peak_flops: float | None) -> None:
        self._device, self._flops_per_token, self._peak_flops = device, flops_per_token, peak_flops
        self._reported = Counters()

    def start(self, counters: Counters) -> None:
        """Measure from where a run stands."""
        self._reported = replace(counters)

    def measures(self, counters: Counters) -> dict[str, float]:
        """The speed since the last report, and the most GPU memory that was taken so far."""
        seconds = counters.seconds - self._reported.seconds
        rate = (counters.tokens - self._reported.tokens) / seconds
        self.start(counters)
        measures = {"tokens_per_second": rate}
        if self._peak_flops is not None:
            measures["mfu"] = rate * self._flops_per_token / self._peak_flops
        if self._device.type == "cuda":
            measures["gpu_memory_gib"] = torch.cuda.max_memory_allocated(self._device) / 2**30
        return measures
