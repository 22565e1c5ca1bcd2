"""GET /: the page, and the files that it is made of. It asks no other host for anything."""

import os
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount
from starlette.staticfiles import PathLike, StaticFiles
from starlette.types import Scope

router = APIRouter(include_in_schema=False)

WEB = Path(__file__).parents[2] / "web"

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; media-src 'self' blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Asked for again each time, which the ETag makes cheap: the parts belong to one release.
    "Cache-Control": "no-cache",
}


@router.get("/")
async def page(request: Request) -> Response:
    """Show what the models see."""
    return await _Files(directory=WEB).get_response("index.html", request.scope)


class WholeFiles(StaticFiles):
    """Files that are small enough to be sent whole, also to who asks for a part."""

    def file_response(
        self, full_path: PathLike, stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """Answer with the file, or that it has not changed."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        if isinstance(response, FileResponse):
            headers = {key: value for key, value in response.headers.items() if "range" not in key}
            response = Response(Path(full_path).read_bytes(), status_code, headers)
        return response


class _Files(WholeFiles):
    """The page's scripts, styles and samples."""

    def file_response(
        self, full_path: PathLike, stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """Answer likewise, with what the page may do."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(HEADERS)
        return response


def mount() -> Mount:
    """Return the route to the page's files."""
    return Mount("/web", _Files(directory=WEB))
