"""The page's server, attacked over loopback: a small page without a model stands in for the real one."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import gradio as gr
import httpx
import pytest

from demo import visitors
from demo.middleware import MAX_BODY
from demo.serving import Page, listen, serve
from demo.visitors import Guesses, visitor

CLOSED = """
upload upload_progress?upload_id=x file=/etc/passwd file/etc/passwd proxy=http://x.hf.space/ deep_link dev/reload
openapi.json vibe-edit undo-vibe-edit vibe-code vibe-starter-queries runs run-history/buckets component_server
stream/x stream/x/y/1/playlist.m3u8 process_recording custom_component/a/client/b/c startup-events token
profiling/traces login_check/../upload //upload
"""
ended = threading.Event()
http = httpx.Client(trust_env=False, timeout=20)


def page_of_a_stream() -> Page:
    """Function 0 streams for 20 seconds, 1 answers at once outside the queue, 2 fails, 3 is quick and queued."""

    def stream(text: str) -> Iterator[str]:
        try:
            for n in range(200):
                yield f"{text} {n}"
                time.sleep(0.1)
        finally:
            ended.set()

    def fail(text: str) -> str:
        return str(1 / 0)

    with Page(analytics_enabled=False) as page:
        text, button, output = gr.Textbox(), gr.Button(), gr.Textbox()
        button.click(stream, text, output, api_name="stream", concurrency_id="model")
        button.click(lambda text: text, text, output, api_name="echo", queue=False)
        button.click(fail, text, output, api_name="fail", queue=False)
        button.click(lambda text: text, text, output, api_name="quick", concurrency_id="quick")
    return page


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Without a login; what comes from 127.0.0.1 is believed to be a proxy."""
    with (
        listen("127.0.0.1", 0) as listener,
        serve(
            page_of_a_stream(), listener, host="127.0.0.1", trusted_proxies=["127.0.0.1"], allowed_hosts=["my.site"]
        ) as served,
    ):
        yield served.urls[0]


@pytest.fixture(scope="module")
def locked() -> Iterator[str]:
    """Behind a prefix, with a login."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_ROOT_PATH", "/demo")
        page = page_of_a_stream()
    with (
        listen("127.0.0.1", 0) as listener,
        serve(page, listener, host="127.0.0.1", trusted_proxies=["127.0.0.1"], auth=("me", "word")) as served,
    ):
        yield served.urls[0]


def join(url: str, function: int = 0, text: Any = "a", session: str = "", **headers: str) -> httpx.Response:
    asked = {"fn_index": function, "session_hash": session or uuid4().hex, "data": [text]}
    answer = http.post(f"{url}gradio_api/queue/join", json=asked, headers=headers)
    answer.extensions["session"] = asked["session_hash"]
    return answer


def answers(url: str, session: str) -> list[dict[str, Any]]:
    found = []
    with http.stream("GET", f"{url}gradio_api/queue/data", params={"session_hash": session}, timeout=20) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: "):
                found.append(json.loads(line.removeprefix("data: ")))
                if found[-1]["msg"] in ("process_completed", "close_stream"):
                    return found
    return found


def run(url: str, function: str, text: Any) -> httpx.Response:
    return http.post(f"{url}gradio_api/run/{function}", json={"data": [text]})


@pytest.mark.parametrize("prefix", ["", "demo/"])
def test_only_routes_of_the_list_are_there_whatever_the_prefix(url: str, locked: str, prefix: str) -> None:
    for server in (url, locked):
        for path in CLOSED.split():
            for method in ("GET", "POST"):
                status = http.request(method, f"{server}{prefix}gradio_api/{path}", content=b"x").status_code
                assert status == 404, f"{method} {prefix}{path}: {status}"
        files = {"files": ("a.txt", b"hello")}
        assert http.post(f"{server}{prefix}gradio_api/upload", files=files).status_code == 404
    for method in ("OPTIONS", "PUT", "DELETE"):
        assert http.request(method, url).status_code == 404
    assert http.get(f"{locked}demo/").status_code == http.get(url).status_code == 200


def test_a_visitor_has_few_places_which_end_where_nobody_listens(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visitors, "UNHEARD", 4.0)
    ended.clear()
    me, other = {"X-Forwarded-For": "192.0.2.7"}, {"X-Forwarded-For": "192.0.2.8"}
    statuses = [join(url, **me).status_code for _ in range(17)]
    assert statuses == [200] * 8 + [503] * 9
    assert join(url, **me).json() == {"detail": "8 requests of yours are waiting already"}
    assert join(url, X_Forwarded_For="192.0.2.7").status_code == 200, "what is no proxy's header is no address"
    start = time.monotonic()
    assert ended.wait(20), "the running one is ended"
    session = join(url, **other).extensions["session"]
    with http.stream("GET", f"{url}gradio_api/queue/data", params={"session_hash": session}) as stream:
        lines = (json.loads(line.removeprefix("data: ")) for line in stream.iter_lines() if line.startswith("data: "))
        assert next(line for line in lines if line["msg"] == "process_generating")
    assert time.monotonic() - start < 20
    while join(url, function=3, **me).status_code == 503:
        time.sleep(0.1)
    assert time.monotonic() - start < 20


def test_who_listens_is_answered(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visitors, "UNHEARD", 0.3)
    session = join(url, function=3, text="hello").extensions["session"]
    assert answers(url, session)[-1]["output"]["data"] == ["hello"]
    event = http.post(f"{url}gradio_api/call/stream", json={"data": ["a"]}).json()["event_id"]
    with http.stream("GET", f"{url}gradio_api/call/stream/{event}") as stream:
        start = time.monotonic()
        next(line for line in stream.iter_lines() if line.startswith("data") and time.monotonic() - start > 1.0)


def test_a_request_that_has_ended_takes_no_newer_one_of_its_session_along(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visitors, "UNHEARD", 1.0)
    start = time.monotonic()
    session = join(url, function=3).extensions["session"]
    assert answers(url, session)[-1]["msg"] == "process_completed"
    time.sleep(max(start + 0.6 - time.monotonic(), 0))
    join(url, session=session)  # Nobody listens to it yet as the first one's time is over.
    time.sleep(max(start + 1.3 - time.monotonic(), 0))
    with http.stream("GET", f"{url}gradio_api/queue/data", params={"session_hash": session}) as stream:
        for line in stream.iter_lines():
            assert time.monotonic() < start + 10
            if "process_generating" in line and time.monotonic() > start + 2.5:
                break


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_has_a_limit_before_the_login_too(url: str, locked: str, chunked: bool) -> None:
    def body(size: int) -> Any:
        return iter([b" " * 100_000] * (size // 100_000)) if chunked else b" " * size

    for path in ("gradio_api/queue/join", "gradio_api/run/echo", "login", "config"):
        answer = http.post(f"{url}{path}", content=body(MAX_BODY + 100_000))
        assert (answer.status_code, answer.text) == (413, "a request may have 1,000,000 bytes"), path
        assert http.post(f"{locked}{path}", content=body(MAX_BODY + 100_000)).status_code in (401, 413)
    assert http.post(f"{locked}login", content=body(MAX_BODY + 100_000)).status_code == 413
    assert http.post(f"{url}gradio_api/run/echo", content=body(MAX_BODY)).status_code == 422


def test_a_file_in_a_prompt_is_refused_and_not_fetched(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.5)
        address = f"http://127.0.0.1:{trap.getsockname()[1]}/secret.txt"
        file = {"path": address, "url": address, "meta": {"_type": "gradio.FileData"}}
        for text in (file, [file], {"a": [file]}):
            assert run(url, "echo", text).status_code == 500
            done = answers(url, join(url, function=3, text=text).extensions["session"])[-1]
            assert (done["success"], done["output"]["error"]) == (False, "this page takes no files")
        with pytest.raises(TimeoutError):
            trap.accept()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example:7860"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": "[::1"}, 421),
        ({"Host": ""}, 421),
        ({"X-Forwarded-Host": "evil.example"}, 421),
        ({"Host": "LOCALHOST:7860"}, 200),
        ({"Host": "[::1]:7860"}, 200),
        ({"Host": "my.site"}, 200),
        ({"Host": "127.0.0.1:1", "X-Forwarded-Host": "my.site", "Origin": "https://my.site"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Host": "my.site", "Origin": "https://my.site"}, 200),
    ],
)
def test_the_page_is_asked_for_by_its_own_names_and_from_itself(url: str, headers: dict[str, str], status: int) -> None:
    answer = http.get(url, headers=headers)
    assert answer.status_code == status, answer.text
    assert http.post(f"{url}gradio_api/run/echo", json={"data": ["a"]}, headers=headers).status_code == status
    if status != 200:
        assert "access-control-allow-origin" not in answer.headers


def test_headers_keep_the_page_out_of_frames(url: str) -> None:
    for path in ("", "nowhere", "gradio_api/info", "theme.css"):
        headers = http.get(f"{url}{path}").headers
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "server" not in headers


def login(url: str, password: str, who: str = "192.0.2.1") -> httpx.Response:
    data = {"username": "me", "password": password}
    answer = http.post(f"{url}login", data=data, headers={"X-Forwarded-For": who})
    http.cookies.clear()
    return answer


def test_guesses_wait_longer_and_longer_and_nobody_else_does(locked: str) -> None:
    statuses = [login(locked, str(n)).status_code for n in range(12)]
    assert statuses == [400] * visitors.FREE_GUESSES + [429] * (12 - visitors.FREE_GUESSES)
    refused = login(locked, "word")
    assert refused.status_code == 429, "not even the right one"
    assert refused.json() == {"detail": "too many wrong passwords: wait 1 seconds"}
    assert login(locked, "word", "192.0.2.2").status_code == 200
    time.sleep(1.0)
    assert login(locked, "word").status_code == 200
    assert login(locked, "wrong").status_code == 400, "counted anew"


def test_the_wait_doubles_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(visitors.time, "monotonic", lambda: now)
    guesses = Guesses()
    waits = []
    for _ in range(20):
        assert guesses.wait("a") == 0
        waits.append(guesses.wait("a"))
        now += waits[-1]
        if waits[-1]:
            continue
    assert sorted(waits) == waits
    assert waits[-1] == visitors.LONGEST_WAIT


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix", "unix"),
    ],
)
def test_a_visitor_is_an_address(host: str, name: str) -> None:
    assert visitor({"client": (host, 1)}) == name


def test_what_belongs_behind_the_login_is_behind_it(locked: str) -> None:
    body: dict[str, Any] = {"session_hash": "a", "fn_index": 0, "event_id": "b", "data": ["a"]}
    for path in ("cancel", "reset", "queue/join", "run/echo", "call/stream"):
        assert http.post(f"{locked}gradio_api/{path}", json=body).status_code == 401, path
    for path in ("heartbeat/a", "info", "queue/data?session_hash=a", "call/stream/a", "user", "app_id"):
        assert http.get(f"{locked}gradio_api/{path}").status_code == 401, path
    assert http.get(f"{locked}config").status_code == 401
    page = http.get(locked)
    assert page.status_code == 200
    assert '"auth_required":true' in page.text
    assert '"components":[]' in page.text
    cookie = "; ".join(f"{name}={value}" for name, value in login(locked, "word", "192.0.2.3").cookies.items())
    answer = http.post(f"{locked}gradio_api/run/echo", json={"data": ["a"]}, headers={"Cookie": cookie})
    assert answer.json()["data"] == ["a"]


def test_nonsense_is_one_line_in_the_log_at_most(
    url: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    post = f"{url}gradio_api/"
    nonsense: list[tuple[str, dict[str, Any]]] = [
        ("queue/join", {"json": {"fn_index": 999, "session_hash": "a", "data": []}}),
        ("queue/join", {"json": {"fn_index": "x", "session_hash": 7, "data": 3}}),
        ("queue/join", {"content": b"\xff\xfe{"}),
        ("queue/join", {"content": b"[" * 100_000}),
        ("run/echo", {"json": {"data": []}}),
        ("run/echo", {"json": {"data": ["a", "b", "c"]}}),
        ("run/echo", {"json": {"data": [{"a": 1}], "event_data": [1], "trigger_id": "x"}}),
        ("run/fail", {"json": {"data": ["a"]}}),
        ("run/nowhere", {"json": {"data": ["a"]}}),
        ("call/nowhere", {"json": {"data": ["a"]}}),
        ("call/v2/nowhere", {"json": {"a": 1}}),
        ("cancel", {"json": {"session_hash": "a", "fn_index": 0, "event_id": "b"}}),
        ("reset", {"json": 3}),
    ]
    for path, body in nonsense:
        caplog.clear()
        assert http.post(f"{post}{path}", **body).status_code in (200, 400, 404, 422, 500), path
        assert len(caplog.records) <= 1, path
        assert all(not record.exc_info for record in caplog.records)
    for session in ("nowhere", "\u0000"):
        http.get(f"{post}queue/data", params={"session_hash": session})
    done = answers(url, join(url, function=3, text={"a": 1}).extensions["session"])
    assert done[-1]["msg"] == "process_completed"
    host, port = url.removeprefix("http://").strip("/").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        raw.recv(1000)
    said = capfd.readouterr()
    assert "Traceback" not in said.err + said.out + caplog.text


def test_proxies_of_the_environment_do_not_matter_and_ipv6_is_listened_at(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "socks5://127.0.0.1:9")
    with listen("::1", 0) as listener, serve(page_of_a_stream(), listener, host="::1") as served:
        assert served.urls[0].startswith("http://[::1]:")
        assert http.get(served.urls[0]).status_code == 200


def test_a_shared_page_is_known_by_its_public_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradio.networking.setup_tunnel", lambda *_: "https://abc.gradio.live")
    with (
        listen("127.0.0.1", 0) as listener,
        serve(page_of_a_stream(), listener, host="127.0.0.1", share=True) as served,
    ):
        local, public = served.urls
        assert public == "https://abc.gradio.live/"
        assert http.get(local, headers={"Host": "abc.gradio.live", "Origin": public[:-1]}).status_code == 200
        assert http.get(local, headers={"Host": "other.gradio.live"}).status_code == 421


def test_the_script_for_fewer_frames_stands_first(url: str, locked: str) -> None:
    script = (Path(__file__).parents[2] / "demo/frames.js").read_text().strip()
    for page in (url, f"{locked}demo/"):
        text = http.get(page).text
        assert text.index(script) < text.index("window.gradio_config")
