"""The page at /vision/ of a real nginx, in a browser."""

from pathlib import Path

from playwright.sync_api import expect

from tests.support.browser import OpenPage
from tests.support.nginx import needs_nginx, nginx
from tests.support.servers import Server


@needs_nginx
def test_page_classifies_below_a_prefix(
    open_page: OpenPage, server: Server, tmp_path: Path
) -> None:
    header = "proxy_set_header X-Forwarded-Prefix /vision;"
    with (
        nginx(tmp_path, server, strip="/", header=header) as address,
        open_page(url=f"{address}/vision") as page,
    ):
        answers = page.locator("article .answer strong")
        expect(answers).to_have_count(2, timeout=30_000)
        assert all(text.strip() for text in answers.all_inner_texts())
