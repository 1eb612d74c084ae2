"""What the checkpoints withstand and cost, measured: `make reliability`.

Kills, damage, full disks, signals, resuming in the middle of an epoch, and the cost of a save; beside them what
Accelerate itself offers, where it offers the same.
"""

import argparse
import datetime
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, get_args

import accelerate
import torch
from reliability.accelerate_own import compare_resume, examine_accelerate
from reliability.damage import Verdict, examine_ours
from reliability.full_disk import fill_accelerate, fill_ours
from reliability.isolated import isolated
from reliability.killing import Kill, Ordeal, Precision
from reliability.resuming import compare_our_resume
from reliability.save_cost import accelerate_saves, background_saves, former_saves, our_saves, seed_model
from reliability.stopping import measure_stops
from tqdm import tqdm

from training.runtime.machine import cpu_name

KILLS_PER_COMBINATION = 9
PROCESSES = (1, 2, 3)
STOPS = 5
SAVES = 6
SPACE_FOR_SAVES = 8e9
ARTICLES = {"step": "a", "evaluation": "an", "save": "a"}


def measure_kills(folder: Path) -> list[dict[str, Any]]:
    """Kill runs of the GPT in both precisions, and of the encoder-decoder, with one, two and three processes.

    One kind stands still for its saves, and goes on as well.
    """
    kinds: list[tuple[str, Precision, bool]] = [("gpt", precision, False) for precision in get_args(Precision)]
    kinds += [("seq2seq", "fp32", False), ("gpt", "fp32", True)]
    rows = []
    with tqdm(total=len(kinds) * len(PROCESSES) * KILLS_PER_COMBINATION, unit="kill", leave=False) as bar:
        for (model, precision, background), processes in product(kinds, PROCESSES):
            name = f"{model}-{precision}-{processes}{'-background' if background else ''}"

            def show(kill: Kill, name: str = name) -> None:
                bar.set_postfix_str(f"{name}: step {kill.step}, in a {kill.place}")
                bar.update()

            ordeal = Ordeal(
                model=model,
                precision=precision,
                processes=processes,
                background=background,
                kills=KILLS_PER_COMBINATION,
                watch=show,
            )
            rows.append(ordeal.endure(folder / name).summary())
    return rows


def measure_damage(folder: Path) -> dict[str, Any]:
    """Damage every file of a checkpoint in every way, ours and Accelerate's."""
    examined: dict[str, dict[str, Any]] = {}
    examine: dict[str, Callable[[Path], dict[str, dict[str, Verdict]]]] = {
        "this project": examine_ours,
        "Accelerate": examine_accelerate,
    }
    for name, function in tqdm(examine.items(), unit="way", leave=False):
        (folder / name).mkdir(parents=True)
        verdicts = function(folder / name)
        counts = Counter(verdict for by_damage in verdicts.values() for verdict in by_damage.values())
        total = {"damages": counts.total()} | {verdict: counts[verdict] for verdict in get_args(Verdict)}
        examined[name] = total | {"each": verdicts}
    return examined


def measure_full_disk(folder: Path) -> dict[str, Any]:
    """Let a disk refuse a save at each tenth of it."""
    ways: dict[str, Callable[[Path], dict[str, int]]] = {
        "this project": fill_ours,
        "in the background": partial(fill_ours, background=True),
        "Accelerate, total_limit=1": fill_accelerate,
    }
    return {name: way(folder / name) for name, way in tqdm(ways.items(), unit="way", leave=False)}


def measure_stopping(folder: Path) -> list[dict[str, Any]]:
    """Stop runs with SIGTERM."""
    ways = product((1, 2), (False, True))
    return [row for processes, way in ways for row in measure_stops(folder, processes, STOPS, background=way)]


def measure_resume(folder: Path) -> list[dict[str, Any]]:
    """Resume in the middle of an epoch."""
    ways = (compare_our_resume, compare_resume)
    return [row for way in tqdm(ways, unit="way", leave=False) for row in way(folder / way.__name__)]


def measure_saves(folder: Path) -> dict[str, Any]:
    """Save a model of 113 million parameters with AdamW's tensors and an average of the weights."""
    folder.mkdir(parents=True)
    free = shutil.disk_usage(folder).free
    if free < SPACE_FOR_SAVES:
        return {"left out": f"{free / 1e9:.1f} GB free in {folder.parent}, {SPACE_FOR_SAVES / 1e9:.0f} GB needed"}
    measured = {}
    ways = {
        "this project": our_saves,
        "in the background": background_saves,
        "as before": former_saves,
        "Accelerate": accelerate_saves,
    }
    for name, way in tqdm(ways.items(), unit="way", leave=False):
        measured[name] = isolated(way, folder / name, seed_model(), SAVES)
        shutil.rmtree(folder / name)
    return measured


PARTS: dict[str, Callable[[Path], Any]] = {
    "kills": measure_kills,
    "damage": measure_damage,
    "full_disk": measure_full_disk,
    "stopping": measure_stopping,
    "resume": measure_resume,
    "save": measure_saves,
}


def conditions() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "device": f"cpu: {cpu_name()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "accelerate": accelerate.__version__,
        "date": datetime.date.today().isoformat(),
    }


def table(report: dict[str, Any]) -> str:
    """The whole report as text; a part that is missing is left out."""
    renderers: dict[str, Callable[[Any], list[list[Any]]]] = {
        "kills": _kill_rows,
        "damage": _damage_rows,
        "full_disk": _full_disk_rows,
        "stopping": _stopping_rows,
        "resume": _resume_rows,
        "save": _save_rows,
    }
    first = "{device}, {threads} threads, torch {torch}, accelerate {accelerate}".format_map(report)
    return "\n\n".join([first, *(_aligned(renderers[part](report[part])) for part in renderers if part in report)])


def _aligned(rows: list[list[Any]]) -> str:
    """Columns as wide as their widest cell, the first to the left, the others to the right."""
    texts = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = []
    for first, *others in texts:
        cells = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _kill_rows(rows: list[dict[str, Any]]) -> list[list[Any]]:
    counts = ["kills", "in_steps", "in_evaluations", "in_saves", "after_first_checkpoint", "of_one_rank"]
    head = ["killed and resumed", *(name.replace("_", " ") for name in counts), "equal"]
    body = [[_processes(row), *(row[name] for name in counts), row["equal"]] for row in rows]
    total = ["in all", *(sum(row[name] for row in rows) for name in counts), all(row["equal"] for row in rows)]
    return [head, *body, total]


def _processes(row: dict[str, Any]) -> str:
    return f"{row['model']}, {row['precision']}, {_plural(row)}"


def _plural(row: dict[str, Any]) -> str:
    way = ", in the background" if row.get("background") else ""
    return f"{row['processes']} {'process' if row['processes'] == 1 else 'processes'}{way}"


def _damage_rows(examined: dict[str, Any]) -> list[list[Any]]:
    verdicts = get_args(Verdict)
    head = ["damaged files", "damages", *verdicts]
    return [head, *([name, counts["damages"], *(counts[v] for v in verdicts)] for name, counts in examined.items())]


def _full_disk_rows(counts: dict[str, dict[str, int]]) -> list[list[Any]]:
    keys = ["saves", "an_older_checkpoint_loads", "same_result_after_a_resume"]
    head = ["disk full at each tenth of a save", "refused", *(key.replace("_", " ") for key in keys[1:])]
    return [head, *([name, *(row.get(key, "") for key in keys)] for name, row in counts.items())]


def _stopping_rows(rows: list[dict[str, Any]]) -> list[list[Any]]:
    head = ["SIGTERM", "stops", "median s", "max s", "most steps after", "exit codes"]
    keys = ["stops", "median_seconds", "max_seconds", "most_steps_after", "exit_codes"]
    return [
        head,
        *([f"in {ARTICLES[row['place']]} {row['place']}, {_plural(row)}", *(row[key] for key in keys)] for row in rows),
    ]


def _resume_rows(rows: list[dict[str, Any]]) -> list[list[Any]]:
    keys = ["dropout", "same_samples", "same_weights"]
    head = ["resumed in the middle of an epoch", *(key.replace("_", " ") for key in keys)]
    return [head, *([row["recipe"], *(row[key] for key in keys)] for row in rows)]


def _save_rows(measured: dict[str, Any]) -> list[list[Any]]:
    if "left out" in measured:
        return [["cost of a save", measured["left out"]]]
    keys = ["median_seconds", "min_seconds", "max_seconds"]
    others = ["still s", "flushed s", "GB more", "opening s", "GB more"]
    rows = [["cost of a save", "GB", *(key.replace("_seconds", " s") for key in keys), *others]]
    for name, row in measured.items():
        more = [row[key] / 1e9 if key in row else "-" for key in ("max_bytes_more_in_memory", "bytes_more_in_opening")]
        still = row.get("median_seconds_standing_still", row["median_seconds"])
        flushed = row.get("median_seconds_until_flushed", row["median_seconds"])
        figures = [*(row[key] for key in keys), still, flushed, more[0], row.get("seconds_of_opening", "-"), more[1]]
        rows.append([name, row["bytes"] / 1e9, *figures])
    return rows


def main() -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="file for the figures")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure; default: all")
    options = parser.parse_args()
    report = conditions()
    # Beside the project, because a folder for temporary files may be in memory.
    # What trainings print goes nowhere: into a file, it would meet the limits that are set to others.
    with (
        tempfile.TemporaryDirectory(dir=".", prefix=".reliability-") as folder,
        open(os.devnull, "w") as nowhere,
        redirect_stdout(nowhere),
    ):
        for part in tqdm(options.parts, unit="part"):
            report[part] = PARTS[part](Path(folder).resolve() / part)
            shutil.rmtree(Path(folder) / part)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))
    if any(not row["equal"] for row in report.get("kills", [])):
        raise SystemExit("a killed run did not end as if it had been left alone")


if __name__ == "__main__":
    main()
