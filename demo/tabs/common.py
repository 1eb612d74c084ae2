"""What the tabs have in common: pickers of runs, and the wiring of a button to work that can be stopped."""

from collections.abc import Callable, Generator, Iterator
from typing import Any

import gradio as gr

from demo.limits import MOST_NAME
from demo.session import Session
from training.errors import InputError

MODEL = "model"
"""Who runs a model waits in one queue."""
UNSEEN: Any = {"api_visibility": "private", "show_progress": "hidden"}

Updates = Generator[Any, None, None]


def choices(session: Session, kind: Any, chosen: Any = None, **options: Any) -> gr.Dropdown:
    """A picker with the runs that there are now; what was chosen stays, or else the newest is."""
    found = [(entry.label, entry.name) for entry in session.catalogue.entries(kind)]
    names = [name for _, name in found]
    return gr.Dropdown(choices=found, value=chosen if chosen in names else next(iter(names), None), **options)


def picker(session: Session, kind: str, name: str) -> gr.Dropdown:
    """A new picker of a run."""
    return choices(session, kind, label="Checkpoint", interactive=True, scale=3, elem_id=f"{name}-run")


def owner_of(request: gr.Request) -> str:
    """Who asks: one for each page that is open."""
    return str(request.session_hash)[:MOST_NAME]


def wire(
    session: Session,
    buttons: tuple[gr.Button, gr.Button],
    work: Callable[..., Updates],
    inputs: list[Any],
    outputs: list[Any],
    limit: int,
) -> None:
    """A press of Start ends this visitor's running request, takes the place of one that waits, and waits for its turn.

    Stop ends the running one at its next token, and takes one that waits out of the queue.
    """
    start, stop = buttons
    number = gr.Number(0, visible=False, precision=0)

    def ask(request: gr.Request) -> int:
        return session.jobs.ask(owner_of(request))

    def end(request: gr.Request) -> None:
        session.jobs.stop(owner_of(request))

    def turn(request: gr.Request, number: Any, *values: Any) -> Updates:
        if session.jobs.begin(owner_of(request), number):
            yield from work(owner_of(request), *values)

    asked = start.click(ask, None, number, queue=False, trigger_mode="multiple", **UNSEEN)
    running = asked.then(
        turn, [number, *inputs], outputs, concurrency_id=MODEL, concurrency_limit=limit, api_visibility="private",
        trigger_mode="always_last", show_progress="minimal", show_progress_on=outputs[-2],
    )  # fmt: skip
    stop.click(end, None, None, queue=False, cancels=[running], **UNSEEN)


def told(looks: Iterator[Any]) -> Iterator[Any]:
    """Looks at a job; last, if it fails for a reason that a visitor can see to, that."""
    try:
        yield from looks
    except InputError as error:
        yield error
