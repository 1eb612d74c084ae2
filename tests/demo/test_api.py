"""The page's functions as an API, over a real server."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from demo_runs import serving
from forking import python
from gradio_client import Client
from gradio_client.exceptions import AppError
from helpers import ROOT, free_port

import demo.app
from demo.serving import listen
from training.runtime.errors import InputError, exit_code

LONG: dict[str, Any] = {"max_new_tokens": 2000, "when_full": "slide", "api_name": "/generate"}


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[str]:
    """A server with room for two who wait."""
    with serving(runs.parent, "--waiting", "2") as server:
        yield server.url


@pytest.fixture
def client(server: str) -> Client:
    return Client(server, verbose=False)


def test_names_and_descriptions_are_open_and_nothing_else(client: Client) -> None:
    found = client.view_api(return_format="dict", print_info=False)
    assert set(found["named_endpoints"]) == {"/generate", "/benchmark", "/transduce"}
    assert found["unnamed_endpoints"] == {}
    names = [parameter["parameter_name"] for parameter in found["named_endpoints"]["/generate"]["parameters"]]
    assert names[:4] == ["run", "prompt", "max_new_tokens", "temperature"]
    assert found["named_endpoints"]["/transduce"]["description"].startswith("The target of a source")


def test_generate_streams(client: Client) -> None:
    job = client.submit("small", "7 times", **LONG)
    answer = job.result(60)
    texts = [output["text"] for output in job.outputs()]
    assert len(texts) >= 2
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert len(answer["text"]) == answer["tokens"] == 2000
    assert answer["prompt_tokens"] == len("7 times")
    assert answer["end"] == "as long as asked"
    assert answer["tokens_per_second"] > 0
    again = client.predict("small", "7 times", **LONG)
    assert again["text"] == answer["text"], "the same seed"


def test_a_job_that_is_cancelled_makes_room_for_the_next(client: Client) -> None:
    job = client.submit("small", "7 times", compare=True, **LONG)
    while not job.outputs():
        time.sleep(0.05)
    start = time.monotonic()
    assert job.cancel()
    assert client.predict("small", "7 times", 5, api_name="/generate")["tokens"] == 5
    assert time.monotonic() - start < 10


def test_a_queue_that_is_full_says_so(server: str) -> None:
    clients = [Client(server, verbose=False) for _ in range(4)]
    first = clients[0].submit("small", "7 times", compare=True, **LONG)
    while not first.outputs():
        time.sleep(0.05)
    waiting = [client.submit("small", "7 times", 5, api_name="/generate") for client in clients[1:3]]
    while (place := waiting[1].status()).rank is None:
        time.sleep(0.05)
    assert (place.rank, place.queue_size) in ((1, 2), (0, 1), (0, 2))
    with pytest.raises(Exception, match=r"(?i)queue.*full"):
        clients[3].predict("small", "7 times", 5, api_name="/generate")
    first.cancel()
    assert [job.result(60)["tokens"] for job in waiting] == [5, 5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["../../etc", "a"], "there is no trained run '../../etc'"),
        (["small", "7", 10**9], "max_new_tokens must be at least 1 and at most 2,000"),
        (["small", "7", "many"], "max_new_tokens must be a whole number from 1 to 2,000, got 'many'"),
        (["small", "7", 5, None], "temperature must be a number from 0 to 10, got None"),
        (["small", ["7"], 5], r"the prompt must be text, got ['7']"),
        (["small", "7" * 8001], "the prompt has 8,001 characters, at most 8,000 are allowed"),
    ],
)
def test_bad_input_is_one_line(client: Client, arguments: list[Any], message: str) -> None:
    with pytest.raises(AppError, match=re.escape(message)):
        client.predict(*arguments, api_name="/generate")


def test_benchmark_and_transduce(client: Client) -> None:
    figures = client.predict("small", 100, api_name="/benchmark")
    assert [row["new_tokens"] for row in figures["rows"]] == [100]
    assert figures["end"] == "done"
    found = client.predict("copy", "abca", 3, api_name="/transduce")
    assert found["target"] == found["beams"][0]["target"]
    assert len(found["beams"]) == 3


def test_the_example_of_the_docs_runs(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(from gradio_client.*?)```", (ROOT / "docs/demo.md").read_text(), re.DOTALL)
    for name, ours in (("http://127.0.0.1:7860", server), ("gpt-quick-1", "small"), ("seq2seq-reverse-1", "copy")):
        assert name in example
        example = example.replace(name, ours)
    exec(example.replace("ROMEO:", "7 times").replace("stressed", "abca"))
    assert len(capsys.readouterr().out.splitlines()) >= 1


def fetch(url: str, data: bytes | None = None, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=10) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


def test_no_file_is_reachable_and_none_is_taken(server: str, runs: Path) -> None:
    secret = runs / "small/config.yaml"
    for path in (f"file={secret}", f"gradio_api/file={secret}", "gradio_api/file=/etc/passwd", "file=../../etc/passwd"):
        status, content = fetch(f"{server}{path}")
        assert status in (403, 404), path
        assert "root:" not in content
        assert "max_steps" not in content
    boundary = "x"
    for length in (0, 1, 100):
        body = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\n{"a" * length}'
        body += f"\r\n--{boundary}--\r\n"
        status, content = fetch(
            f"{server}gradio_api/upload",
            body.encode(),
            **{"Content-Type": f"multipart/form-data; boundary={boundary}"},
        )
        assert status == 404, content
    assert fetch(f"{server}gradio_api/deep_link?session_hash=x")[0] == 404
    for path in ("monitoring", "gradio_api/monitoring", "monitoring/summary"):
        status, content = fetch(f"{server}{path}")
        assert status >= 400 or "monitoring" not in content.lower()


def test_the_page_asks_for_fewer_frames_before_any_other_script(server: str) -> None:
    status, page = fetch(server)
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)
    assert (status, scripts[0].strip()) == (200, (ROOT / "demo/frames.js").read_text().strip())
    assert page.rstrip().endswith("</html>")


def test_nothing_on_the_page_comes_from_elsewhere(server: str) -> None:
    status, page = fetch(server)
    assert status == 200
    loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=\"(https?://[^\"]+)\"", page)
    assert [url for url in loaded if not url.startswith("http://127.0.0.1")] == []
    config = json.loads(fetch(f"{server}config")[1])
    assert not config["analytics_enabled"]


def test_visitors_must_know_the_password(runs: Path) -> None:
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "socks5://127.0.0.1:9")
    with serving(runs.parent, "--host", "::1", DEMO_AUTH="me:word", **proxies) as server:
        assert server.url.startswith("http://[::1]:")
        with pytest.raises(Exception, match=r"(?i)auth|401|login|credentials"):
            Client(server.url, verbose=False).predict("small", "7", 5, api_name="/generate")
        known = Client(server.url, auth=("me", "word"), verbose=False)
        assert known.predict("small", "7", 5, api_name="/generate")["tokens"] == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--auth", "me"], "auth must be USER:PASSWORD, neither of them empty"),
        (["--port", "99999"], "port must be at least 1 and at most 65,535, got 99999"),
        (["--concurrency", "0"], "concurrency must be at least 1 and at most 64, got 0"),
        (["--mode", "compiled", "--concurrency", "2"], "mode compiled serves one request at a time"),
        (["--mode", "fast"], "mode: expected one of 'auto', 'eager', 'compiled', 'native', got fast"),
        (["--places", "0"], "places must be at least 1 and at most 10,000, got 0"),
        (["--host", "192.0.2.1"], "cannot listen at 192.0.2.1:7860: "),
        (["--new_tokens", "3"], "new_tokens must be at least 500"),
    ],
)
def test_bad_options_are_one_line(
    options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["app.py", *options])
    assert exit_code(demo.app.main) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}"), said
    assert said.count("\n") == 1


STARTS_TRAINING = """
import sys
import demo.app
import demo.page

build = demo.page.build
demo.page.build = lambda session, training: (training.start(), build(session, training))[1]
sys.exit(demo.app.main())
"""


def trains_in(process: psutil.Process, folder: Path) -> bool:
    with suppress(psutil.Error):
        return process.cwd() == str(folder) and "train_gpt.py" in " ".join(process.cmdline())
    return False


@pytest.mark.nightly
def test_a_server_that_is_ended_ends_the_training_of_the_quick_model(tmp_path: Path) -> None:
    server = subprocess.Popen(
        [*python(), "-c", STARTS_TRAINING, "--port", free_port()],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    assert next(line for line in server.stdout if line.startswith("open http"))
    trainings = [process for process in psutil.process_iter() if trains_in(process, tmp_path)]
    assert len(trainings) == 1
    while not (tmp_path / "runs/gpt-quick-1/metrics.jsonl").exists():
        time.sleep(0.2)
    server.terminate()
    assert server.wait(60) == 143
    assert not trainings[0].is_running()


def test_a_port_that_is_taken_is_named(server: str) -> None:
    host, port = server.removeprefix("http://").strip("/").split(":")
    with pytest.raises(InputError, match=f"^cannot listen at {host}:{port}: Address already in use$"):
        listen(host, int(port))
