"""The path prefix at which a proxy publishes the service, such as `/vision`.

The prefix is the service's own setting, or the proxy names it in `X-Forwarded-Prefix`. Addresses in
answers begin with it. The proxy may strip it from the paths of requests, or leave it there.
"""

from typing import Any, cast

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from app.settings import check_root_path

HEADER = b"x-forwarded-prefix"


class PrefixMiddleware:
    """Tells the application its prefix as ASGI does: `root_path`, with which `path` begins."""

    def __init__(self, app: ASGIApp, root_path: str, trusted: str) -> None:
        """Prepare.

        Args:
            app: is told.
            root_path: the prefix; if it is empty, that of the header counts.
            trusted: the addresses of proxies whose header counts, as in `FORWARDED_ALLOW_IPS`.
        """
        self._app = app
        self._root_path = root_path
        self._proxies = ProxyHeadersMiddleware(cast(Any, app), trusted).trusted_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; one to the prefix alone is sent to the page, which lies below it."""
        prefix = scope["type"] == "http" and (self._root_path or self._forwarded(scope))
        if not prefix:
            await self._app(scope, receive, send)
        elif scope["path"] == prefix:
            query = scope["query_string"].decode("latin-1")
            page = RedirectResponse(f"{prefix}/?{query}" if query else f"{prefix}/")
            await page(scope, receive, send)
        else:
            scope["root_path"] = prefix
            if not scope["path"].startswith(f"{prefix}/"):
                scope["path"] = prefix + scope["path"]
            await self._app(scope, receive, send)

    def _forwarded(self, scope: Scope) -> str:
        """Return the prefix of the header, if a proxy that is trusted sent just a sound one.

        Proxies pass on a client's own header, so a prefix must not lead to another host.
        """
        given = [value for name, value in scope["headers"] if name == HEADER]
        client = scope.get("client")
        if len(given) != 1 or client is None or client[0] not in self._proxies:
            return ""
        try:
            return check_root_path(given[0].decode("latin-1"))
        except ValueError:
            return ""
