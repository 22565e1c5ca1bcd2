"""What the server asks of an application."""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from starlette.types import Receive, Scope, Send

from app.telemetry.metrics import Metrics
from app.telemetry.requests import RequestState


class Pending(Protocol):
    """A request that the application has taken whole."""

    @property
    def state(self) -> RequestState:
        """The facts about the request."""

    def end(self) -> None:
        """Give it up: it is not answered, but counted with the state's `ended_with`."""


class Application(Protocol):
    """An application whose models are open, as a worker serves it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or run the lifespan (ASGI)."""

    def answer(
        self,
        target: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes,
        started: float,
        reply: Callable[[int, bytes, bytes], bool],
    ) -> Pending | None:
        """Take a whole POST to one of `fast_paths`, or leave it to ASGI and return None.

        Args:
            target: of the request.
            headers: of the request; names are in lower case.
            body: of at most `most_bytes`.
            started: when the head had arrived, in `time.perf_counter()`.
            reply: writes status, lines of headers, and body; is called later, and once. Returns
                whether the client was still there.
        """

    @property
    def fast_paths(self) -> Collection[str]:
        """The paths whose POSTs `answer` may take, and which count when they are refused."""

    @property
    def most_bytes(self) -> int:
        """The size of the largest body that `answer` takes."""

    @property
    def metrics(self) -> Metrics:
        """The metrics that it counts in."""

    @property
    def stuck_seconds(self) -> float:
        """The age of the oldest batch that is being computed; only while it serves."""
