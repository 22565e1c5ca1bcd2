"""Static files, which are always sent whole."""

import os
from collections.abc import Mapping
from pathlib import Path

from starlette.responses import Response
from starlette.staticfiles import PathLike, StaticFiles
from starlette.types import Scope


class WholeFiles(StaticFiles):
    """The files of a directory; a Range header is ignored, as RFC 9110 (14.2) allows.

    The files are small. Starlette follows the header, but answers a wrong one in plain text, and
    every error of this service is a problem.
    """

    def __init__(self, directory: Path, headers: Mapping[str, str] | None = None) -> None:
        """Serve a directory, with the same headers for all its files."""
        super().__init__(directory=directory)
        self._headers = headers or {}

    def file_response(
        self, full_path: PathLike, stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """Return the file, or a 304 if the client's copy is current."""
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"range"]
        response = super().file_response(full_path, stat_result, scope, status_code)
        del response.headers["accept-ranges"]
        # Weak: the file is the same, compressed or not (RFC 9110, 8.8.1).
        response.headers["etag"] = f"W/{response.headers['etag']}"
        response.headers.update(self._headers)
        return response
