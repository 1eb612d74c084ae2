"""The table of what the cache saves, as it is measured."""

from contextlib import closing
from typing import Any

import gradio as gr

from demo import rendering as show
from demo.line_chart import axis_top
from demo.results import Benchmark
from demo.session import Session
from demo.tabs.common import Updates, picker, told, wire
from gpt.benchmark import ROWS
from training.errors import InputError

TITLES = "milliseconds per token", "seconds until a token"


def benchmark_tab(session: Session, concurrency: int) -> gr.Dropdown:
    """The tab; returns its picker of a run."""
    gr.Markdown(
        "The time until 100, 200, 300 and 500 new tokens after a prompt of 8, read without the key-value cache and with"
        " it. The reference is a 12-layer, 768-wide model; smaller models are bound by other things. A run ends after"
        f" {session.limits.seconds:g} seconds with what it has; `python demo/app.py --seconds 600` gives it more."
    )
    with gr.Row():
        run = picker(session, "gpt", "benchmark")
        button = gr.Button("Run", variant="primary", min_width=100, elem_id="benchmark-start")
        stop = gr.Button("Stop", variant="stop", min_width=100, elem_id="benchmark-stop")
    results = gr.HTML(_results(None, [0.0, 0.0]), padding=False)
    message = gr.HTML("", padding=False)

    def work(owner: str, run: Any) -> Updates:
        tops = [0.0, 0.0]
        looks = session.benchmark(owner, run)
        with closing(looks):
            for result in told(looks):
                if isinstance(result, InputError):
                    yield gr.skip(), show.message_html(str(result))
                    return
                yield _results(result, tops), ""

    wire(session, (button, stop), work, [run], [results, message], concurrency)
    return run


def _results(result: Benchmark | None, tops: list[float]) -> str:
    """Table, charts, figures and the file. The tops of the charts grow only, and are kept in `tops`."""
    charts = ""
    for n, (lines, title) in enumerate(zip(show.benchmark_times(result), TITLES, strict=True)):
        tops[n] = max(tops[n], axis_top(lines))
        charts += show.growing_chart(lines, "new tokens", title, ROWS[-1], tops[n])
    html = (
        f'<div id="benchmark-rows" class="scroll">{show.reference_table(result)}</div><div class="pair">{charts}</div>'
    )
    if result is not None:
        html += f'<div id="benchmark-figures">{show.benchmark_figures(result)}</div>'
        html += show.download_html(result) if result.phase == "done" else ""
    return html
