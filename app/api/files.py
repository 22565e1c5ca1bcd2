"""Static files, which are always sent whole; texts compressed, for clients that take it."""

import gzip
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import anyio.to_thread
from starlette.datastructures import Headers
from starlette.responses import FileResponse, Response
from starlette.staticfiles import PathLike, StaticFiles
from starlette.types import Scope

from app.api.negotiation import qualities

_TEXTS = {".css", ".html", ".js", ".svg"}


class WholeFiles(StaticFiles):
    """The files of a directory; a Range header is ignored, as RFC 9110 (14.2) allows.

    Starlette follows the header, but answers a wrong one in plain text, and every error of this
    service is a problem. A text is compressed once, because the largest takes as long as a hundred
    predictions.
    """

    def __init__(self, directory: Path, headers: Mapping[str, str] | None = None) -> None:
        """Serve a directory, with the same headers for all its files."""
        super().__init__(directory=directory)
        self._headers = headers or {}

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return a file's answer; a text is compressed if the client takes gzip."""
        response = await super().get_response(path, scope)
        if not (isinstance(response, FileResponse) and _is_text(path) and _takes_gzip(scope)):
            return response
        file, etag = Path(response.path), response.headers["etag"]
        content = await anyio.to_thread.run_sync(lambda: _compressed(file, etag))
        changed = {"content-encoding": "gzip", "content-length": str(len(content))}
        return Response(content, headers={**response.headers, **changed})

    def file_response(
        self, full_path: PathLike, stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """Return the file, or a 304 if the client's copy is current."""
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"range"]
        response = super().file_response(full_path, stat_result, scope, status_code)
        del response.headers["accept-ranges"]
        # Weak: the file is the same, compressed or not (RFC 9110, 8.8.1).
        response.headers["etag"] = f"W/{response.headers['etag']}"
        if _is_text(full_path):
            response.headers["vary"] = "Accept-Encoding"
        response.headers.update(self._headers)
        return response


def _is_text(path: PathLike) -> bool:
    return Path(path).suffix in _TEXTS


def _takes_gzip(scope: Scope) -> bool:
    accepted = qualities(",".join(Headers(scope=scope).getlist("accept-encoding")))
    return accepted.get("gzip", 0) > 0


@lru_cache(64)  # the files are fewer
def _compressed(path: Path, _etag: str) -> bytes:
    return gzip.compress(path.read_bytes(), mtime=0)
