"""Text that streams next to a chart of what a token costs."""

from collections.abc import Callable
from contextlib import closing
from typing import Any

import gradio as gr

from demo import rendering as show
from demo.line_chart import Line, axis_top
from demo.quick_training import QuickTraining
from demo.session import Session
from demo.tabs.common import UNSEEN, Updates, choices, picker, told, wire
from training.errors import InputError

EXAMPLES = ["ROMEO:\n", "JULIET:\nO ", "First Citizen:\nBefore we proceed", "KING RICHARD III:\nNow is the winter"]


def write_tab(session: Session, training: QuickTraining, concurrency: int) -> gr.Dropdown:
    """The tab; returns its picker of a run."""
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            empty = gr.HTML(visible=False, padding=False)
            train = gr.Button("Train the quick model", variant="primary", visible=False)
            leave = gr.Button("Stop the training", visible=False)
            run = picker(session, "gpt", "write")
            prompt = gr.Textbox(EXAMPLES[0], label="Prompt", lines=3, max_lines=8, elem_id="prompt")
            gr.Examples(EXAMPLES, prompt, label="Examples", cache_examples=False, api_visibility="private")
            with gr.Row():
                button = gr.Button("Generate", variant="primary", elem_id="generate")
                stop = gr.Button("Stop", variant="stop", elem_id="stop")
            options = _options(session)
        with gr.Column(scale=7, min_width=320):
            outputs = _results()
    wire(session, (button, stop), _work(session), [run, prompt, *options], outputs, concurrency)
    _offer_training(session, training, (empty, train, leave, run))
    return run


def _options(session: Session) -> list[Any]:
    """What the sampler takes, in the order in which `_work` takes it."""
    with gr.Row():
        new_tokens = gr.Slider(1, session.limits.new_tokens, 500, step=1, label="New tokens", elem_id="new-tokens")
        temperature = gr.Slider(0, 2, 0.8, step=0.05, label="Temperature")
    with gr.Accordion("More of the sampler", open=False):
        with gr.Row():
            top_k = gr.Slider(0, 100, 0, step=1, label="Top k (0: all)")
            top_p = gr.Slider(0.01, 1, 1, step=0.01, label="Top p")
        with gr.Row():
            min_p = gr.Slider(0, 1, 0, step=0.01, label="Min p")
            penalty = gr.Slider(0.5, 2, 1, step=0.05, label="Repetition penalty")
        stop_string = gr.Textbox(label="Stop string", max_lines=1)
        ends = [("stop", "stop"), ("let the older half go", "slide")]
        when_full = gr.Radio(ends, value="slide", label="When the context is full")
    seed = gr.Number(1, label="Seed: the same one, the same text", precision=0, minimum=0, elem_id="seed")
    compare = gr.Checkbox(label="Compare: read the same tokens without the cache afterwards", elem_id="compare")
    coloured = gr.Checkbox(label="Colour characters by their probability", elem_id="coloured")
    sampler = [temperature, top_k, top_p, min_p, penalty]
    return [new_tokens, *sampler, stop_string, when_full, seed, compare, coloured]


def _results() -> list[Any]:
    """Text, what stands below it, and messages: the fewer, the less an update costs."""
    box: Any = {"min_height": 400, "max_height": 400, "autoscroll": True, "padding": False}
    text = gr.HTML('<div class="written"></div>', elem_id="text", **box)
    below = gr.HTML(_below([], 500, 1.0, show.figures_html({})), padding=False)
    return [text, below, gr.HTML("", elem_id="message", padding=False)]


def _below(lines: list[Line], positions: int, top: float, figures: str) -> str:
    chart = show.growing_chart(lines, "position", "milliseconds per token", positions, top)
    return f'<div id="chart">{chart}</div><div id="figures">{figures}</div>'


def _work(session: Session) -> Callable[..., Updates]:
    def work(
        owner: str, run: Any, prompt: Any, new_tokens: Any, temperature: Any, top_k: Any, top_p: Any, min_p: Any,
        penalty: Any, stop_string: Any, when_full: Any, seed: Any, compare: Any, coloured: Any,
    ) -> Updates:  # fmt: skip
        looks = session.write(
            owner, run, prompt, max_new_tokens=new_tokens, temperature=temperature, top_k=top_k,
            top_p=top_p, min_p=min_p, repetition_penalty=penalty, stop=stop_string, when_full=when_full, seed=seed,
            compare=compare, alternatives=coloured,
        )  # fmt: skip
        top = 0.0  # It grows only: nothing jumps to and fro.
        message: Any = ""
        with closing(looks):
            for writing in told(looks):
                if isinstance(writing, InputError):
                    yield gr.skip(), gr.skip(), show.message_html(str(writing))
                    return
                lines = show.token_times(writing)
                top = max(top, axis_top(lines))
                below = _below(lines, len(writing.prompt) + writing.limit, top, show.writing_figures(writing))
                yield show.text_html(writing, coloured=coloured), below, message
                message = gr.skip()

    return work


def _offer_training(
    session: Session, training: QuickTraining, widgets: tuple[gr.HTML, gr.Button, gr.Button, gr.Dropdown]
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
            choices(session, "gpt") if step else gr.skip(),
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
