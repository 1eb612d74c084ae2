"""The table of what the key-value cache saves, as it is measured."""

from contextlib import closing
from typing import Any, get_args

import gradio as gr

from decoding.choices import ROWS, Precision
from demo import rendering as show
from demo.line_chart import axis_top, line_chart
from demo.results import Benchmark
from demo.session import Session
from demo.tabs.common import Picker, Updates, picker, start_and_stop, wire

TITLES = "milliseconds per token", "seconds until a token"


def benchmark_tab(session: Session) -> Picker:
    """The tab; returns its picker of a run."""
    gr.Markdown(
        "The time until 100, 200, 300 and 500 new tokens after a prompt of 8, read without the key-value cache and with"
        " it; the speed-up is the first divided by the second, both by plain PyTorch. The reference is a 12-layer,"
        " 768-wide model; smaller models are bound by other things. A run ends after"
        f" {session.limits.seconds:g} seconds with what it has; `python demo/app.py --seconds 600` gives it more."
    )
    runs = picker(session, "gpt", "benchmark")
    with gr.Row(elem_classes="pressed"):
        precision = gr.Dropdown(get_args(Precision), label="Precision", filterable=False, scale=1, min_width=115)
        buttons = start_and_stop("Run", "benchmark-start")

    def work(owner: str, run: Any, precision: Any) -> Updates:
        tops = [0.0, 0.0]
        with closing(session.benchmark(owner, run, precision=precision)) as looks:
            for result in looks:
                yield _results(result, tops)

    nothing = _results(None, [0.0, 0.0])
    results = gr.HTML(nothing, padding=False, elem_id="benchmark-results")
    wire(session, buttons, work, [runs.run, precision], [results], lambda why: why + nothing)
    return runs


def _results(result: Benchmark | None, tops: list[float]) -> str:
    """Table, charts, figures and the file. The tops of the charts grow only, and are kept in `tops`."""
    charts = ""
    for n, (lines, title) in enumerate(zip(show.benchmark_times(result), TITLES, strict=True)):
        tops[n] = max(tops[n], axis_top(lines))
        charts += line_chart(lines, "new tokens", title, x_range=(0, ROWS[-1]), y_range=(0, tops[n]))
    html = (
        f'<div id="benchmark-rows" class="scroll">{show.reference_table(result)}</div><div class="pair">{charts}</div>'
    )
    if result is not None:
        html += f'<div id="benchmark-figures">{show.benchmark_figures(result)}</div>'
        html += show.download_html(result) if result.phase == "done" else ""
    return html
