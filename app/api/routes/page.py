"""GET /: the page and its files. It loads nothing from another host."""

from pathlib import Path

from fastapi import APIRouter, Request
from starlette.datastructures import Headers
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from app.api.files import WholeFiles
from app.api.negotiation import qualities

router = APIRouter(include_in_schema=False)

WEB = Path(__file__).parents[2] / "web"

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; media-src 'self' blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Checked again each time, which the ETag makes cheap: all files belong to one release.
    "Cache-Control": "no-cache",
}


@router.get("/")
async def page(request: Request) -> Response:
    """The page."""
    return await WholeFiles(WEB, HEADERS).get_response("index.html", request.scope)


class _Compressed(GZipMiddleware):
    """Compresses for clients that take gzip; Starlette also does for those that refuse it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        accepted = ",".join(Headers(scope=scope).getlist("accept-encoding"))
        if qualities(accepted).get("gzip") == 0:
            others = [each for each in scope["headers"] if each[0] != b"accept-encoding"]
            scope = {**scope, "headers": others}
        await super().__call__(scope, receive, send)


def mount() -> Mount:
    """Return the route to the page's files."""
    return Mount("/web", _Compressed(WholeFiles(WEB, HEADERS)))
