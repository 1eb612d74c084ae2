"""How well copy and reverse carry over to strings longer than those of training, by what the model knows of positions.

Each recipe is trained by the command that a person would type, in a process of its own, then decodes strings of every
length up to twice the trained one.
"""

import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from data.pairs.batches import by_length
from data.pairs.strings import GeneratedPairs, Task
from seq2seq.accuracy import accuracy_by_length
from seq2seq.choices import RECIPES
from seq2seq.task import load_seq2seq
from training.runtime.device import inference_device
from training.runtime.errors import CommandError
from training.storage.run_folder import RunFolder

TRAINED_PAIRS = 10_000
PAIRS_PER_LENGTH = 250
BATCH = 250


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training.

    Attributes:
        task: copy or reverse.
        recipe: One of `RECIPES`.
        seed: Of the run.
    """

    task: Task
    recipe: str
    seed: int

    @property
    def folder_name(self) -> str:
        """The run's folder."""
        return f"{self.task}-{'-'.join(RECIPES[self.recipe])}-{self.seed}"


def train_trial(trial: Trial, script: Path, config: Path, folder: Path, extra: Sequence[str] = ()) -> RunFolder:
    """Train, or go on with a training that was broken off; one that has ended is taken as it is.

    Args:
        trial: Which one.
        script: `launch/train_seq2seq.py`.
        config: The task's configuration.
        folder: Where runs go.
        extra: More options.

    Raises:
        CommandError: The command failed; what it said stands in the message.
    """
    names = ("positions", "cross_positions", "random_positions")
    run = RunFolder(folder / trial.folder_name)
    options = [f"--model.{name}={value}" for name, value in zip(names, RECIPES[trial.recipe], strict=True)]
    command = [sys.executable, script, "--config", config, *options, "--seed", trial.seed, "--tracking", "none", *extra]
    done = subprocess.run(
        [*map(str, command), "--output_dir", str(run.path), "--resume"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise CommandError(f"training {trial.folder_name} ended with code {done.returncode}: {done.stderr.strip()}")
    return run


def measure_trial(
    trial: Trial, run: RunFolder, longest: int, pairs_per_length: int = PAIRS_PER_LENGTH
) -> dict[str, Any]:
    """Exact match on the test strings of the trained lengths, and on those of each length up to `longest`."""
    loaded, last = load_seq2seq(run.path, inference_device()), run.read_metrics()[-1]
    data, vocabulary = loaded.config.data, loaded.vocabulary

    def accuracies(first: int, last: int, count: int) -> list[Any]:
        pairs = GeneratedPairs(trial.task, data.symbols, first, last, loaded.config.seed).distinct("test", count)
        return accuracy_by_length(loaded.model, vocabulary, by_length(pairs, vocabulary), BATCH)

    trained = accuracies(data.min_length, data.max_length, TRAINED_PAIRS)
    longer = [accuracies(n, n, pairs_per_length)[0] for n in range(data.max_length + 1, longest + 1)]
    return {
        "task": trial.task,
        "recipe": trial.recipe,
        "seed": trial.seed,
        "training_seconds": last["seconds"],
        "steps": last["step"],
        "trained_pairs": sum(row.pairs for row in trained),
        "trained_exact_match": sum(row.correct for row in trained) / sum(row.pairs for row in trained),
        "longer_exact_match": fmean(row.exact_match for row in longer),
        "by_length": {row.length: row.exact_match for row in (*trained, *longer)},
        "pairs_per_longer_length": pairs_per_length,
        "trained_lengths": [data.min_length, data.max_length],
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each recipe and task: means over seeds, the lowest in brackets."""
    longest = f"length {max(rows[0]['by_length'])}"
    lines = [f"{'':32}  {'seeds':>5}  {'training':>8}  {'trained lengths':>17}  {'longer':>17}  {longest:>17}"]
    for (task, recipe), group in _groups(rows).items():
        last = max(group[0]["by_length"])
        figures = [(row["trained_exact_match"], row["longer_exact_match"], row["by_length"][last]) for row in group]
        columns = zip(*figures, strict=True)
        shown = "  ".join(f"{fmean(values):>8.2%} ({min(values):.2%})".rjust(17) for values in columns)
        seconds = f"{fmean(row['training_seconds'] for row in group):.0f} s"
        lines.append(f"{f'{task}, {recipe}':32}  {len(group):>5}  {seconds:>8}  {shown}")
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], output: Path) -> None:
    """Draw exact match against length, a picture for each task, a line for each recipe: the mean over seeds."""
    from training.plots import new_figure

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure = new_figure(5.5 * len(tasks), 4)
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        for (_, recipe), group in _groups([row for row in rows if row["task"] == task]).items():
            lengths = sorted(set.intersection(*(set(row["by_length"]) for row in group)))
            values = [[row["by_length"][length] for row in group] for length in lengths]
            (line,) = axes.plot(lengths, [fmean(value) for value in values], label=recipe, linewidth=1.5)
            axes.fill_between(lengths, [*map(min, values)], [*map(max, values)], color=line.get_color(), alpha=0.15)
        axes.axvline(rows[0]["trained_lengths"][1] + 0.5, color="0.4", linestyle="--", linewidth=1)
        axes.set(title=task, ylabel="exact match", ylim=(-0.03, 1.03))
        axes.set_xlabel("symbols of the string (trained up to the dashed line)")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower left", fontsize=8)
    figure.savefig(output)


def _groups(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    groups = defaultdict[tuple[str, str], list[dict[str, Any]]](list)
    for row in rows:
        groups[row["task"], row["recipe"]].append(row)
    return groups
