"""What the page costs the decoder: `PYTHONPATH=.:tests python tests/browser/page_cost.py --runs DIR --run NAME`.

Tokens per second of the same text, in turn and many times, since machines drift, and all of them by jobs of one server:
drawn by nobody, served to a client that draws nothing (as a browser on another machine costs this one), and shown by a
browser on the same machine, if it has one. The first token, which reads the prompt, does not count.

Apart from that, and steadier: the share of all cores' time that goes, while text is shown, to the threads of the server
that compute no text, and to the browser; and to the browser while none is written.
"""

import argparse
import json
import multiprocessing
import os
import random
import re
import statistics
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, get_args

from decoding.choices import Mode
from demo.page import build
from demo.quick_training import QuickTraining
from demo.serving import listen, serve
from demo.session import Session
from training.runtime.device import inference_device
from training.runtime.machine import describe_machine
from training.runtime.threads import set_cpu_threads

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
PROMPT = "ROMEO:\n"
COMPUTES = 0.5
"""A thread of the server that is busy for more than this share of the time computes text."""


class Client:
    """Asks as the page does, reads the answer to its end, and draws nothing."""

    def __init__(self, url: str, *, coloured: bool) -> None:
        self._url, self._coloured = url, coloured
        self._bytes = 0
        config = json.load(urllib.request.urlopen(f"{url}config"))
        places = {component["props"].get("elem_id"): component["id"] for component in config["components"]}
        events = config["dependencies"]
        self._event = next(e for e in events if places["text"] in e["outputs"] and e["types"]["generator"])
        self._asking = next(e for e in events if e["outputs"][:1] == self._event["inputs"][:1])

    def rate(self, run: str, tokens: int) -> tuple[float, int]:
        """Tokens per second of a text, and bytes of the answer."""
        number = json.loads(self._run(self._asking, []).splitlines()[-1])["output"]["data"][0]
        sampler = [0.8, 0, 1, 0, 1, "", "slide", 1, False, self._coloured, 1, "fp32"]
        self._bytes = 0
        answer = self._run(self._event, [number, run, PROMPT, tokens, *sampler])
        rate = float(re.findall(r"tokens per second</dt><dd>([\d.,]+)", answer)[-1].replace(",", ""))
        return rate, self._bytes

    def _run(self, event: dict[str, Any], data: list[Any]) -> str:
        asked = {"data": data, "fn_index": event["id"], "session_hash": "cost"}
        join = urllib.request.Request(f"{self._url}gradio_api/queue/join", json.dumps(asked).encode())
        join.add_header("Content-Type", "application/json")
        urllib.request.urlopen(join).close()
        answer = ""
        with urllib.request.urlopen(f"{self._url}gradio_api/queue/data?session_hash=cost") as lines:
            for line in lines:
                self._bytes += len(line)
                if line.startswith(b"data: "):
                    answer += line.decode().removeprefix("data: ")
                if b"process_completed" in line:
                    return answer
        raise AssertionError(answer)


class Usage:
    """Processor time of this process's threads and of the browser, since it was made."""

    def __init__(self) -> None:
        self._start, self._before = time.monotonic(), self._now()

    def shares(self) -> tuple[float, float]:
        """Of all cores' time: what the server's other threads took, and what the browser did."""
        passed, now = time.monotonic() - self._start, self._now()
        spent = {task: (seconds - self._before.get(task, 0.0)) / passed for task, seconds in now.items()}
        others = [share for (process, _), share in spent.items() if process == os.getpid() and share < COMPUTES]
        browser = [share for (process, _), share in spent.items() if process != os.getpid()]
        return sum(others) / (os.cpu_count() or 1), sum(browser) / (os.cpu_count() or 1)

    @staticmethod
    def _now() -> dict[tuple[int, int], float]:
        """Seconds of each thread, by process and thread."""
        seconds = {}
        for stat in Path("/proc").glob("[0-9]*/task/[0-9]*/stat"):
            process, thread = int(stat.parts[2]), int(stat.parts[4])
            with suppress(OSError):  # It has ended meanwhile.
                rest = stat.read_text().rpartition(")")[2]
                if process == os.getpid() or Path(f"/proc/{process}/comm").read_text().startswith("chrom"):
                    ticks = [int(value) for value in rest.split()[11:13]]
                    seconds[process, thread] = sum(ticks) / os.sysconf("SC_CLK_TCK")
        return seconds


class Browser:
    """Chromium on the same machine, which shows the page."""

    def __init__(self, page: Any, url: str, options: argparse.Namespace) -> None:
        self._page, self._options = page, options
        self.shares: list[tuple[float, float]] = []
        page.goto(url)
        page.wait_for_function("document.querySelector('#write-run input')?.value")
        page.wait_for_timeout(2000)  # The page asks for the runs once more when it has come.
        page.locator("#write-run input").click()
        page.get_by_role("option").filter(has_text=f"{options.run} (").click()
        assert page.locator("#write-run input").input_value().startswith(f"{options.run} (")
        page.locator("#new-tokens input[type=number]").fill(str(options.tokens))
        page.locator("#new-tokens input[type=number]").blur()
        page.locator("#coloured input").set_checked(options.coloured)
        page.wait_for_timeout(2000)
        used = Usage()
        page.wait_for_timeout(5000)
        self.idle = used.shares()[1]

    @classmethod
    @contextmanager
    def opened(cls, url: str, options: argparse.Namespace) -> Iterator["Browser"]:
        """It, while it is open."""
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
            yield cls(browser.new_page(), url, options)
            browser.close()

    def rate(self, expected: float) -> float:
        """Tokens per second of a text."""
        from playwright.sync_api import expect

        self._page.locator("#generate").click()
        self._page.wait_for_timeout(300)
        used = Usage()
        self._page.wait_for_timeout(1000 * self._options.tokens / expected)  # To look for its end is work as well.
        expect(self._page.locator("#figures")).to_contain_text("as long as asked", timeout=300_000)
        self.shares.append(used.shares())
        return float(self._page.locator("#figures dd").first.inner_text().replace(",", ""))


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--run", type=str, required=True)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--mode", choices=get_args(Mode), default="auto")
    parser.add_argument("--coloured", action="store_true", help="Colour characters by their probability.")
    parser.add_argument("--no_browser", action="store_true", help="Open none: an open page takes time as well.")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure in turn, print, and write the figures."""
    options = parse()
    set_cpu_threads()
    # This thread computes nothing: a second team of OpenMP threads would make the jobs' own wait in another way.
    session = Session(options.runs, inference_device(), mode=options.mode)
    page = build(session, QuickTraining(options.runs))
    asked: dict[str, Any] = {"max_new_tokens": options.tokens, "when_full": "slide", "seed": 1}
    sizes, modes = [], set()
    with ExitStack() as stack:
        url = stack.enter_context(serve(page, listen("127.0.0.1", 0), host="127.0.0.1")).urls[0]
        # In a process of its own, as anybody's.
        client = stack.enter_context(ProcessPoolExecutor(1, multiprocessing.get_context("spawn")))
        has_browser = CHROMIUM.exists() and not options.no_browser
        browser = stack.enter_context(Browser.opened(url, options)) if has_browser else None

        def drawn_by_nobody() -> float:
            *_, last = session.write("me", options.run, PROMPT, alternatives=options.coloured, **asked)
            assert last.tokens_per_second is not None
            modes.add(last.mode)
            return last.tokens_per_second

        def served() -> float:
            rate, size = client.submit(ask, url, options.run, options.tokens, coloured=options.coloured).result()
            sizes.append(size)
            return rate

        arms: dict[str, Callable[[], float]] = {"job": drawn_by_nobody, "served": served}
        rates: dict[str, list[float]] = {"job": [], "served": []}
        if browser is not None:
            rates["browser"] = []
            arms["browser"] = lambda: browser.rate(statistics.median(rates["job"] or [100.0]))
        order = random.Random(0)
        for repeat in range(-1, options.repeats):
            for name in order.sample(list(arms), len(arms)):
                rate = arms[name]()
                if repeat >= 0:
                    rates[name].append(rate)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    costs = {
        name: statistics.median(1 - rate / by_itself for rate, by_itself in zip(values, rates["job"], strict=True))
        for name, values in rates.items()
    }
    figures = describe_machine(session.catalogue.gpt(options.run).model.embedding.weight.device)
    figures |= {"run": options.run, "new_tokens": options.tokens, "coloured": options.coloured, "mode": modes.pop()}
    print(f"{figures['device']}, {figures['mode']}, {options.tokens:,} tokens, answers of {sizes[-1]:,} bytes")
    for name, median in medians.items():
        spread = f"({min(rates[name]):,.1f} to {max(rates[name]):,.1f})"
        print(f"{name:8} {median:10,.1f} tokens/s {spread}, costs {costs[name]:.1%} of its own turn's `job`")
    if browser is not None:
        figures["share_of_all_cores_idle_browser"] = browser.idle
        print(f"idle     {browser.idle:10.1%} of all cores' time: the browser, while nothing is written")
        for name, values in zip(("server", "browser"), zip(*browser.shares[1:], strict=True), strict=True):
            figures |= {f"share_of_all_cores_{name}": statistics.median(values)}
            print(f"{name:8} {statistics.median(values):10.1%} of all cores' time, but for threads that compute text")
    if options.json:
        figures |= {"bytes_of_an_answer": sizes[-1], "tokens_per_second": medians, "costs": costs, "all": rates}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def ask(url: str, run: str, tokens: int, *, coloured: bool) -> tuple[float, int]:
    """What a client in another process does."""
    return Client(url, coloured=coloured).rate(run, tokens)


if __name__ == "__main__":
    main()
