"""What the tabs have in common: pickers of runs, and the wiring of a button to work that can be stopped."""

import re
from collections.abc import Callable, Generator
from math import inf
from typing import Any, NamedTuple

import gradio as gr

from demo.limits import MAX_NAME
from demo.rendering import message_html
from demo.session import Session
from training.runtime.errors import InputError
from training.storage.run_folder import RunFolder

MODEL = "model"
"""All requests that run a model wait in one queue, as many of which run at once as the page's queue is told."""
UNSEEN: Any = {"api_visibility": "private", "show_progress": "hidden"}
ORDERS: dict[str, Callable[[str, float | None], Any]] = {
    "best": lambda name, bits: inf if bits is None else bits,
    "newest": lambda name, bits: 0,  # As they come.
    "name": lambda name, bits: [(len(n), n) if n.isdecimal() else (0, n) for n in re.split(r"(\d+)", name)],
}
"""Of runs: what they are sorted by, of their names and their validation losses in bits."""

Updates = Generator[Any, None, None]
"""What goes to the outputs of a tab, again and again."""


class Picker(NamedTuple):
    """Of a run: typing searches its list, which has an order."""

    run: gr.Dropdown
    order: gr.Dropdown


def choices(session: Session, kind: Any, order: Any, chosen: Any = None, **options: Any) -> gr.Dropdown:
    """The runs that there are now; what was chosen stays, or else the best is that can be loaded.

    One that is known not to be says why in the list; below the title, where none of them can be.
    """
    key = ORDERS.get(str(order), ORDERS["best"])
    entries = sorted(session.catalogue.entries(kind), key=lambda entry: key(entry.name, entry.bits))
    if chosen not in [entry.name for entry in entries]:
        chosen = session.catalogue.best(kind)
    faults = [(entry, session.catalogue.fault(entry)) for entry in entries]
    labels = [(entry.label + (f": {fault}" if fault else ""), entry.name) for entry, fault in faults]
    first = next((f"{entry.name} cannot be loaded: {fault}" for entry, fault in faults if fault), None)
    return gr.Dropdown(choices=labels, value=chosen, info=None if chosen else first, **options)


def order_of_runs(**options: Any) -> gr.Dropdown:
    """A new choice of their order."""
    return gr.Dropdown(list(ORDERS), label="Order", interactive=True, filterable=False, **options)


def picker(session: Session, kind: str, name: str) -> Picker:
    """A new picker."""
    with gr.Row(elem_classes="picker"):
        run = choices(
            session, kind, None, label="Find a checkpoint", interactive=True, scale=3, min_width=200,
            elem_id=f"{name}-run",
        )  # fmt: skip
        order = order_of_runs(scale=1, min_width=110)
    order.change(lambda order, run: choices(session, kind, order, run), [order, run], run, queue=False, **UNSEEN)
    return Picker(run, order)


def offer_examples(
    session: Session, run: gr.Dropdown, box: gr.Textbox, found_in: Callable[[RunFolder], list[str]]
) -> None:
    """Below a box, what to begin with: out of the chosen run. It is put into a box in which nobody has written."""

    def found(name: Any) -> list[str]:
        folders = {run.path.name: run for run in session.catalogue.folders()}
        return found_in(folders[name]) if name in folders else []

    def change(name: Any, text: Any, offered: Any) -> tuple[Any, Any, Any]:
        texts = found(name)
        kept = text if text and text not in offered else next(iter(texts), "")
        return kept, gr.Dataset(samples=[[each] for each in texts], visible=bool(texts)), texts

    def take(index: Any, offered: Any) -> Any:
        return offered[index] if isinstance(index, int) and 0 <= index < len(offered) else gr.skip()

    texts = found(run.value)
    box.value = next(iter(texts), "")
    offered = gr.State(texts)
    shown = gr.Dataset(components=[box], samples=[[text] for text in texts], label="Examples of this run", type="index",
                       visible=bool(texts), show_label=True)  # fmt: skip
    run.change(change, [run, box, offered], [box, shown, offered], queue=False, **UNSEEN)
    shown.click(take, [shown, offered], box, queue=False, **UNSEEN)


def owner_of(request: gr.Request) -> str:
    """Who asks: one for each page that is open."""
    return str(request.session_hash)[:MAX_NAME]


def start_and_stop(start: str, name: str) -> tuple[gr.Button, gr.Button]:
    """Two buttons; the second one has nothing to stop yet."""
    return (
        gr.Button(start, variant="primary", min_width=80, elem_id=name),
        gr.Button("Stop", interactive=False, min_width=80, elem_id=f"{name}-stop"),
    )


def wire(
    session: Session,
    buttons: tuple[gr.Button, gr.Button],
    work: Callable[..., Updates],
    inputs: list[Any],
    outputs: list[Any],
    refused: Callable[[str], Any],
) -> None:
    """A press of Start ends this visitor's running request, replaces one that waits, and waits in the queue.

    The page goes to the first output, if it is out of sight. Stop ends the running request at its next token, and
    takes one that waits out of the queue; it can be pressed while there is one.

    Args:
        session, buttons: Of the server; Start and Stop.
        work: Takes who asks and the values of the inputs, and yields what the outputs show.
        inputs, outputs: Of the request.
        refused: What the outputs show where a message says why there is nothing.
    """
    (start, stop), number = buttons, gr.Number(0, visible=False, precision=0)

    def ask(request: gr.Request) -> tuple[int, Any]:
        return session.jobs.ask(owner_of(request)), gr.Button(interactive=True)

    def end(request: gr.Request) -> Any:
        session.jobs.stop(owner_of(request))
        return gr.Button(interactive=False)

    def rest(request: gr.Request) -> Any:
        return gr.Button(interactive=session.jobs.is_busy(owner_of(request)))

    def failed(request: gr.Request, number: Any) -> tuple[Any, Any]:
        # One that is still awaited never left the queue: it was full. Any other was begun, replaced or stopped.
        if session.jobs.begin(owner_of(request), number):
            return end(request), message_html("too many requests are waiting: try again in a while")
        return rest(request), gr.skip()

    def turn(request: gr.Request, number: Any, *values: Any) -> Updates:
        if session.jobs.begin(owner_of(request), number):
            yield from _or_why_not(work(owner_of(request), *values), refused)

    start.click(None, js=_scroll_to(outputs[0]), **UNSEEN)
    asked = start.click(ask, None, [number, stop], queue=False, trigger_mode="multiple", **UNSEEN)
    running = asked.then(
        turn, [number, *inputs], outputs, concurrency_id=MODEL, api_visibility="private",
        trigger_mode="always_last", show_progress="minimal", show_progress_on=outputs[-1],
    )  # fmt: skip
    running.success(rest, None, stop, queue=False, **UNSEEN)
    running.failure(failed, number, [stop, outputs[0]], queue=False, **UNSEEN)
    stop.click(end, None, stop, queue=False, cancels=[running], **UNSEEN)


def _or_why_not(updates: Updates, refused: Callable[[str], Any]) -> Updates:
    """The updates, and where an input does not serve what says so."""
    try:
        yield from updates
    except InputError as error:
        yield refused(message_html(str(error)))


def _scroll_to(output: Any) -> str:
    return f"() => document.getElementById('{output.elem_id}').scrollIntoView({{behavior: 'smooth', block: 'nearest'}})"
