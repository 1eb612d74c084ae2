"""What the page costs the decoder: `PYTHONPATH=.:tests python tests/browser/page_cost.py --runs DIR --run NAME`.

Tokens per second of the same short text, in turn and many times, since machines drift: by the sampler alone, as a job
of the session that nobody draws, served to a client that draws nothing (as a browser on another machine costs this
one), and shown by a browser on the same machine. The first token, which reads the prompt, does not count.

Apart from that, and steadier: the share of all cores' time that goes, while text is shown, to the threads of the server
that compute no text, and to the browser.
"""

import argparse
import json
import os
import re
import statistics
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from demo_runs import serving
from playwright.sync_api import expect, sync_playwright

from demo.session import Session
from gpt.decoding import Decoder
from gpt.trainer import LoadedGPT
from gpt.writing import write
from training.benchmarking import describe_machine
from training.device import set_cpu_threads

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
PROMPT = "ROMEO:\n"
COMPUTES = 0.5
"""A thread of the server that is busy for more than this share of the time computes text."""


def alone(loaded: LoadedGPT, tokens: int) -> float:
    """Tokens per second of the sampler."""
    times: list[float] = []
    options: dict[str, Any] = {"max_new_tokens": tokens, "when_full": "slide", "seed": 1}
    for _ in write(
        Decoder(loaded.model), loaded.tokenizer, PROMPT, on_token=lambda: times.append(time.perf_counter()), **options
    ):
        pass
    return (len(times) - 1) / (times[-1] - times[0])


class Client:
    """Asks as the page does, reads the answer to its end, and draws nothing."""

    def __init__(self, url: str, *, coloured: bool) -> None:
        self._url, self._coloured = url, coloured
        self.bytes = 0
        config = json.load(urllib.request.urlopen(f"{url}config"))
        places = {component["props"].get("elem_id"): component["id"] for component in config["components"]}
        events = config["dependencies"]
        self._event = next(e for e in events if places["text"] in e["outputs"] and e["types"]["generator"])
        self._asking = next(e for e in events if e["outputs"] == self._event["inputs"][:1])

    def rate(self, run: str, tokens: int) -> float:
        """Tokens per second of a text."""
        number = json.loads(self._run(self._asking, []).splitlines()[-1])["output"]["data"][0]
        sampler = [0.8, 0, 1, 0, 1, "", "slide", 1, False, self._coloured]
        self.bytes = 0
        answer = self._run(self._event, [number, run, PROMPT, tokens, *sampler])
        return float(re.findall(r"tokens per second</dt><dd>([\d.]+)", answer)[-1])

    def _run(self, event: dict[str, Any], data: list[Any]) -> str:
        asked = {"data": data, "fn_index": event["id"], "session_hash": "cost"}
        join = urllib.request.Request(f"{self._url}gradio_api/queue/join", json.dumps(asked).encode())
        join.add_header("Content-Type", "application/json")
        urllib.request.urlopen(join).close()
        answer = ""
        with urllib.request.urlopen(f"{self._url}gradio_api/queue/data?session_hash=cost") as lines:
            for line in lines:
                self.bytes += len(line)
                if line.startswith(b"data: "):
                    answer += line.decode().removeprefix("data: ")
                if b"process_completed" in line:
                    return answer
        raise AssertionError(answer)


class Usage:
    """Processor time of the server's threads and of the browser, since it was made."""

    def __init__(self, server: int) -> None:
        self._server, self._start, self._before = server, time.monotonic(), self._now(server)

    def shares(self) -> tuple[float, float]:
        """Of all cores' time: what the server's other threads took, and what the browser did."""
        passed, now = time.monotonic() - self._start, self._now(self._server)
        spent = {task: (seconds - self._before.get(task, 0.0)) / passed for task, seconds in now.items()}
        others = [share for (process, _), share in spent.items() if process == self._server and share < COMPUTES]
        browser = [share for (process, _), share in spent.items() if process != self._server]
        return sum(others) / (os.cpu_count() or 1), sum(browser) / (os.cpu_count() or 1)

    @staticmethod
    def _now(server: int) -> dict[tuple[int, int], float]:
        """Seconds of each thread, by process and thread."""
        seconds = {}
        for stat in Path("/proc").glob("[0-9]*/task/[0-9]*/stat"):
            process, thread = int(stat.parts[2]), int(stat.parts[4])
            with suppress(OSError):  # It has ended meanwhile.
                rest = stat.read_text().rpartition(")")[2]
                if process == server or Path(f"/proc/{process}/comm").read_text().startswith("chrom"):
                    ticks = [int(value) for value in rest.split()[11:13]]
                    seconds[process, thread] = sum(ticks) / os.sysconf("SC_CLK_TCK")
        return seconds


def main() -> None:
    """Measure in turn, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--run", type=str, required=True)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--coloured", action="store_true", help="Colour characters by their probability.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    set_cpu_threads()
    session = Session(options.runs)
    rates: dict[str, list[float]] = {"alone": [], "session": [], "served": [], "browser": []}
    usage: dict[str, list[float]] = {"server": [], "browser": []}
    with serving(Path.cwd(), "--runs", str(options.runs)) as server, sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS).new_page()
        page.goto(server.url)
        page.wait_for_function("document.querySelector('#write-run input')?.value")
        page.locator("#write-run input").fill(options.run)
        page.locator("#write-run input").press("Enter")
        page.locator("#new-tokens input[type=number]").fill(str(options.tokens))
        page.locator("#new-tokens input[type=number]").blur()
        page.locator("#coloured input").set_checked(options.coloured)

        def shown() -> float:
            page.locator("#generate").click()
            page.wait_for_timeout(300)
            used = Usage(server.pid)
            # Looking whether it is done would be work as well.
            page.wait_for_timeout(1000 * options.tokens / max(rates["alone"], default=100.0))
            expect(page.locator("#figures")).to_contain_text("as long as asked", timeout=300_000)
            for name, share in zip(usage, used.shares(), strict=True):
                usage[name].append(share)
            return float(page.locator("#figures dd").first.inner_text().replace(",", ""))

        def in_session() -> float:
            asked: dict[str, Any] = {"max_new_tokens": options.tokens, "when_full": "slide", "seed": 1}
            asked["alternatives"] = options.coloured
            *_, last = session.write("me", options.run, PROMPT, **asked)
            assert last.tokens_per_second is not None
            return last.tokens_per_second

        client = Client(server.url, coloured=options.coloured)

        arms = {
            "alone": lambda: alone(session.catalogue.gpt(options.run), options.tokens),
            "session": in_session,
            "served": lambda: client.rate(options.run, options.tokens),
            "browser": shown,
        }
        for repeat in range(-1, options.repeats):
            for name, arm in arms.items() if repeat % 2 else reversed(arms.items()):
                rate = arm()
                if repeat >= 0:
                    rates[name].append(rate)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    costs = {
        name: statistics.median(1 - rate / by_itself for rate, by_itself in zip(values, rates["alone"], strict=True))
        for name, values in rates.items()
    }
    for name, median in medians.items():
        spread = f"({min(rates[name]):.1f} to {max(rates[name]):.1f})"
        print(f"{name:8} {median:8.1f} tokens/s {spread}, costs {costs[name]:.1%} of its own turn's `alone`")
    shares = {name: statistics.median(values[1:]) for name, values in usage.items()}
    for name, share in shares.items():
        print(f"{name:8} {share:8.1%} of the time of {os.cpu_count()} cores, but for the threads that compute text")
    if options.json:
        figures = describe_machine(torch.device("cpu"))
        figures |= {
            "run": options.run,
            "new_tokens": options.tokens,
            "coloured": options.coloured,
            "bytes_of_the_last_answer": client.bytes,
            "tokens_per_second": medians,
            "costs": costs,
            "shares_of_all_cores": shares,
            "all": rates,
        }
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
