"""The path prefix at which a proxy publishes the service, such as `/vision`.

The prefix is the service's own setting, or the proxy names it in `X-Forwarded-Prefix`. Addresses in
answers begin with it. The proxy may strip it from the paths of requests, or leave it there.
"""

from typing import Any, cast

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from app.settings import check_root_path
from app.telemetry.requests import ClientAddress, Headers

HEADER = b"x-forwarded-prefix"

_IN_IPV6 = "::ffff:"  # an IPv4 address, for a client of IPv6 (RFC 4291, 2.5.5.2)


class Prefix:
    """Finds the prefix of a request."""

    def __init__(self, root_path: str, trusted: str) -> None:
        """Prepare.

        Args:
            root_path: the prefix; if it is empty, that of the header counts.
            trusted: the addresses of proxies whose header counts, as in `FORWARDED_ALLOW_IPS`.
        """
        self._root_path = root_path
        # uvicorn's own reading of the variable; the middleware around nothing is never called.
        self._proxies = ProxyHeadersMiddleware(cast(Any, None), trusted).trusted_hosts

    def of(self, headers: Headers, client: ClientAddress) -> str:
        """Return the prefix of a request from this client, or an empty text."""
        return self._root_path or self._forwarded(headers, client)

    def published(self, path: str, headers: Headers, client: ClientAddress) -> str:
        """Return a path of the service as its clients know it."""
        return _below(self.of(headers, client), path)

    def _forwarded(self, headers: Headers, client: ClientAddress) -> str:
        """Return the prefix of the header, if a proxy that is trusted sent just a sound one.

        Proxies pass on a client's own header, so a prefix must not lead to another host.
        """
        given = [value for name, value in headers if name == HEADER]
        if len(given) != 1 or client is None or not self._is_trusted(client[0]):
            return ""
        try:
            return check_root_path(given[0].decode("latin-1"))
        except ValueError:
            return ""

    def _is_trusted(self, host: str) -> bool:
        """Return whether it is a trusted proxy's address, also in its IPv4-mapped form."""
        return host in self._proxies or host.removeprefix(_IN_IPV6) in self._proxies


class PrefixMiddleware:
    """Tells the application its prefix as ASGI does: `root_path`, with which `path` begins."""

    def __init__(self, app: ASGIApp, prefix: Prefix) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; one to the prefix alone is sent to the page, which lies below it."""
        http = scope["type"] == "http"
        prefix = self._prefix.of(scope["headers"], scope.get("client")) if http else ""
        if not prefix:
            await self._app(scope, receive, send)
        elif scope["path"] == prefix:
            query = scope["query_string"].decode("latin-1")
            page = RedirectResponse(f"{prefix}/?{query}" if query else f"{prefix}/")
            await page(scope, receive, send)
        else:
            scope["root_path"] = prefix
            scope["path"] = _below(prefix, scope["path"])
            await self._app(scope, receive, send)


def _below(prefix: str, path: str) -> str:
    """Return a path that begins with the prefix; one that is no path, such as `*`, as it is.

    A proxy that strips `/vision` of `/vision/docs` and puts a slash there sends `//docs`.
    """
    is_below = path == prefix or path.startswith(f"{prefix}/")
    return path if is_below or not path.startswith("/") else f"{prefix}/{path.lstrip('/')}"
