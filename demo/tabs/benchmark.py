"""The table of what the cache saves, as it is measured."""

from contextlib import closing
from typing import Any

import gradio as gr

from demo import rendering as show
from demo.line_chart import Line, axis_top
from demo.session import Session
from demo.tabs.common import Updates, picker, told, wire
from gpt.benchmark import ROWS
from training.errors import InputError

TITLES = "milliseconds per token", "seconds until a token"


def benchmark_tab(session: Session, concurrency: int) -> gr.Dropdown:
    """The tab; returns its picker of a run."""
    gr.Markdown(
        "The time until 100, 200, 300 and 500 new tokens after a prompt of 8, read without the key-value cache and with"
        " it. The reference is a 12-layer, 768-wide model; smaller models are bound by other things."
    )
    with gr.Row():
        run = picker(session, "gpt", "benchmark")
        button = gr.Button("Run", variant="primary", min_width=100, elem_id="benchmark-start")
        stop = gr.Button("Stop", variant="stop", min_width=100, elem_id="benchmark-stop")
    table = gr.HTML(_table(None), elem_id="benchmark-rows", padding=False)
    with gr.Row():
        single, until = (
            gr.HTML(_chart([], title, 1.0), elem_id=f"benchmark-{name}", padding=False, min_height=280)
            for name, title in zip(("single", "until"), TITLES, strict=True)
        )
    figures = gr.HTML("", elem_id="benchmark-figures", padding=False)
    download = gr.HTML("", elem_id="benchmark-json", padding=False)
    message = gr.HTML("", padding=False)

    def work(owner: str, run: Any) -> Updates:
        tops = [0.0, 0.0]
        looks = session.benchmark(owner, run)
        with closing(looks):
            for result in told(looks):
                if isinstance(result, InputError):
                    yield *(gr.skip() for _ in range(5)), show.message_html(str(result))
                    return
                plots = []
                for n, (lines, title) in enumerate(zip(show.benchmark_times(result), TITLES, strict=True)):
                    tops[n] = max(tops[n], axis_top(lines))
                    plots.append(_chart(lines, title, tops[n]))
                link = show.download_html(result) if result.phase == "done" else ""
                yield _table(result), *plots, show.benchmark_figures(result), link, ""

    wire(session, (button, stop), work, [run], [table, single, until, figures, download, message], concurrency)
    return run


def _chart(lines: list[Line], title: str, top: float) -> str:
    return show.growing_chart(lines, "new tokens", title, ROWS[-1], top)


def _table(result: Any) -> str:
    return f'<div class="scroll">{show.reference_table(result)}</div>'
