"""Other trainers beside ours: commands whose lines are read as they come."""

import os
import re
import signal
import statistics
import subprocess
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from training.benchmark.memory import CardMemory
from training.runtime.errors import InputError

PATTERN = r"iter (?P<step>\d+): loss (?P<loss>[\d.]+|nan), time (?P<milliseconds>[\d.]+)ms"
"""A line of nanoGPT's."""
LINES_KEPT = 4


@dataclass(kw_only=True)
class Baseline:
    """A command that trains.

    Attributes:
        name: What it is called.
        command: As a shell reads it.
        pattern: Finds `milliseconds` (of a step) or `tokens_per_second` in a line, and may find `loss`.
        tokens: Tokens of a step; None for as many as ours has.
        turns: Tokens per second of each time that it ran.
        loss: That of its last line.
        card_bytes: The most that it took of the GPU's memory, its context included.
    """

    name: str
    command: str
    pattern: "re.Pattern[str]"
    tokens: float | None = None
    turns: list[float] = field(default_factory=list)
    loss: float | None = None
    card_bytes: int | None = None

    @classmethod
    def parse(cls, text: str, pattern: str, tokens: float | None) -> "Baseline":
        """Read `NAME=COMMAND`, or a command that is its own name.

        Raises:
            InputError: There is no command, or the pattern is none or finds nothing that tells a speed.
        """
        named = re.fullmatch(r"([\w.+-]+)=(.+)", text, re.DOTALL)
        name, command = named.groups() if named else (text, text)
        if not command.strip():
            raise InputError("peer: expected 'COMMAND' or 'NAME=COMMAND', got nothing")
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise InputError(f"peer_pattern is not a regular expression: {error}") from error
        if not {"milliseconds", "tokens_per_second"} & compiled.groupindex.keys():
            raise InputError("peer_pattern must have a group (?P<milliseconds>…) or (?P<tokens_per_second>…)")
        return cls(name=name, command=command, pattern=compiled, tokens=tokens)

    def run(self, tokens: float, say: Callable[[str], None]) -> None:
        """Let it train to its end, and add the median of the later half of its lines to `turns`.

        Args:
            tokens: Those of a step of ours.
            say: Is given each line that tells a speed.

        Raises:
            InputError: It cannot be started, fails, or tells no speed.
        """
        rates, last = [], deque[str](maxlen=LINES_KEPT)
        process = subprocess.Popen(
            self.command, shell=True, text=True, errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        assert process.stdout is not None
        try:
            with CardMemory() as memory:
                for line in process.stdout:
                    last.append(line.strip())
                    if found := self.pattern.search(line):
                        rates.append(self._rate(found.groupdict(), tokens))
                        say(f"{self.name}: {line.strip()}")
                code = process.wait()
            self.card_bytes = memory.bytes
        finally:
            with suppress(ProcessLookupError):  # It, and whatever it has started.
                os.killpg(process.pid, signal.SIGKILL)
        said = next((line for line in reversed(last) if line), "nothing")
        if code != 0:
            raise InputError(f"the baseline {self.name} ended with code {code}; its last line: {said}")
        if not rates:
            raise InputError(
                f"the baseline {self.name} wrote no line like {self.pattern.pattern}; its last line: {said}"
            )
        self.turns.append(statistics.median(rates[len(rates) // 2 :]))

    def _rate(self, found: dict[str, Any], tokens: float) -> float:
        if found.get("loss") is not None:
            self.loss = float(found["loss"])
        if found.get("tokens_per_second") is not None:
            return float(found["tokens_per_second"].replace(",", ""))
        return 1000 * (self.tokens or tokens) / float(found["milliseconds"])

    def figures(self, ours: list[float]) -> dict[str, Any]:
        """What it did, beside our tokens per second of each turn."""
        ratios = [rate / baseline for rate, baseline in zip(ours, self.turns, strict=True)]
        return {
            "name": self.name,
            "command": self.command,
            "tokens_per_second": statistics.median(self.turns),
            "slowest": min(self.turns),
            "fastest": max(self.turns),
            "turns": self.turns,
            "loss": self.loss,
            "card_bytes": self.card_bytes,
            "ratio": statistics.median(ratios),
        }
