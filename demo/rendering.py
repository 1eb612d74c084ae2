"""Results as what a page shows: escaped HTML, and rows of charts."""

import statistics
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from math import exp, log10

import pandas as pd

from demo.session import WITH, WITHOUT, Benchmark, Transduction, Writing

MOST_POINTS = 150
"""Of one line of a chart: more cannot be seen, and cost the page."""
SHADES = 10
REFERENCE = ((100, 0.90, 0.62), (200, 1.66, 1.25), (300, 2.71, 1.86), (500, 5.14, 3.05))
"""New tokens, seconds without and with the cache: 12 layers, 768 wide, on an RTX 5070 Ti."""
EMPTY = "-"


def text_html(writing: Writing, *, coloured: bool) -> str:
    """Prompt and text; coloured by the probability of each character, with the likeliest others on hovering."""
    if not coloured:
        written = escape(writing.text)
    else:
        written = "".join(
            _character(piece.text, piece.log_probability, piece.alternatives) for piece in writing.pieces if piece.text
        )
    return f'<div class="written"><span class="prompt">{escape(writing.prompt)}</span>{written}</div>'


def _character(text: str, log_probability: float, alternatives: Sequence[tuple[str, float]]) -> str:
    shade = min(int(exp(log_probability) * SHADES), SHADES - 1)
    lines = [f"{_name(text)} {exp(log_probability):.1%}", *(f"{_name(n)} {exp(p):.1%}" for n, p in alternatives)]
    title = "&#10;".join(escape(line) for line in lines)
    return f'<span class="p{shade}" title="{title}">{escape(text)}</span>'


def _name(character: str) -> str:
    return {"\n": "line break", " ": "space"}.get(character, character)


def writing_figures(writing: Writing) -> str:
    """The figures below the chart."""
    first = f"{writing.milliseconds[0]:,.0f} ms" if writing.milliseconds else EMPTY
    rate = EMPTY if writing.tokens_per_second is None else f"{writing.tokens_per_second:,.0f}"
    speedup = EMPTY if writing.speedup is None else f"{writing.speedup:.1f} x"
    state = {"writing": "writing …", "comparing": "reading the same tokens without the cache …"}.get(
        writing.phase, writing.why or "done"
    )
    at_end = "then the older half goes" if writing.when_full == "slide" else "then it stops"
    return figures_html(
        {
            "tokens per second": rate,
            "first token": first,
            "against no cache": speedup,
            "cache": f"{writing.cache_bytes / 1e6:,.2f} MB",
            "context": f"{writing.context_used:,} of {writing.context:,}, {at_end}",
            "read by": writing.mode,
            "tokens": f"{len(writing.milliseconds):,} of {writing.limit:,}: {state}",
        }
    )


def figures_html(figures: dict[str, str]) -> str:
    """Names and values, side by side."""
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in figures.items())
    return f'<dl class="figures">{cells}</dl>'


def message_html(message: str, kind: str = "problem") -> str:
    """A line that tells what is wrong, or going on."""
    return f'<p class="message {escape(kind)}" role="status">{escape(message)}</p>' if message else ""


def progress_html(step: int, steps: int, words: str) -> str:
    """A bar."""
    share = 100 * step / steps if steps else 0
    return f'<div class="bar"><div style="width:{share:.1f}%"></div></div><p class="message going">{escape(words)}</p>'


def token_times(writing: Writing) -> pd.DataFrame:
    """Milliseconds of each token against its position; the first one, which reads the prompt, is told apart."""
    start = len(writing.prompt) + 1
    lines = {WITH: writing.milliseconds, WITHOUT: writing.uncached}
    return _frame([(name, start + 1, values[1:]) for name, values in lines.items()])


def benchmark_times(benchmark: Benchmark) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Milliseconds of each new token, and seconds until it."""
    single, until = [], []
    for name, growing in benchmark.seconds.items():
        seconds = list(growing)  # It grows while it is looked at.
        steps = [1000 * (b - a) for a, b in pairwise(seconds)]
        single.append((name, 2, steps))
        until.append((name, 1, seconds))
    return _frame(single), _frame(until)


def _frame(lines: Sequence[tuple[str, int, Sequence[float]]]) -> pd.DataFrame:
    rows: list[tuple[float, float, str]] = []
    for name, start, values in lines:
        size = -(-len(values) // MOST_POINTS) or 1
        for first in range(0, len(values), size):
            rows.append((start + first, statistics.median(values[first : first + size]), name))
    return chart_rows("position", rows)


def chart_rows(x: str, rows: Sequence[tuple[float, float, str]]) -> pd.DataFrame:
    """What a line chart takes; its columns have their types even where there is no row, or the page mistakes them."""
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    types = (float, float, str)
    names = (x, "value", "line")
    return pd.DataFrame({n: pd.Series(c, dtype=t) for n, c, t in zip(names, columns, types, strict=True)})


def round_up(value: float) -> float:
    """The next of 1, 2 and 5 times a power of ten, so that an axis seldom changes."""
    if value <= 0:
        return 1.0
    power = 10.0 ** int(log10(value) // 1)
    return next(factor * power for factor in (1, 2, 5, 10, 20) if factor * power >= value * 0.999)


def axis_top(frame: pd.DataFrame) -> float:
    """Where the value axis ends: above all but stray points."""
    return 1.0 if frame.empty else round_up(1.2 * float(frame["value"].quantile(0.98)))


def reference_table(benchmark: Benchmark | None) -> str:
    """The rows measured here next to those of the reference."""
    here = {row["new_tokens"]: row for row in benchmark.rows()} if benchmark else {}
    others = [name for name in benchmark.seconds if name not in (WITH, WITHOUT)] if benchmark else []
    head = ["new tokens", "no cache", "with cache", "speed-up", *(name.split(", ")[1] for name in others)]
    lines = []
    for length, slow, fast in REFERENCE:
        row = here.get(length)
        cells = [f"{length}"]
        cells += [f"{row['no_cache_seconds']:.2f} s", f"{row['cache_seconds']:.2f} s"] if row else [EMPTY, EMPTY]
        cells += [f"{row['speedup']:.1f} x"] if row else [EMPTY]
        cells += [f"{row['arms'][name]:.2f} s" if row else EMPTY for name in others]
        cells += [f"{slow:.2f} s", f"{fast:.2f} s", f"{slow / fast:.1f} x"]
        lines.append("".join(f"<td>{escape(cell)}</td>" for cell in cells))
    names = "".join(f"<th>{escape(name)}</th>" for name in (*head, "no cache", "with cache", "speed-up"))
    groups = f'<th></th><th colspan="{len(head) - 1}">here</th><th colspan="3">reference, RTX 5070 Ti</th>'
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<table class="rows"><thead><tr>{groups}</tr><tr>{names}</tr></thead><tbody>{body}</tbody></table>'


def benchmark_figures(benchmark: Benchmark) -> str:
    """What the figures depend on, and how far it is."""
    about, model = benchmark.about, benchmark.about["model"]
    done = min(map(len, benchmark.seconds.values()))
    state = {"choosing": "choosing the tokens …", "measuring": f"{done:,} tokens of each …"}
    return figures_html(
        {
            "device": f"{about['device']}, {about['threads']} threads",
            "precision": about["precision"],
            "model": f"{model['source']}: {model['num_layers']} layers, {model['d_model']} wide, "
            f"{model['parameters'] / 1e6:.1f} M parameters",
            "torch": about["torch"],
            "state": state.get(benchmark.phase, benchmark.why or "done"),
        }
    )


def target_html(found: Transduction) -> str:
    """Source and target, symbol by symbol."""
    spans = "".join(
        f'<span class="symbol p{min(int(p * SHADES), SHADES - 1)}" title="{p:.1%}">{escape(symbol)}</span>'
        for symbol, p in zip(found.symbols, found.probabilities or [1.0] * len(found.symbols), strict=False)
    )
    going = "" if found.phase == "done" else '<span class="cursor">▍</span>'
    beams = "".join(f"<li><code>{escape(t)}</code> <small>{p:.2f} nats</small></li>" for t, p in found.beams)
    return (
        f'<div class="target"><small>source</small><p>{escape(found.source)}</p><small>target</small>'
        f"<p>{spans}{going}</p>{f'<ol>{beams}</ol>' if beams else ''}</div>"
    )
