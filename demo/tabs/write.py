"""Text that streams next to a chart of what each token costs."""

from contextlib import closing
from typing import Any, get_args

import gradio as gr

from decoding.choices import Precision
from demo import rendering as show
from demo.examples import prompts
from demo.line_chart import Line, axis_top, line_chart
from demo.quick_training import QuickTraining
from demo.session import Session
from demo.tabs.common import UNSEEN, Picker, Updates, choices, offer_examples, picker, start_and_stop, wire

NOTHING = '<div class="written"></div>'
COPY = """() => {
  const texts = [...document.querySelectorAll('#text .written')].map((text) => text.textContent).join('\\n\\n');
  const done = document.getElementById('copy');
  const copied = () => { done.classList.add('done'); setTimeout(() => done.classList.remove('done'), 1500); };
  if (navigator.clipboard) { navigator.clipboard.writeText(texts).then(copied); return; }
  const area = document.body.appendChild(document.createElement('textarea'));
  area.value = texts;
  area.select();
  if (document.execCommand('copy')) { copied(); }
  area.remove();
}"""
"""Without https, browsers have only the old way to copy."""
DOWNLOAD = """() => {
  const texts = [...document.querySelectorAll('#text .written')].map((text) => text.textContent).join('\\n\\n');
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([texts], {type: 'text/plain'}));
  link.download = 'text.txt';
  link.click();
  URL.revokeObjectURL(link.href);
}"""


def write_tab(session: Session, training: QuickTraining) -> Picker:
    """The tab; returns its picker of a run."""
    with gr.Row(elem_classes="tool"):
        with gr.Column(scale=5, min_width=320, elem_classes="asked"):
            with gr.Column():
                empty = gr.HTML(visible=False, padding=False)
                train = gr.Button("Train the quick model", variant="primary", visible=False)
                leave = gr.Button("Stop the training", visible=False)
                runs = picker(session, "gpt", "write")
                prompt = gr.Textbox(label="Prompt", lines=3, max_lines=8, elem_id="prompt")
                offer_examples(session, runs.run, prompt, prompts)
                with gr.Row():
                    buttons = start_and_stop("Generate", "generate")
            with gr.Column(elem_classes="settings"):
                options = _options(session)
        with gr.Column(scale=7, min_width=320):
            outputs = _results()

    def work(owner: str, run: Any, prompt: Any, *values: Any) -> Updates:
        asked = dict(zip(options, values, strict=True))
        top = 0.0  # It grows only: nothing jumps to and fro.
        with closing(session.write(owner, run, prompt, **asked)) as looks:
            for writing in looks:
                coloured, lines = asked["alternatives"], show.token_times(writing)
                top = max(top, axis_top(lines))
                legend = show.legend_html() if coloured else ""
                below = _below(lines, len(writing.prompt_tokens) + writing.limit, top, show.writing_figures(writing))
                yield show.text_html(writing, coloured=coloured), legend + below

    inputs = [runs.run, prompt, *options.values()]
    wire(session, buttons, work, inputs, outputs, lambda why: (why, NO_FIGURES))
    _offer_training(session, training, (empty, train, leave, runs.run))
    return runs


def _options(session: Session) -> dict[str, Any]:
    """What the sampler takes, by the names of `Session.write`."""
    with gr.Row():
        new_tokens = gr.Slider(1, session.limits.new_tokens, 500, step=1, label="New tokens", elem_id="new-tokens")
        temperature = gr.Slider(0, 2, 0.8, step=0.05, label="Temperature")
    with gr.Row():
        texts = gr.Slider(1, session.limits.texts, 1, step=1, label="Texts", elem_id="texts", min_width=140)
        seed = gr.Number(1, label="Seed (same text again)", precision=0, minimum=0, elem_id="seed")
    compare = gr.Checkbox(label="Compare: read the same tokens without the cache afterwards", elem_id="compare")
    coloured = gr.Checkbox(label="Colour tokens by their probability", elem_id="coloured")
    options = {"max_new_tokens": new_tokens, "temperature": temperature, "num_samples": texts, "seed": seed}
    options |= {"compare": compare, "alternatives": coloured}
    with gr.Accordion("More of the sampler", open=False):
        with gr.Row():
            options["top_k"] = gr.Slider(0, 100, 0, step=1, label="Top k (0: all)")
            options["top_p"] = gr.Slider(0.01, 1, 1, step=0.01, label="Top p")
        with gr.Row():
            options["min_p"] = gr.Slider(0, 1, 0, step=0.01, label="Min p")
            options["repetition_penalty"] = gr.Slider(0.5, 2, 1, step=0.05, label="Repetition penalty")
        options["stop"] = gr.Textbox(label="Stop string", max_lines=1)
        ends = [("stop", "stop"), ("let the older half go", "slide")]
        options["when_full"] = gr.Radio(ends, value="slide", label="When the context is full")
        precisions, label = list(get_args(Precision)), "Precision (int8: weights of one byte)"
        options["precision"] = gr.Radio(precisions, value="fp32", label=label)
    return options


def _results() -> list[Any]:
    """The text, and what stands below it in one widget: fewer widgets make an update cheaper."""
    box: Any = {"min_height": 400, "max_height": 400, "autoscroll": True, "padding": False}
    text = gr.HTML(NOTHING, elem_id="text", **box)
    with gr.Row(elem_classes="taken"):
        gr.Button("Copy", size="sm", min_width=60, elem_id="copy").click(None, js=COPY, **UNSEEN)
        gr.Button("Download", size="sm", min_width=60, elem_id="download").click(None, js=DOWNLOAD, **UNSEEN)
    return [text, gr.HTML(NO_FIGURES, padding=False)]


def _below(lines: list[Line], positions: int, top: float, figures: str) -> str:
    chart = line_chart(lines, "position", "milliseconds per token", x_range=(0, positions), y_range=(0, top))
    return f'<div id="chart">{chart}</div><div id="figures">{figures}</div>'


NO_FIGURES = _below([], 500, 1.0, show.figures_html({}))


def _offer_training(
    session: Session,
    training: QuickTraining,
    widgets: tuple[gr.HTML, gr.Button, gr.Button, gr.Dropdown],
) -> None:
    """Where nothing is trained, say so, and train the quick model with a progress bar."""
    empty, train, leave, run = widgets
    timer = gr.Timer(1.0, active=False)
    outputs = [empty, train, leave, timer, run]

    def look(watched: bool = True) -> tuple[Any, ...]:
        step, steps, words = training.progress()
        none = not session.catalogue.entries("gpt")
        if training.running:
            bar = gr.HTML(show.progress_html(step, steps, words), visible=True)
            return bar, gr.Button(visible=False), gr.Button(visible=True), gr.Timer(active=True), gr.skip()
        words = words or (
            f"There is no trained model under {session.catalogue.runs}/ yet. The quick one takes 1.5 to 4 minutes on "
            f"two CPU cores, needs no network, and writes like a child that has heard Shakespeare."
        )
        html = gr.HTML(show.message_html(words, "going"), visible=none or (watched and bool(step)))
        return (
            *(html, gr.Button(visible=none), gr.Button(visible=False), gr.Timer(active=False)),
            choices(session, "gpt", None) if step else gr.skip(),
        )

    def start() -> tuple[Any, ...]:
        if not session.catalogue.entries("gpt"):
            training.start()
        return look()

    def leave_it() -> tuple[Any, ...]:
        training.stop()
        return look()

    train.click(start, None, outputs, queue=False, **UNSEEN)
    leave.click(leave_it, None, outputs, queue=False, **UNSEEN)
    timer.tick(look, None, outputs, queue=False, **UNSEEN)
    gr.on(None, lambda: look(watched=False), None, outputs, queue=False, **UNSEEN)
