"""Results as what a page shows: escaped HTML, and rows of charts."""

import json
import statistics
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from math import exp, log
from statistics import fmean

from decoding.token_text import shown_token
from decoding.writing import Piece
from demo.line_chart import Line, short
from demo.results import WITH, WITHOUT, Benchmark, Transduction, Writing

MAX_POINTS = 150
"""Of one line of a chart: more cannot be seen, and cost the page."""
SHADES = ("50% and more", "25%", "13%", "6%", "3%", "1.6%", "less")
"""Probabilities: each is half of the one before, so that each step of the colour is one bit of surprise."""
REFERENCE = ((100, 0.90, 0.62), (200, 1.66, 1.25), (300, 2.71, 1.86), (500, 5.14, 3.05))
"""New tokens, seconds without and with the cache: 12 layers, 768 wide, on an RTX 5070 Ti."""
EMPTY = "-"
COLOURS = ("#ea580c", "#2563eb", "#059669")
"""Without the cache, with it, and with it in another mode."""


def text_html(writing: Writing, *, coloured: bool) -> str:
    """Prompt and text, or several side by side; coloured by the probability of each token, with the likeliest others
    on hovering, and with its borders where it is no character.

    The end of one text stays open, which browsers close: so each update is the one before with more behind it, and
    Gradio sends only what is new.
    """
    prompt, kind = escape(writing.prompt), ""
    if coloured and writing.of_subwords:
        prompt, kind = "".join(f"<span>{escape(text)}</span>" for text in writing.prompt_texts if text), " tokens"
    texts = [
        f'<div class="written{kind}"><span class="prompt">{prompt}</span>'
        + (_tokens(writing, writing.pieces_of(sample)) if coloured else escape(text))
        for sample, text in enumerate(writing.texts)
    ]
    if len(texts) == 1:
        return texts[0]
    cells = (
        f"<div><small>seed {seed}</small>{text}</div></div>" for seed, text in zip(writing.seeds, texts, strict=True)
    )
    return f'<div class="texts">{"".join(cells)}</div>'


def _tokens(writing: Writing, pieces: Sequence[Piece]) -> str:
    """Each by itself; those that are parts of one character stand together, and are as likely as all of them."""
    spans, parts = [], []
    for piece in pieces:
        parts.append(piece)
        if piece.text:
            likely = [
                pair
                for part in parts
                for pair in ((_own_name(writing, part), part.log_probability), *part.alternatives)
            ]
            title = "&#10;".join(escape(f"{_name(text)} {exp(p):.1%}") for text, p in likely)
            colour = shade(sum(part.log_probability for part in parts))
            spans.append(f'<span class="p{colour}" title="{title}">{escape(piece.text)}</span>')
            parts = []
    return "".join(spans)


def _own_name(writing: Writing, piece: Piece) -> str:
    return piece.text if piece.token is None else shown_token(writing.tokenizer, piece.token)


def shade(log_probability: float) -> int:
    """Which of `SHADES` a probability in nats has: 0 for what was likely."""
    return min(int(max(-log_probability / log(2), 0.0)), len(SHADES) - 1)


def legend_html() -> str:
    """What the colours mean."""
    shades = "".join(f'<span class="p{n}">{name}</span>' for n, name in enumerate(SHADES))
    return f'<p class="legend">probability {shades}</p>'


def _name(token: str) -> str:
    """A token in words, or with signs for the spaces and line breaks in it."""
    return {"\n": "line break", " ": "space"}.get(token) or token.replace(" ", "␣").replace("\n", "⏎")


def writing_figures(writing: Writing) -> str:
    """The figures below the chart."""
    first = f"{writing.milliseconds[0]:,.0f} ms" if writing.milliseconds else EMPTY
    per_second = writing.tokens_per_second
    rate = EMPTY if per_second is None else f"{per_second:,.{1 if per_second < 100 else 0}f}"
    state = {
        "compiling": "compiling, once for this model …",
        "writing": "writing …",
        "comparing": "reading the same tokens without the cache …",
    }.get(writing.phase, writing.why or "done")
    at_end = "then the older half goes" if writing.when_full == "slide" else "then it stops"
    prompt = {"prompt": f"{len(writing.prompt_tokens):,} tokens of {len(writing.prompt):,} characters"}
    return figures_html(
        (prompt if writing.of_subwords else {})
        | {
            "tokens per second": rate,
            "first token": first,
            "cache": f"{writing.cache_bytes / 1e6:,.2f} MB",
            "context": f"{writing.context_used:,} of {writing.context:,}, {at_end}",
            "mode": f"{writing.mode}, {writing.precision}",
            "what the cache saves": _saved(writing),
            "tokens": f"{len(writing.milliseconds):,} of {writing.limit:,}: {state}",
        }
    )


def _saved(writing: Writing) -> str:
    """What is divided by what, of the same tokens, both of one mode; and what another mode takes."""
    if writing.compared is None or writing.speedup is None:
        return f"{EMPTY} (tick Compare)"
    without, with_it, own = map(short, writing.compared)
    other = f"; {writing.mode}, with it: {own} ms" if writing.mode != "eager" else ""
    return (
        f"{writing.speedup:.1f} times as fast: a token took {without} ms without the cache, {with_it} ms with it (eager"
        f" both), means of the {len(writing.uncached) - 1:,} after the first{other}"
    )


def figures_html(figures: dict[str, str]) -> str:
    """Names and values, side by side; the last two have lines of their own."""
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in figures.items())
    return f'<dl class="figures">{cells}</dl>'


def message_html(message: str, kind: str = "problem") -> str:
    """A line that tells what is wrong, or going on."""
    return f'<p class="message {escape(kind)}" role="status">{escape(message)}</p>' if message else ""


def progress_html(step: int, steps: int, words: str) -> str:
    """A bar."""
    share = 100 * step / steps if steps else 0
    return f'<div class="bar"><div style="width:{share:.1f}%"></div></div><p class="message going">{escape(words)}</p>'


def token_times(writing: Writing) -> list[Line]:
    """Milliseconds of each token against its position; the first one, which reads the prompt, is told apart."""
    start = len(writing.prompt_tokens) + 1
    lines = [(WITH, COLOURS[1], writing.milliseconds), (WITHOUT, COLOURS[0], writing.uncached)]
    if writing.mode != "eager":
        lines.insert(1, (f"{WITH}, eager", COLOURS[2], writing.eager))
    return [_line(name, colour, start + 1, values[1:], mean=True) for name, colour, values in lines if values]


def benchmark_times(benchmark: Benchmark | None) -> tuple[list[Line], list[Line]]:
    """Milliseconds of each new token, and seconds until it."""
    single, until = [], []
    for variant, colour in zip(benchmark.variants if benchmark else (), COLOURS, strict=False):
        seconds, milliseconds = variant.curves()
        single.append(_line(variant.name, colour, 2, milliseconds, mean=True))
        until.append(_line(variant.name, colour, 1, seconds))
    return single, until


def _line(name: str, colour: str, start: int, values: Sequence[float], *, mean: bool = False) -> Line:
    size = -(-len(values) // MAX_POINTS) or 1
    points = [(start + n, statistics.median(values[n : n + size])) for n in range(0, len(values), size)]
    return Line(name, colour, points, value=f"mean {short(fmean(values))}" if mean and values else None)


def reference_table(benchmark: Benchmark | None) -> str:
    """The rows measured here next to those of the reference."""
    here = {row["new_tokens"]: row for row in benchmark.rows()} if benchmark else {}
    others = benchmark.variants[2:] if benchmark else ()
    head = ["new tokens", "no cache", "with cache", "speed-up", *(variant.mode for variant in others)]
    lines = []
    for length, slow, fast in REFERENCE:
        row = here.get(length)
        cells = [f"{length}"]
        cells += [f"{row['no_cache_seconds']:.2f} s", f"{row['cache_seconds']:.2f} s"] if row else [EMPTY, EMPTY]
        cells += [f"{row['speedup']:.1f} x"] if row else [EMPTY]
        cells += [f"{row['arms'][variant.name]:.2f} s" if row else EMPTY for variant in others]
        cells += [f"{slow:.2f} s", f"{fast:.2f} s", f"{slow / fast:.1f} x"]
        lines.append("".join(f"<td>{escape(cell)}</td>" for cell in cells))
    names = "".join(f"<th>{escape(name)}</th>" for name in (*head, "no cache", "with cache", "speed-up"))
    groups = f'<th></th><th colspan="{len(head) - 1}">here</th><th colspan="3">reference, RTX 5070 Ti</th>'
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<table class="rows"><thead><tr>{groups}</tr><tr>{names}</tr></thead><tbody>{body}</tbody></table>'


def benchmark_figures(benchmark: Benchmark) -> str:
    """What the figures depend on, and how far it is."""
    about, model = benchmark.about, benchmark.about["model"]
    state = {"warming up": "warming up …", "measuring": f"{benchmark.tokens:,} tokens of each …"}
    return figures_html(
        {
            "device": f"{about['device']}, {about['threads']} threads",
            "precision": about["precision"],
            "torch": about["torch"],
            "model": f"{model['source']}: {model['num_layers']} layers, {model['d_model']} wide, "
            f"{model['parameters'] / 1e6:.1f} M parameters",
            "state": state.get(benchmark.phase, benchmark.why or "done"),
        }
    )


def download_html(benchmark: Benchmark) -> str:
    """A link that holds the figures as JSON: no file is written."""
    content = b64encode((json.dumps(benchmark.figures(), indent=1) + "\n").encode()).decode()
    href = f"data:application/json;base64,{content}"
    return f'<a class="download" download="decode.json" href="{href}">Download the JSON</a>'


def target_html(found: Transduction) -> str:
    """Source and target, symbol by symbol, with the borders of subwords."""
    kind = ' class="tokens"' if found.loaded.vocabulary.unit == "tokens" else ""
    spans = found.loaded.vocabulary.separator.join(
        f'<span class="symbol p{shade(log(p or 1e-9))}" title="{p:.1%}">{escape(symbol)}</span>'
        for symbol, p in zip(found.symbols, found.probabilities or [1.0] * len(found.symbols), strict=False)
    )
    going = "" if found.phase == "done" else '<span class="cursor">▍</span>'
    beams = "".join(f"<li><code>{escape(t)}</code> <small>{p:.2f} nats</small></li>" for t, p in found.beams)
    return (
        f'<div class="target"><small>source</small><p>{escape(found.source)}</p><small>target</small>'
        f"<p{kind}>{spans}{going}</p>{f'<ol>{beams}</ol>' if beams else ''}</div>"
    )
