"""Cross-origin resource sharing: which pages of other origins may read answers.

Starlette's middleware decides and answers preflight requests. The fast paths and the server's
refusals go round it, and take the same headers from `Cors.lines`.
"""

from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from app.api.openapi import TIMEOUT_HEADER
from app.api.uploads.upload import quoted
from app.errors import CrossOriginRefused
from app.telemetry import requests

_METHODS = ("GET", "HEAD", "POST")
_REQUEST_HEADERS = ("Content-Type", "If-None-Match", "X-Request-ID", TIMEOUT_HEADER)
_ASKED = ("Origin", "Access-Control-Request-Method", "Access-Control-Request-Headers")
_ANSWER_HEADERS = ("ETag", "Retry-After", "Server-Timing", "X-Request-ID")


class Cors(CORSMiddleware):
    """The middleware around an application, whose origins are a setting."""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=_METHODS,
            allow_headers=_REQUEST_HEADERS,
            expose_headers=_ANSWER_HEADERS,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer a preflight request.

        Raises:
            CrossOriginRefused: the origin, the method or a header is not allowed.
        """
        response = super().preflight_response(request_headers)
        if response.status_code != 200:
            asked = ", ".join(
                f"{name} {quoted(request_headers[name])}"
                for name in _ASKED
                if name in request_headers
            )
            origins, methods = ", ".join(self.allow_origins), ", ".join(_METHODS)
            raise CrossOriginRefused(
                f"{bytes(response.body).decode()}; the request has {asked}; allowed are the "
                f"origins {origins}, the methods {methods} and the headers "
                f"{', '.join(_REQUEST_HEADERS)}"
            )
        return response

    def lines(self, headers: requests.Headers) -> bytes:
        """Return the headers, each with its line end, of an answer to a request with `headers`.

        They are those that `CORSMiddleware.send` adds.
        """
        given = next((value for name, value in headers if name == b"origin"), None)
        ours = MutableHeaders(self.simple_headers if given is not None else {})
        origin = "" if given is None else given.decode("latin-1")
        if not self.allow_all_origins and self.is_allowed_origin(origin):
            self.allow_explicit_origin(ours, origin)
        else:
            ours["Vary"] = "Origin"  # caches keep an answer apart from one to an allowed origin
        return b"".join(name + b": " + value + b"\r\n" for name, value in ours.raw)
