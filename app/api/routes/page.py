"""GET /: the page and its files. It loads nothing from another host."""

from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.routing import Mount

from app.api.files import WholeFiles

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


def mount() -> Mount:
    """Return the route to the page's files."""
    return Mount("/web", WholeFiles(WEB, HEADERS))
