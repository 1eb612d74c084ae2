"""A source, its target, and where the decoder looks."""

from contextlib import closing
from typing import Any

import gradio as gr

from demo import rendering as show
from demo.results import Transduction
from demo.session import Session
from demo.tabs.common import Updates, picker, told, wire
from seq2seq.attention_map import attention_figure
from training.errors import InputError

SOURCES = ["stressed", "transformer", "abcdefghijklmnopqrst"]


INK = "#808080"
"""Can be read on light and on dark."""


def _heat_map(found: Transduction) -> Any:
    """Where the decoder looked, on the page's own ground."""
    figure = attention_figure(found.attention, found.source_tokens, found.tokens, found.loaded.vocabulary)
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.tick_params(colors=INK)
        for words in (axes.title, axes.xaxis.label, axes.yaxis.label):
            words.set_color(INK)
    return figure


def pairs_tab(session: Session, concurrency: int) -> gr.Dropdown:
    """The tab; returns its picker of a run."""
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            run = picker(session, "seq2seq", "pairs")
            source = gr.Textbox(SOURCES[0], label="Source", max_lines=3, elem_id="source")
            gr.Examples(SOURCES, source, label="Examples", cache_examples=False, api_visibility="private")
            beams = gr.Slider(1, session.limits.beams, 1, step=1, label="Beams (1: greedy)")
            with gr.Row():
                button = gr.Button("Decode", variant="primary", elem_id="decode")
                stop = gr.Button("Stop", variant="stop")
            gr.Markdown(
                "Train one with `python launch/train_seq2seq.py --config configs/seq2seq/reverse.yaml` (or `copy.yaml`,"
                " `dates.yaml`); it appears here when the tab is opened again."
            )
        with gr.Column(scale=7, min_width=320):
            target = gr.HTML('<div class="target"></div>', elem_id="target", padding=False)
            gr.Markdown("Where the decoder looks in the source, for each layer and head:")
            picture = gr.Plot(show_label=False, elem_id="attention")
            message = gr.HTML("", padding=False)

    def work(owner: str, run: Any, source: Any, beams: Any) -> Updates:
        looks = session.transduce(owner, run, source, beams)
        drawn: Any = None  # Not the picture of an older target.
        with closing(looks):
            for found in told(looks):
                if isinstance(found, InputError):
                    yield gr.skip(), gr.skip(), show.message_html(str(found))
                    return
                if found.phase == "done" and found.attention:
                    drawn = _heat_map(found)
                yield show.target_html(found), drawn, show.message_html(found.why, "going")
                drawn = gr.skip()

    wire(session, (button, stop), work, [run, source, beams], [target, picture, message], concurrency)
    return run
