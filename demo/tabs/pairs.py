"""A source, its target, and where the decoder looks."""

from contextlib import closing
from typing import Any

import gradio as gr

from demo import rendering as show
from demo.examples import sources
from demo.results import Transduction
from demo.session import Session
from demo.tabs.common import Picker, Updates, offer_examples, picker, start_and_stop, wire
from seq2seq.attention_map import attention_figure

INK = "#808080"
"""Can be read on light and on dark."""
NOTHING = '<div class="target"></div>'


def _heat_map(found: Transduction) -> Any:
    """Where the decoder looked, on the page's own ground."""
    figure = attention_figure(found.attention, found.source_tokens, found.tokens, found.loaded.vocabulary)
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.tick_params(colors=INK)
        for words in (axes.title, axes.xaxis.label, axes.yaxis.label):
            words.set_color(INK)
    return figure


def pairs_tab(session: Session) -> Picker:
    """The tab; returns its picker of a run."""
    with gr.Row(elem_classes="tool"):
        with gr.Column(scale=5, min_width=320, elem_classes="asked"):
            with gr.Column():
                runs = picker(session, "seq2seq", "pairs")
                source = gr.Textbox(label="Source", max_lines=3, elem_id="source")
                offer_examples(session, runs.run, source, sources)
                with gr.Row():
                    buttons = start_and_stop("Decode", "decode")
            with gr.Column(elem_classes="settings"):
                beams = gr.Slider(1, session.limits.beams, 1, step=1, label="Beams (1: greedy)")
                gr.Markdown(
                    "Train one with `python launch/train_seq2seq.py --config configs/seq2seq/reverse.yaml` (or"
                    " `copy.yaml`, `dates.yaml`); it appears here when the tab is opened again."
                )
        with gr.Column(scale=7, min_width=320):
            target = gr.HTML(NOTHING, elem_id="target", padding=False)
            gr.Markdown("Where the decoder looks in the source, for each layer and head:")
            picture = gr.Plot(show_label=False, elem_id="attention")

    def work(owner: str, run: Any, source: Any, beams: Any) -> Updates:
        with closing(session.transduce(owner, run, source, beams)) as looks:
            for found in looks:
                below = show.legend_html() if found.probabilities else ""
                drawn = _heat_map(found) if found.phase == "done" and found.attention else None
                yield show.target_html(found) + below + show.message_html(found.why, "going"), drawn

    inputs, outputs = [runs.run, source, beams], [target, picture]
    wire(session, buttons, work, inputs, outputs, lambda why: (why + NOTHING, None))
    return runs
