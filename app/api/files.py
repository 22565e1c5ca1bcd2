"""Static files, which are always sent whole."""

import os
from collections.abc import Mapping
from pathlib import Path

from starlette.responses import FileResponse, Response
from starlette.staticfiles import PathLike, StaticFiles
from starlette.types import Scope


class WholeFiles(StaticFiles):
    """The files of a directory, small enough that a Range header is not worth following.

    RFC 9110 (14.2) lets a server ignore it. Starlette would answer a wrong one in plain text, and
    every error here is a problem.
    """

    def __init__(self, directory: Path, headers: Mapping[str, str] | None = None) -> None:
        """Serve a directory, with the same headers for all its files."""
        super().__init__(directory=directory)
        self._headers = headers or {}

    def file_response(
        self, full_path: PathLike, stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """Answer with the file, or that the client's copy is still right."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        if isinstance(response, FileResponse):
            del response.headers["accept-ranges"]
            content = Path(full_path).read_bytes()
            response = Response(content, status_code, dict(response.headers))
        response.headers.update(self._headers)
        return response
