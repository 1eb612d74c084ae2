"""Pictures of each tab: `PYTHONPATH=.:tests python tests/browser/screenshots.py --runs DIR --output docs/pictures`.

The folder needs a GPT, an encoder-decoder, and a browser at /usr/bin/chromium.
"""

import argparse
from pathlib import Path

from demo_runs import serving
from playwright.sync_api import Page, expect, sync_playwright

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def write(page: Page, tokens: int) -> None:
    """Write with both boxes ticked, until it is done."""
    page.get_by_label("Compare").check()
    page.get_by_label("Colour").check()
    page.locator("#new-tokens input[type=number]").fill(str(tokens))
    page.locator("#new-tokens input[type=number]").blur()
    page.locator("#generate").click()
    expect(page.locator("#figures")).to_contain_text("as long as asked", timeout=120_000)
    page.wait_for_timeout(500)


def main() -> None:
    """Serve, click, and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with serving(Path.cwd(), "--runs", str(options.runs)) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 1130})
        page.goto(server.url)
        page.wait_for_function("document.querySelector('#write-run input')?.value")
        write(page, 500)
        page.screenshot(path=options.output / "write.png")
        page.get_by_role("tab", name="Benchmark").click()
        page.locator("#benchmark-start").click()
        expect(page.locator("#benchmark-figures")).to_contain_text("done", timeout=120_000)
        page.wait_for_timeout(500)
        page.screenshot(path=options.output / "benchmark.png")
        page.get_by_role("tab", name="Sequence to sequence").click()
        page.locator("#decode").click()
        expect(page.locator("#attention img")).to_be_visible(timeout=20_000)
        page.wait_for_timeout(500)
        page.screenshot(path=options.output / "seq2seq.png")
        page.get_by_role("tab", name="Training").click()
        page.wait_for_timeout(2000)
        for box in page.locator("#training-runs input").all():
            box.check()
        page.wait_for_timeout(3000)
        page.screenshot(path=options.output / "training.png", clip={"x": 0, "y": 0, "width": 1280, "height": 800})
        phone = browser.new_page(viewport={"width": 390, "height": 844})
        phone.goto(f"{server.url}?__theme=dark")
        phone.wait_for_function("document.querySelector('#write-run input')?.value")
        write(phone, 300)
        phone.screenshot(path=options.output / "phone_dark.png", full_page=True)
        browser.close()
    print(options.output)


if __name__ == "__main__":
    main()
