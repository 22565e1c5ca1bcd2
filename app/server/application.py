"""What the server asks of an application."""

from collections.abc import Collection
from typing import Protocol

from starlette.types import Receive, Scope, Send

from app.errors import QueueFull
from app.telemetry.metrics import Metrics
from app.telemetry.requests import ClientAddress, Headers, RequestState


class Client(Protocol):
    """The client that waits for the answer to a whole request; it is answered or declined, once."""

    @property
    def address(self) -> ClientAddress:
        """Host and port."""

    def reply(self, status: int, lines: bytes, body: bytes) -> bool:
        """Answer; return whether the client was still there.

        Args:
            status: of the answer.
            lines: its headers, each with its line end.
            body: of the answer.
        """

    def decline(self, body: bytes) -> None:
        """Leave the request, of which this is the body, to ASGI after all, with its whole time."""


class Pending(Protocol):
    """A request that the application has taken whole."""

    @property
    def state(self) -> RequestState:
        """The facts about the request."""

    def end(self) -> None:
        """Give it up: it is not answered, but counted with the state's `ended_with`."""


class Handler(Protocol):
    """A handler answers whole requests that share one head."""

    @property
    def refusal(self) -> QueueFull | None:
        """The error of a request that comes now, if there is no room for it."""

    def begin(self, body: bytes, started: float, client: Client) -> Pending | None:
        """Take a whole request, or leave it to ASGI and return None.

        Args:
            body: of at most `most_bytes`.
            started: when the head had arrived, in `time.perf_counter()`.
            client: is answered later, unless the request is given up.
        """


class Cors(Protocol):
    """Lets pages of other origins read answers."""

    def lines(self, headers: Headers) -> bytes:
        """Return headers, each with its line end, for a refusal of a request with `headers`."""


class Application(Protocol):
    """An application whose models are open, as a worker serves it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or run the lifespan (ASGI)."""

    def handler(self, target: bytes, headers: Headers) -> Handler | None:
        """Return the handler of a POST to one of `fast_paths`, or None to leave it to ASGI.

        Args:
            target: of the request.
            headers: of the request; names are in lower case.
        """

    def refusal(self, target: bytes) -> QueueFull | None:
        """Return the error of a POST to this target, if there is no room for it now."""

    def published(self, path: str, headers: Headers, client: ClientAddress) -> str:
        """Return the path of a request as its client knows it, below the prefix of a proxy.

        Args:
            path: that was asked for.
            headers: of the request; names are in lower case.
            client: host and port.
        """

    def stop_being_ready(self) -> None:
        """Tell load balancers from now on that the service is stopping; it still answers."""

    @property
    def fast_paths(self) -> Collection[str]:
        """The paths that may have a handler, and which count when they are refused."""

    @property
    def cors(self) -> Cors | None:
        """Headers of refusals for pages of other origins; None if these may read nothing."""

    @property
    def most_bytes(self) -> int:
        """The size of the largest body that a handler takes."""

    @property
    def metrics(self) -> Metrics:
        """The metrics that it counts in."""

    @property
    def stuck_seconds(self) -> float:
        """The age of the oldest batch that is being computed; only while it serves."""
