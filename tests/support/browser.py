"""Debian's Chromium on the page of a real server, with the models that the project ships."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from bench import ROOT
from tests.support.servers import CONVSCOPE, Server, started

STORE = ROOT / "models_store"
CNN, FC = "simple-cnn/3", "fc/1"
SERVED = {"CONVSCOPE_MODELS": f"{CNN},{FC}", "CONVSCOPE_DEFAULT_MODEL": CNN}

# No requests to other hosts; a camera with a moving picture.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]

OpenPage = Callable[..., AbstractContextManager[Page]]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser per module, because no other event loop can run meanwhile."""
    path = os.environ.get("CONVSCOPE_CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("page") / "log"
    with started([*CONVSCOPE, "serve"], STORE, log, **SERVED) as running:
        yield running


@pytest.fixture
def open_page(chromium: Browser, server: Server) -> OpenPage:
    """Open an address of the page; errors fail the test, unless it allows `troubles`."""

    @contextmanager
    def run(
        query: str = "",
        *,
        width: int = 1440,
        scheme: str = "light",
        troubles: bool = False,
        url: str = server.url,
    ) -> Iterator[Page]:
        context = chromium.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if scheme == "dark" else "light",
        )
        page = context.new_page()
        said: list[str] = []
        hosts: set[str | None] = set()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
        page.goto(f"{url}/{query}")
        yield page
        context.close()
        assert hosts <= {"127.0.0.1", None, ""}  # blob: addresses have no host
        assert troubles or not said

    return run


def sample_file(name: str) -> Path:
    return ROOT / "app" / "web" / "samples" / f"{name}.png"
