"""The page in a real browser."""

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from demo_runs import Server, serving
from helpers import ROOT, command, python_file
from playwright.sync_api import Browser, Page, expect, sync_playwright

import demo.jobs

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
pytestmark = [
    pytest.mark.ci,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no browser: install Chromium as {CHROMIUM}"),
]
expect.set_options(timeout=30_000)  # However slow a machine is.


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[Server]:
    with serving(runs.parent, script=Path(__file__).with_name("slow_app.py")) as server:
        yield server


@pytest.fixture
def pause(runs: Path) -> Iterator[Path]:
    """While this file exists, a token takes its seconds: a request goes on as long as it is looked at."""
    file = runs.parent / "pause"
    file.write_text("0.02")
    yield file
    file.unlink(missing_ok=True)


class Watch:
    """What a page asked for, and what it complained of."""

    def __init__(self, page: Page) -> None:
        self.hosts: set[str] = set()
        self.errors: list[str] = []
        page.on(
            "request",
            lambda request: self.hosts.add(request.url.split("/")[2].split(":")[0]) if "//" in request.url else None,
        )
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def check(self) -> None:
        assert self.hosts == {"127.0.0.1"}, "no request leaves this machine"
        assert self.errors == []


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """The loaded page; in the end, nothing came from elsewhere, and there was no error."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    watch = Watch(page)
    opened(page, server.url)
    yield page
    watch.check()
    page.close()


def opened(page: Page, url: str) -> Page:
    page.goto(url)
    page.wait_for_function("document.querySelector('#write-run input')?.value.startsWith('small')", timeout=60_000)
    return page


def ask(page: Page, *, tokens: int, prompt: str = "7 times") -> None:
    page.locator("#prompt textarea").fill(prompt)
    page.locator("#new-tokens input[type=number]").fill(str(tokens))
    page.locator("#new-tokens input[type=number]").blur()
    page.locator("#generate").click()


def figures(page: Page) -> str:
    return page.locator("#figures").inner_text()


def test_text_and_chart_grow_until_stop(page: Page, pause: Path) -> None:
    page.get_by_label("Compare").check()
    ask(page, tokens=2000)
    lengths, places = [0], set()
    for _ in range(6):
        page.wait_for_function("n => document.querySelector('#text').innerText.length > n", arg=lengths[-1])
        lengths.append(len(page.locator("#text").inner_text()))
        boxes = [page.locator(name).bounding_box() for name in ("#text", "#chart .plot", "#figures dl", "#generate")]
        places.add(tuple((box["y"], box["height"]) for box in boxes if box))
    assert len(places) == 1, f"nothing moves while it streams: {places}"
    drawn = page.locator("#chart svg").inner_html()
    assert "polyline" in drawn
    page.wait_for_function("before => document.querySelector('#chart svg').innerHTML != before", arg=drawn)
    page.locator("#generate-stop").click()
    expect(page.locator("#figures")).to_contain_text("stopped")
    expect(page.locator("#generate-stop")).to_be_disabled()
    ended = page.locator("#text .written").inner_text()  # Beside it Gradio counts seconds, unseen, now and then.
    page.wait_for_timeout(600)
    assert page.locator("#text .written").inner_text() == ended


def test_a_page_where_nothing_moves_draws_nothing(browser: Browser, server: Server) -> None:
    page = browser.new_page()
    page.add_init_script(
        "window.frames_asked = 0; const ask = window.requestAnimationFrame;"
        "window.requestAnimationFrame = (draw) => { window.frames_asked++; return ask.call(window, draw); };"
    )
    opened(page, server.url)
    ask(page, tokens=20)
    expect(page.locator("#figures")).to_contain_text("20 of 20")
    page.wait_for_timeout(1000)
    before = page.evaluate("window.frames_asked")
    page.wait_for_timeout(2000)
    assert page.evaluate("window.frames_asked") - before < 5
    page.close()


def test_a_new_request_ends_the_running_one(page: Page, pause: Path) -> None:
    page.get_by_label("Compare").check()
    ask(page, tokens=2000)
    page.wait_for_timeout(600)
    page.get_by_label("Compare").uncheck()
    ask(page, tokens=7, prompt="9 times")
    expect(page.locator("#generate-stop")).to_be_enabled()
    pause.unlink()
    expect(page.locator("#figures")).to_contain_text("7 of 7: as long as asked")
    expect(page.locator("#generate-stop")).to_be_disabled()
    assert page.locator("#text .prompt").inner_text() == "9 times"


def test_a_new_request_takes_the_place_of_one_that_waits(
    browser: Browser, server: Server, page: Page, pause: Path
) -> None:
    other = opened(browser.new_page(), server.url)
    other.get_by_label("Compare").check()
    ask(other, tokens=2000)
    expect(other.locator("#figures")).to_contain_text("writing")
    ask(page, tokens=2000, prompt="7 times")
    expect(page.get_by_text("queue: 1/1")).to_be_visible()
    ask(page, tokens=7, prompt="9 times")
    ask(page, tokens=8, prompt="8 times")
    other.locator("#generate-stop").click()
    expect(page.locator("#figures")).to_contain_text("8 of 8: as long as asked")
    page.wait_for_timeout(1000)
    assert page.locator("#text .prompt").inner_text() == "8 times"
    other.get_by_label("Compare").check()
    ask(other, tokens=2000)
    expect(other.locator("#figures")).to_contain_text("writing")
    ask(page, tokens=9)
    expect(page.get_by_text("queue: 1/1")).to_be_visible()
    page.locator("#generate-stop").click()
    expect(page.get_by_text("queue: 1/1")).to_be_hidden()
    other.locator("#generate-stop").click()
    page.wait_for_timeout(1000)
    assert "8 of 8" in figures(page), "what was stopped while it waited does not begin"
    other.close()


def test_characters_are_coloured_and_name_the_alternatives(page: Page) -> None:
    page.get_by_label("Colour").check()
    ask(page, tokens=20, prompt="<b>")
    expect(page.locator("#figures")).to_contain_text("20 of 20")
    assert page.locator("#text span[title]").count() == 20
    assert page.locator("#text b").count() == 0, "a prompt is no HTML"
    title = page.locator("#text span[title]").first.get_attribute("title") or ""
    assert title.count("\n") == 4
    assert title.count("%") == 5
    expect(page.locator(".legend:visible span")).to_have_count(7)


def test_subwords_are_shown_with_their_borders(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("".join(f"{n} times {n % 7} is {n * (n % 7)}.\n" for n in range(300)))
    small = "--model.num_layers 1 --model.d_model 16 --model.num_heads 2 --model.max_len 32 --training.max_steps 20"
    options = f"--data.source text.txt --data.tokenizer bpe:300 {small} --tracking none --output_dir runs/small"
    assert command(ROOT / "launch/train_gpt.py", *options.split(), cwd=tmp_path).returncode == 0
    with serving(tmp_path) as server:
        page = browser.new_page()
        watch = Watch(page)
        opened(page, server.url)
        page.get_by_label("Colour").check()
        ask(page, tokens=20, prompt="7 times é")
        expect(page.locator("#figures")).to_contain_text("20 of 20")
        expect(page.locator("#figures")).to_contain_text("tokens of 9 characters")
        pieces = page.locator("#text .prompt span").all()
        assert 2 < len(pieces) < 9
        assert "".join(str(piece.text_content()) for piece in pieces) == "7 times é"
        for token in (pieces[0], page.locator("#text span[title]").first):
            assert "inset" in token.evaluate("e => getComputedStyle(e).boxShadow")
        assert 0 < page.locator("#text span[title]").count() <= 20
        page.get_by_role("tab", name="Training").click()
        expect(page.locator("#curve-bits")).to_contain_text("small")
        watch.check()
        page.close()


def test_a_request_that_is_refused_says_why_in_place_of_the_text(page: Page) -> None:
    expect(page.locator("#generate-stop")).to_be_disabled()
    example = page.locator("#prompt textarea").input_value()
    page.locator("#prompt textarea").fill("")
    page.get_by_role("tabpanel").locator("button.gallery-item").first.click()
    expect(page.locator("#prompt textarea")).to_have_value(example)
    ask(page, tokens=20)
    expect(page.locator("#figures")).to_contain_text("20 of 20")
    ask(page, tokens=20, prompt="ééé")
    expect(page.locator("#text")).to_contain_text("unknown character 'é'")
    assert page.locator("#text .written").count() == 0, "the old text goes"
    assert "20 of 20" not in figures(page)
    expect(page.locator("#generate-stop")).to_be_disabled()
    ask(page, tokens=20)
    expect(page.locator("#figures")).to_contain_text("20 of 20")
    expect(page.locator("#text")).not_to_contain_text("unknown")


def test_a_queue_that_is_full_is_a_message_in_place_of_the_text(browser: Browser, server: Server) -> None:
    page = opened(browser.new_page(), server.url)
    full = json.dumps({"detail": "Queue is full. Max size is 16 and size is 16."})
    page.route("**/queue/join*", lambda route: route.fulfill(status=503, body=full, content_type="application/json"))
    ask(page, tokens=20)
    expect(page.locator("#text")).to_contain_text("too many requests are waiting: try again in a while")
    expect(page.locator("#generate-stop")).to_be_disabled()
    page.close()


def test_texts_can_be_several_and_copied_and_downloaded(page: Page, tmp_path: Path) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_label("Precision").get_by_text("int8").or_(page.get_by_text("More of the sampler")).first.click()
    page.get_by_label("int8", exact=True).check()
    page.locator("#texts input[type=number]").fill("2")
    page.locator("#texts input[type=number]").blur()
    ask(page, tokens=20)
    expect(page.locator("#figures")).to_contain_text("20 of 20")
    expect(page.locator("#figures")).to_contain_text("int8")
    texts = [text.text_content() for text in page.locator("#text .written").all()]
    assert len(set(texts)) == 2
    assert all(text and text.startswith("7 times") and len(text) == 27 for text in texts)
    page.locator("#copy").click()
    expect(page.locator("#copy.done")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "\n\n".join(map(str, texts))
    with page.expect_download() as download:
        page.locator("#download").click()
    download.value.save_as(tmp_path / "text.txt")
    assert (tmp_path / "text.txt").read_text() == "\n\n".join(map(str, texts))


def test_the_benchmark_fills_its_table_and_offers_the_figures(page: Page, pause: Path, tmp_path: Path) -> None:
    pause.write_text("0.005")
    page.get_by_role("tab", name="Benchmark").click()
    page.locator("#benchmark-start").click()
    table = page.locator("#benchmark-rows")
    expect(table).to_contain_text("reference, RTX 5070 Ti")
    page.wait_for_function(
        "(rows => rows[0].cells[1].innerText != '-' && rows[3].cells[1].innerText == '-')"
        "(document.querySelectorAll('#benchmark-rows tbody tr'))",
        timeout=60_000,
    )
    pause.unlink()
    expect(page.locator("#benchmark-figures")).to_contain_text("done", timeout=60_000)
    assert "-" not in [cell.inner_text() for cell in table.locator("tbody td").all()]
    expect(page.locator("#benchmark-figures")).to_contain_text("fp32")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the JSON").click()
    download.value.save_as(tmp_path / "decode.json")
    assert '"rows"' in (tmp_path / "decode.json").read_text()


def test_sources_are_decoded_and_their_attention_shown(page: Page) -> None:
    page.get_by_role("tab", name="Sequence to sequence").click()
    offered = [button.inner_text() for button in page.get_by_role("tabpanel").locator("button.gallery-item").all()]
    assert offered
    assert all(re.fullmatch("[a-z]{1,4}", text) for text in offered), "strings that it was trained for"
    assert page.locator("#source textarea").input_value() == offered[0]
    page.locator("#source textarea").fill("abc")
    page.locator("#decode").click()
    expect(page.locator("#attention img")).to_be_visible(timeout=20_000)
    assert page.locator("#target p").first.inner_text() == "abc"
    corner = page.locator("#attention img").evaluate(
        "e => { const c = document.createElement('canvas').getContext('2d'); c.drawImage(e, 0, 0);"
        " return c.getImageData(1, 1, 1, 1).data[3]; }"
    )
    assert corner == 0, "it stands on the page's ground, light or dark"


def test_trainings_are_drawn(page: Page) -> None:
    page.get_by_role("tab", name="Training").click()
    expect(page.get_by_role("checkbox", name="small")).to_be_visible()
    page.get_by_role("checkbox", name="small").check()
    expect(page.locator("#curve-loss")).to_contain_text("small, val")
    expect(page.locator("#training-runs")).to_contain_text("copy")
    page.get_by_role("checkbox", name="copy").check()
    expect(page.locator("#curve-loss polyline")).to_have_count(4)
    page.get_by_role("tab", name="Write").click()
    page.get_by_role("tab", name="Training").click()
    page.wait_for_timeout(1000)
    assert page.get_by_role("checkbox", name="copy").is_checked(), "what was ticked stays"
    linear = page.locator("#curve-loss svg").inner_html()
    page.locator("#logarithmic").get_by_label("value").check()
    page.wait_for_function("before => document.querySelector('#curve-loss svg').innerHTML != before", arg=linear)
    page.get_by_role("checkbox", name="small").uncheck()
    page.locator("#find input").fill("cop")
    expect(page.get_by_role("checkbox", name="small")).to_have_count(0)
    assert page.get_by_role("checkbox", name="copy").is_checked()


def test_a_training_that_goes_on_is_followed(page: Page, runs: Path) -> None:
    live = runs / "live"
    (live / "samples").mkdir(parents=True)

    def train(step: int) -> None:
        line = {"step": step, "train_loss": 3 / step, "learning_rate": 0.001, "tokens_per_second": 1000}
        with (live / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        (live / f"samples/step-{step}.txt").write_text(f"said at {step}\n")

    def points() -> int:
        return len((page.locator("#curve-loss polyline").get_attribute("points") or "").split())

    try:
        train(1)
        page.get_by_role("tab", name="Training").click()
        expect(page.get_by_role("checkbox", name="live")).to_be_checked()
        for step in (2, 3):
            train(step)
            expect(page.locator("#sample textarea")).to_have_value(re.compile(f"^step {step}\nsaid at {step}\n"))
            assert points() == step
        page.get_by_role("tab", name="Write").click()
        for step in range(4, 8):
            train(step)
            page.wait_for_timeout(3000)
            if points() < step:
                break  # A look may have been on its way as the tab was left, but not for so long.
        else:
            raise AssertionError("curves are drawn that nobody sees")
    finally:
        shutil.rmtree(live)


CONTRASTS = """selector => {
  const pen = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const paint = (colour, alpha) => { pen.globalAlpha = alpha; pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); };
  const luminance = () => [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
  const hasText = e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim());
  const unseen = ':disabled, [aria-hidden=true], [data-testid=status-tracker].hide';
  const isOff = e => e.closest(unseen) || !e.checkVisibility({visibilityProperty: true});
  return [...document.querySelectorAll(selector)].filter(e => hasText(e) && !isOff(e)).map(e => {
    const line = [];
    for (let at = e; at; at = at.parentElement) line.unshift(getComputedStyle(at));
    paint('white', 1);
    line.forEach(style => paint(style.backgroundColor, 1));
    const ground = luminance();
    paint(line.at(-1).color, line.reduce((alpha, style) => alpha * style.opacity, 1));
    const [low, high] = [ground, luminance()].sort((a, b) => a - b);
    return [(high + 0.05) / (low + 0.05), e.innerText.slice(0, 40)];
  });
}"""
"""The contrast of each text that is shown, by the formula of WCAG 2, and how it begins."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it(browser: Browser, server: Server, scheme: str) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    watch = Watch(page)
    opened(page, f"{server.url}?__theme={scheme}")
    page.get_by_label("Colour").check()
    page.evaluate("window.scrollTo(0, 0)")
    expect(page.locator("#generate-stop")).to_be_disabled()
    for prompt, shown in (("7 times", "300 of 300"), ("é", "")):
        ask(page, tokens=300, prompt=prompt)
        expect(page.locator("#figures")).to_contain_text(shown)
        expect(page.locator("#text")).to_be_in_viewport(ratio=0.99)
    places = [page.locator(name).bounding_box() for name in ("#prompt", "#generate", "#text", "#new-tokens")]
    heights = [place["y"] for place in places if place]
    assert heights == sorted(heights), "the text comes before the settings"
    ask(page, tokens=300)
    expect(page.locator("#figures")).to_contain_text("300 of 300")
    for tab in ("Benchmark", "Sequence to sequence", "Training", "Write"):
        expect(page.get_by_role("tab")).to_have_count(4)
        assert len({box["y"] for one in page.get_by_role("tab").all() if (box := one.bounding_box())}) == 1, "one row"
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(500)
        for plot in page.locator(".chart .plot:visible").all():
            box = plot.bounding_box()
            assert box, tab
            assert box["width"] > 200, f"a chart of {tab} is squeezed"
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, f"{tab} is wider than the screen"
        (selected,) = page.evaluate(CONTRASTS, '[role="tab"][aria-selected="true"]')
        assert selected[1] == tab
        poor = [found for found in page.evaluate(CONTRASTS, "body *") if found[0] < 4.5]
        assert selected[0] >= 4.5
        assert poor == [], tab
        lines = page.locator(".chart .line:visible").all()
        assert all(line.evaluate("e => e.tagName != 'polyline' || getComputedStyle(e).opacity == 1") for line in lines)
    colours = page.locator("#text .written").evaluate(
        "e => [getComputedStyle(e).color, getComputedStyle(e.closest('#text')).backgroundColor]"
    )
    text, ground = (sum(map(float, colour.split("(")[1].rstrip(")").split(",")[:3])) for colour in colours)
    assert (text < ground) == (scheme == "light")
    watch.check()
    page.close()


@pytest.mark.nightly
def test_a_hundred_requests_from_four_visitors_leave_no_memory_behind(browser: Browser, server: Server) -> None:
    pages = [opened(browser.new_context().new_page(), server.url) for _ in range(4)]
    watches = [Watch(page) for page in pages]

    def ask_all(tokens: int) -> None:
        for page in pages:
            ask(page, tokens=tokens)
        for page in pages:
            expect(page.locator("#figures")).to_contain_text(f"{tokens} of {tokens}: as long as asked", timeout=30_000)

    process = psutil.Process(server.pid)
    for tokens in range(20, 25):
        ask_all(tokens)
    before = process.memory_info().rss
    for tokens in range(25, 45):
        ask_all(tokens)
    grown = process.memory_info().rss - before
    assert grown < 60e6, f"{grown / 1e6:.0f} MB more"
    for watch, page in zip(watches, pages, strict=True):
        assert watch.errors == []
        page.close()


def test_who_waits_sees_its_place_and_a_tab_that_is_closed_ends_its_request(
    browser: Browser, server: Server, page: Page, pause: Path
) -> None:
    other = opened(browser.new_page(), server.url)
    other.get_by_label("Compare").check()
    ask(other, tokens=2000)
    expect(other.locator("#figures")).to_contain_text("writing")
    ask(page, tokens=8)
    expect(page.get_by_text("queue: 1/1")).to_be_visible()
    other.close()
    pause.unlink()
    start = time.monotonic()
    expect(page.locator("#figures")).to_contain_text("8 of 8: as long as asked", timeout=30_000)
    assert time.monotonic() - start < demo.jobs.FORSAKEN / 2


def test_the_first_visit_offers_to_train_the_quick_model(browser: Browser, tmp_path: Path) -> None:
    slow_app = Path(__file__).with_name("slow_app.py")
    with serving(tmp_path, script=slow_app, PYTHON_FILE=str(python_file(tmp_path))) as server:
        page = browser.new_page()
        watch = Watch(page)
        page.goto(server.url)
        expect(page.get_by_text("There is no trained model under runs/ yet")).to_be_visible(timeout=20_000)
        page.get_by_role("button", name="Train the quick model").click()
        expect(page.locator(".bar")).to_be_visible()
        expect(page.get_by_text("training the quick model: step")).to_be_visible(timeout=120_000)
        page.get_by_role("button", name="Stop the training").click()
        expect(page.get_by_text("the training ended early (exit code 3)")).to_be_visible(timeout=60_000)
        page.wait_for_function(
            "document.querySelector('#write-run input')?.value.startsWith('gpt-quick-1')", timeout=20_000
        )
        page.get_by_role("tab", name="Benchmark").click()
        page.wait_for_function("document.querySelector('#benchmark-run input')?.value.startsWith('gpt-quick-1')")
        watch.check()
        page.close()
