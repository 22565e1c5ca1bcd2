"""HTTP answers as a test reads them from a socket."""

import asyncio
import json
import re
from dataclasses import dataclass
from typing import Any

_MADE_UP_ID = re.compile(r"[0-9a-f]{32}")
_MOMENTARY = {"date", "server-timing", "content-length"}


@dataclass(frozen=True)
class Answer:
    """One answer; its headers have names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def is_last(self) -> bool:
        """Whether its connection ends."""
        return self.headers.get("connection") == "close"

    @property
    def content(self) -> Any:
        """The body, which is JSON."""
        return json.loads(self.body)

    @property
    def made_up_id(self) -> str | None:
        """The request id, if the service made it up."""
        given = self.headers["x-request-id"]
        return given if _MADE_UP_ID.fullmatch(given) else None

    @property
    def comparable(self) -> tuple[int, dict[str, str], Any]:
        """Status, headers and body without the service's own ids and times."""
        headers = {name: value for name, value in self.headers.items() if name not in _MOMENTARY}
        if self.made_up_id is not None:
            del headers["x-request-id"]
        content: Any = self.body
        if headers["content-type"].endswith("json"):
            content = self.content
            if self.made_up_id is not None and "request_id" in content:
                assert content.pop("request_id") == self.made_up_id
        return self.status, headers, content


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """Read an answer that has a Content-Length."""
    async with asyncio.timeout(30):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line, *lines = head.rstrip("\r\n").split("\r\n")
        pairs = [header.split(": ", 1) for header in lines]
        headers = {name.lower(): value for name, value in pairs}
        body = await reader.readexactly(int(headers["content-length"]))
    return Answer(int(line.split()[1]), headers, body)
