"""The table of what the cache saves, as it is measured."""

import json
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import gradio as gr

from demo import rendering as show
from demo.session import Session
from demo.tabs.common import COLOURS, Updates, owner_of, picker, told, wire
from gpt.benchmark import ROWS
from training.errors import InputError


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
        options: Any = {
            "x": "position",
            "y": "value",
            "color": "line",
            "color_map": COLOURS,
            "color_title": " ",
            "x_title": "new tokens",
        }
        options |= {"value": show.chart_rows("position", []), "x_lim": [0, ROWS[-1]], "y_lim": [0, 1], "height": 280}
        options["colors_in_legend"] = list(COLOURS)[:3]
        single = gr.LinePlot(y_title="milliseconds per token", elem_id="benchmark-single", **options)
        until = gr.LinePlot(y_title="seconds until a token", elem_id="benchmark-until", **options)
    figures = gr.HTML("", elem_id="benchmark-figures", padding=False)
    download = gr.DownloadButton("Download the JSON", interactive=False, elem_id="benchmark-json")
    message = gr.HTML("", padding=False)

    def work(run: Any, request: gr.Request) -> Updates:
        tops = [0.0, 0.0]
        looks = session.benchmark(owner_of(request), run)
        with closing(looks):
            for result in told(looks):
                if isinstance(result, InputError):
                    yield *(gr.skip() for _ in range(5)), show.message_html(str(result))
                    return
                plots: list[Any] = []
                for n, frame in enumerate(show.benchmark_times(result)):
                    plots.append(frame)
                    if show.axis_top(frame) > tops[n]:
                        tops[n] = show.axis_top(frame)
                        plots[n] = gr.LinePlot(value=frame, y_lim=[0, tops[n]])
                file = gr.skip()
                if result.phase == "done":
                    file = gr.DownloadButton(value=_json_file(result.figures()), interactive=True)
                yield _table(result), *plots, show.benchmark_figures(result), file, ""

    wire(session, (button, stop), work, [run], [table, single, until, figures, download, message], concurrency)
    return run


def _table(result: Any) -> str:
    return f'<div class="scroll">{show.reference_table(result)}</div>'


def _json_file(figures: dict[str, Any]) -> str:
    folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
    file = folder / "decode.json"
    file.write_text(json.dumps(figures, indent=1) + "\n")
    return str(file)
