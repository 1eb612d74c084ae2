"""A plan as people read it."""

from collections.abc import Iterator, Mapping
from typing import Any

from training.runtime.hardware import short_name
from training.runtime.sizes import gigabytes
from training.runtime.tables import print_table

MB = 1e6


def show(figures: Mapping[str, Any]) -> None:
    """Print all of a plan."""
    for name, text in _lines(figures):
        print(f"{name:<11} {text}")
    print()
    memory = figures["memory"]
    rows = [*memory["parts"].items(), ("together, by formula", sum(memory["parts"].values()))]
    if memory.get("measured"):
        rows.append(("measured in these steps", memory["measured"]))
    print_table([{"memory of a device": name, "MB": f"{size / MB:,.1f}"} for name, size in rows])
    if "seconds" in figures:
        print_table(list(_seconds(figures)))
    if "cards" in figures:
        print_table(list(_cards(figures)))
        for row in figures["cards"][1:]:
            print(f"{row['verdict']}: {row['ratio']:.2f} times the speed of one")
    if "check" in figures:
        print_table(list(_check(figures["check"])))


def _lines(figures: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    device = f"{figures['gpus']} x {short_name(figures['device'])}" if figures["gpus"] > 1 else figures["device"]
    tokens, work = figures["tokens_per_step"], flops(figures["flops_per_step"])
    yield "device", f"{device}, {figures['precision']}"
    yield "model", f"{figures['parameters']:,} parameters"
    yield "step", f"{figures['batch_size']} sequences, {tokens:,.0f} tokens, {work}"
    yield (
        "run",
        f"{figures['num_steps']:,} steps, {figures['num_steps'] * tokens:,.0f} tokens, {flops(figures['flops'])}",
    )
    yield "memory", memory_line(figures["memory"])
    yield "speed", figures["basis"]
    if "seconds" in figures:
        rate = f"{figures['tokens_per_second']:,.0f} tokens/s, {flops(figures['flops_per_second'])} a second"
        if figures["products_per_second"]:
            share = figures["flops_per_second"] / figures["products_per_second"]
            rate += f", {share:.0%} of what products of large matrices do"
        yield "", rate
        yield "time", f"{duration(figures['seconds']['total'])} to the end, once it trains"
    if "kilowatt_hours" in figures:
        yield "energy", f"{figures['kilowatt_hours']:.3g} kWh, an estimate: {figures['watts']:,} W all the time"


def memory_line(memory: Mapping[str, Any]) -> str:
    """What a step needs beside what there is, and what to do where it is too much."""
    plural = "sequence" if memory["sequences"] == 1 else "sequences"
    text = f"{gigabytes(sum(memory['parts'].values()))} for {memory['sequences']} {plural} at once"
    if memory["usable"] is None:
        return text
    text += f", of {gigabytes(memory['usable'])} to count on"
    if memory["largest_micro_batch"]:
        fits = f"{memory['largest_micro_batch']:,} would fit"
        return f"{text}; {fits}" if memory["fits"] else f"{text}: too much; --training.micro_batch_size auto, {fits}"
    text += ", and not even one would fit"
    if memory["fsdp2_cards"] is None:
        return f"{text}: take a smaller model or context, or --training.recompute blocks"
    return f"{text}; with FSDP2 (configs/accelerate/fsdp2.yaml) one does on {memory['fsdp2_cards']} cards"


def flops(number: float) -> str:
    """Floating point operations, with the prefix that suits them."""
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if number >= size:
            return f"{number / size:.3g} {prefix}FLOP"
    return f"{number / 1e6:.3g} MFLOP"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    for unit, size in (("days", 86_400), ("hours", 3600)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} minutes"


def _seconds(figures: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    counts = {"training": "num_steps", "evaluations": "evaluations", "saves": "saves"}
    for name, seconds in figures["seconds"].items():
        if seconds and name != "step":
            count = f"{figures[counts[name]]:,}" if name in counts else ""
            yield {"time": name, "how often": count, "seconds": f"{seconds:,.1f}"}


def _cards(figures: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    link = figures["link"]
    for row in figures["cards"]:
        yield {
            f"cards, at {link['bandwidth'] / 1e9:.3g} GB/s ({link['name']})": str(row["cards"]),
            "ms a step": f"{1000 * row['seconds_per_step']:,.2f}",
            "times one": f"{row['ratio']:.2f}",
        }


def _check(rows: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    for name, row in rows.items():
        scale, digits = (MB, "MB") if name == "memory" else (1, "s")
        yield {
            "planned and measured": f"{name}, {digits}",
            "planned": f"{row['planned'] / scale:,.1f}",
            "measured": f"{row['measured'] / scale:,.1f}",
            "ratio": f"{row['ratio']:.2f}",
        }
