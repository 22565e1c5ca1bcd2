"""The state of one request, as the server, the middleware, the routes and the log share it."""

import random
import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, cast

Headers = Sequence[tuple[bytes, bytes]]
"""The headers of a request; names are in lower case."""

ClientAddress = tuple[str, int] | None
"""Host and port of a client; None if its socket has no such name."""

SCOPE_KEY = "convscope.request"
"""Where the ASGI scope of a request holds its `RequestState`."""

STARTED_KEY = "convscope.started"
"""Where the ASGI scope of a request holds the time of its head's end, by `time.perf_counter`."""

REQUEST_ID = b"x-request-id"
"""The header that names a request."""

_SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")

MAX_PATH = 256
"""Characters of a request's path that an answer or a log line repeats."""


def new_request_id() -> str:
    """Return an id for a request whose client gave none: 32 hexadecimal digits."""
    return f"{random.getrandbits(128):032x}"  # not secret; a call of the system would cost more


def given_id(headers: Headers) -> str | None:
    """Return the client's id of a request, the first that is a sane one."""
    for name, value in headers:
        if name == REQUEST_ID and _SANE_ID.fullmatch(value):
            return str(value, "ascii")
    return None


def request_id_of(headers: Headers) -> str:
    """Return the client's id of a request, or else a new one."""
    return given_id(headers) or new_request_id()


@dataclass(slots=True)
class RequestState:
    """The facts about one request.

    Attributes:
        method: the client's, so HEAD stays HEAD.
        path: the path as it was sent, percent-encoded, without the query.
        request_id: the client's `X-Request-ID` or a new one.
        route: the route's template; a label of the metrics.
        model: the model that answers, as `name/version`.
        rejection: the name of the error that refused the request; a label of the metrics.
        ended_with: the status that the server ended the request with, if it did.
    """

    method: str
    path: str
    request_id: str = field(default_factory=new_request_id)
    route: str | None = None
    model: str | None = None
    rejection: str | None = None
    ended_with: int | None = None


def state_of(scope: Mapping[str, Any]) -> RequestState:
    """Return the state that the middleware has put into a request's scope."""
    return cast(RequestState, scope[SCOPE_KEY])


current: ContextVar[RequestState | None] = ContextVar("current", default=None)
"""The request that a route handles or that is refused; a line logged meanwhile carries its id."""
