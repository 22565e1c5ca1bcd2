"""Clients that keep a service busy."""

import threading
import time
from collections import Counter
from types import TracebackType
from typing import Self

from tests.support.servers import client


class Load:
    """Clients that ask for predictions without a pause, during the block.

    Attributes:
        answers: beginning and end of each request, status, and the version that answered.
    """

    def __init__(self, url: str, image: bytes, clients: int) -> None:
        self._url, self._image = f"{url}/predict", image
        self._stop = threading.Event()
        self.answers: list[tuple[float, float, int, str]] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        with client() as session:
            while not self._stop.is_set():
                begun = time.monotonic()
                response = session.post(self._url, content=self._image)
                version = response.json()["version"] if response.status_code == 200 else ""
                self.answers.append((begun, time.monotonic(), response.status_code, version))

    def statuses(self) -> Counter[int]:
        return Counter(status for *_, status, _ in self.answers)

    def rate(self, seconds: float) -> float:
        """Answers a second in the last seconds."""
        since = time.monotonic() - seconds
        return sum(1 for _, end, status, _ in self.answers if end > since) / seconds
