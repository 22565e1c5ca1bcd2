"""The documents' pictures of the page of a running service: `python -m bench.screenshots URL`."""

import os
import shutil

import click
from playwright.sync_api import Page, sync_playwright

from bench import ROOT

IMAGES = ROOT / "docs" / "images"
WIDTH, HEIGHT = 1280, 860
_ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
_CLASSIFY, _NETWORK, _MATRIX = (
    "?sample=horse&models=simple-cnn/3,fast/4,resnet20/2,speednet/3",
    "?view=network&model=simple-cnn/3&sample=horse&layer=conv1&channel=11",
    "?view=matrix&model=simple-cnn/3&true=cat&predicted=dog&order=similarity",
)


@click.command(help=__doc__)
@click.argument("url", default="http://127.0.0.1:8000")
def main(url: str) -> None:
    """Open three views in Chromium and take their pictures."""
    chromium = os.environ.get("CONVSCOPE_CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(_ARGUMENTS))
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        for name, view in (("classify", _CLASSIFY), ("network", _NETWORK), ("matrix", _MATRIX)):
            page.goto(f"{url}/{view}")
            page.wait_for_load_state("networkidle")
            _show_the_result(page)
            page.screenshot(path=IMAGES / f"page-{name}.png")
        browser.close()


def _show_the_result(page: Page) -> None:
    """Scroll past the choice of a picture."""
    first = page.locator(".cards, .way, .matrix").first
    first.wait_for()
    first.evaluate("element => scrollTo(0, element.getBoundingClientRect().top - 90)")


if __name__ == "__main__":
    main()
