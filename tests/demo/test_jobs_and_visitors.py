"""How much one visitor may have, without a page and without a model: time, guesses, places, bytes, texts."""

import asyncio
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from demo import visitors
from demo.jobs import Job, Jobs
from demo.limits import MAX_SEED, Limits
from demo.middleware import MAX_BODY, RequestFilter
from demo.results import Growing
from demo.session import _asked
from demo.tabs.common import start_and_stop, wire
from demo.visitors import FREE_GUESSES, LONGEST_WAIT, Guesses, Places, visitor
from training.runtime.errors import InputError


def test_a_job_has_its_time_however_often_it_is_looked_at() -> None:
    def work(job: Job[Growing]) -> None:
        job.result = Growing()
        for _ in range(200):
            job.check()
            time.sleep(0.01)

    *_, last = Job(work, 0.5).looks()
    assert (last.phase, last.why) == ("done", "ended after 0.5 seconds, the most that a request may take")


def test_a_request_that_waits_begins_if_it_is_the_newest_and_was_not_stopped() -> None:
    jobs = Jobs()
    first, second = jobs.ask("me"), jobs.ask("me")
    other = jobs.ask("you")
    assert not jobs.begin("me", first)
    assert jobs.begin("me", second)
    assert not jobs.begin("me", second), "once"
    third = jobs.ask("me")
    assert not jobs.stop("me"), "nothing runs"
    assert not jobs.begin("me", third)
    assert jobs.begin("you", other)


def test_a_request_that_fails_is_called_one_too_many_if_it_never_left_the_queue() -> None:
    session: Any = SimpleNamespace(jobs=Jobs())
    with gr.Blocks() as blocks:
        outputs = [gr.HTML(elem_id="text")]
        wire(session, start_and_stop("Generate", "generate"), lambda *_: iter(()), [], outputs, str)
    failed: Any = next(event.fn for event in blocks.fns.values() if event.name == "failed")
    request: Any = SimpleNamespace(session_hash="me")
    number = session.jobs.ask("me")
    button, text = failed(request, number)
    assert "too many requests are waiting" in text
    assert not button.interactive
    number = session.jobs.ask("me")
    session.jobs.stop("me")  # Whose cancellation Gradio may call a failure.
    assert failed(request, number)[1] == gr.skip(), "the text that was written stays"


def test_a_visitor_has_one_job_which_outlives_the_end_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(job: Job[Growing]) -> None:
        job.result = Growing()
        while True:
            job.check()
            time.sleep(0.01)

    monkeypatch.setattr("demo.jobs.STOPPING", 0.0)  # It waits for who looks, here itself.
    jobs = Jobs()
    before, now = (jobs.run("me", Job(work, 60.0)) for _ in range(2))
    next(before)
    next(now)
    assert [look.why for look in before][-1] == "a new request took its place"
    assert jobs.is_busy("me")
    assert jobs.stop("me")
    assert [look.why for look in now][-1] == "stopped"
    assert not jobs.is_busy("me")


def test_a_visitor_guesses_five_times_and_then_waits_twice_as_long_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(visitors.time, "monotonic", lambda: now)
    guesses = Guesses()
    assert [guesses.wait("a") for _ in range(FREE_GUESSES)] == [0.0] * FREE_GUESSES
    waits = []
    for _ in range(12):
        waits.append(guesses.wait("a"))
        assert guesses.wait("b" * len(waits)) == 0.0, "nobody else waits"
        now += waits[-1]
        assert guesses.wait("a") == 0.0
    assert waits == [min(2.0**n, LONGEST_WAIT) for n in range(12)]
    guesses.right("a")
    assert [guesses.wait("a") for _ in range(FREE_GUESSES)] == [0.0] * FREE_GUESSES


def test_of_too_many_visitors_the_one_who_was_away_longest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visitors, "MAX_REMEMBERED", 2)
    guesses = Guesses()
    for who in ("a", "b", "c"):
        for _ in range(FREE_GUESSES):
            assert guesses.wait(who) == 0.0
    assert guesses.wait("c") > 0.0
    assert guesses.wait("b") > 0.0
    assert guesses.wait("a") == 0.0


def test_a_visitor_with_ipv6_has_a_network_of_addresses() -> None:
    one, same, other = (visitor({"client": (f"2001:db8:1:{end}", 1)}) for end in ("2::3", "2::4", "3::3"))
    assert one == same != other


def status(path: str, body: Sequence[bytes] = (b"",), host: str = "192.0.2.1", waiting: Sequence[str] = ()) -> int:
    """What the filter answers to a POST; behind it all is well, and one request runs and others wait, by addresses."""
    events = [SimpleNamespace(request=SimpleNamespace(scope={"client": (name, 1)})) for name in waiting]
    line = SimpleNamespace(queue=events[1:])
    queue = SimpleNamespace(event_queue_per_concurrency_id={"model": line}, active_jobs=[None, events[:1]])
    pieces = [{"type": "http.request", "body": part, "more_body": True} for part in body]
    pieces[-1]["more_body"] = False
    answers: list[int] = []

    async def page(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["body"] == b"".join(body)
        assert dict(scope["headers"]).keys() == {b"host"}, "Gradio would ask whom this names"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> Any:
        return pieces.pop(0)

    async def send(message: Any) -> None:
        answers.extend([message["status"]] if "status" in message else [])

    gradio = SimpleNamespace(cookie_id="x", auth=None, tokens={})
    filter = RequestFilter(page, gradio, Places(queue, max_places=2), "", {"my.site"})
    headers = [(b"host", b"my.site"), (b"x-gradio-server", b"http://elsewhere")]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
    asyncio.run(filter({**scope, "client": (host, 1)}, receive, send))
    return answers[0]


@pytest.mark.parametrize("pieces", [1, 2, 50])
def test_a_body_has_a_limit_in_however_many_pieces_it_comes(pieces: int) -> None:
    part = b"x" * (MAX_BODY // pieces)
    assert status("/gradio_api/queue/join", [part] * pieces) == 200
    assert status("/gradio_api/queue/join", [*[part] * pieces, b"x"]) == 413


def test_a_visitor_has_so_many_places_in_the_queue_and_no_more() -> None:
    own, others = "192.0.2.1", ["192.0.2.2"] * 5
    for path in ("/gradio_api/queue/join", "/gradio_api/call/generate"):
        assert status(path, waiting=[own, *others]) == 200
        assert status(path, waiting=[own, own, *others]) == 503
        assert status(path, waiting=[own, own, *others], host="192.0.2.3") == 200


def test_each_text_of_a_request_has_a_seed_of_its_own() -> None:
    assert list(_asked("a", {"seed": 7, "num_samples": 3}, Limits()).seeds) == [7, 8, 9]
    assert list(_asked("a", {"seed": MAX_SEED}, Limits()).seeds) == [MAX_SEED]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 4}, "num_samples must be at least 1 and at most 3, got 4"),
        ({"num_samples": 2, "compare": True}, "compare reads one text a second time"),
        ({"max_new_tokens": 6}, "max_new_tokens must be at least 1 and at most 5, got 6"),
        ({"prompt": "abc"}, "the prompt has 3 characters, at most 2 are allowed"),
        ({"stop": "ab"}, "stop has 2 characters, at most 1 are allowed"),
        ({"seed": MAX_SEED + 1}, "seed must be at least 0 and at most 9,007,199,254,740,992"),
    ],
)
def test_a_request_keeps_to_the_limits(options: dict[str, Any], message: str) -> None:
    limits = Limits(texts=3, new_tokens=5, prompt_characters=2, stop_characters=1)
    allowed: dict[str, Any] = {"num_samples": 3, "max_new_tokens": 5, "prompt": "ab", "stop": "a", "seed": MAX_SEED}
    _asked(allowed["prompt"], allowed, limits)
    with pytest.raises(InputError, match=f"^{message}"):
        _asked((allowed | options)["prompt"], allowed | options, limits)
