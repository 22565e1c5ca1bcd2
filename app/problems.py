"""Errors as problems: one table from error to status and title, and one JSON shape.

Every error is answered as `application/problem+json` (RFC 9457). A status of 500 tells the client
nothing of the inside; the traceback goes to the log. This module knows no web framework: `server`
and `api` both answer with it.
"""

from collections.abc import Mapping
from http import HTTPStatus

import structlog
from pydantic import BaseModel, Field

from app import errors
from app.errors import ConvscopeError
from app.telemetry.requests import MAX_PATH

PROBLEM_JSON = "application/problem+json"
INTERNAL = "the service failed; its log has more under this request_id"

CLIENT_GONE = 499
"""nginx's status for a client that closed the connection before the answer; never sent."""

_log = structlog.get_logger(__name__)

STATUSES: Mapping[type[ConvscopeError], tuple[int, str]] = {
    errors.ConvscopeError: (500, "Internal error"),
    errors.ArtifactError: (500, "A model's files are damaged"),
    errors.SettingsError: (500, "Settings are wrong"),
    errors.RequestError: (400, "The request cannot be taken"),
    errors.MalformedRequest: (400, "Malformed request"),
    errors.HeadTooLarge: (431, "Request head too large"),
    errors.HeadTimeout: (408, "Request head took too long"),
    errors.CrossOriginRefused: (403, "Cross-origin request refused"),
    errors.TooManyConnections: (503, "Too many connections"),
    errors.UploadError: (400, "The body cannot be taken"),
    errors.EmptyUpload: (400, "Empty upload"),
    errors.UploadTooLarge: (413, "Upload too large"),
    errors.UploadTimeout: (408, "Upload took too long"),
    errors.TooManyImages: (413, "Too many images"),
    errors.UnsupportedMediaType: (415, "Unsupported media type"),
    errors.MalformedUpload: (400, "Malformed upload"),
    errors.ImageError: (422, "The image cannot be used"),
    # RFC 9110, 15.5.16: also "as a result of inspecting the data directly".
    errors.NotAnImage: (415, "Not an image"),
    errors.DamagedImage: (422, "Damaged image"),
    errors.UnsupportedImage: (415, "Unsupported kind of image"),
    errors.TooManyPixels: (413, "Too many pixels"),
    errors.NotFound: (404, "Not found"),
    errors.UnknownModel: (404, "Unknown model"),
    errors.UnknownLayer: (404, "Unknown layer"),
    errors.UnknownFilter: (404, "Unknown filter"),
    errors.UnknownClass: (404, "Unknown class"),
    errors.NothingToSee: (404, "Nothing to see"),
    errors.WrongTask: (409, "Another task"),
    errors.InvalidParameter: (422, "Invalid parameter"),
    errors.NotAcceptable: (406, "Not acceptable"),
    errors.ScoringError: (500, "Scoring failed"),
    errors.NotReady: (503, "Not ready"),
    errors.PredictionError: (500, "Prediction failed"),
    errors.QueueFull: (503, "Too busy"),
    errors.DeadlineExceeded: (504, "Took too long"),
    errors.ShuttingDown: (503, "Shutting down"),
    errors.BackendFailed: (500, "Prediction failed"),
}

_HEADERS: Mapping[int, Mapping[str, str]] = {
    406: {"vary": "Accept"},
    408: {"connection": "close"},
    503: {"retry-after": "1"},
}


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    type: str = Field(examples=["urn:convscope:problem:not-an-image"])
    title: str
    status: int
    detail: str
    instance: str
    request_id: str


def render(exc: Exception, path: str, request_id: str) -> tuple[int, dict[str, str], bytes]:
    """Return the status, headers and body that answer an exception, and log an internal error.

    An exception outside the tree of `ConvscopeError` is an internal error.
    """
    kind = type(exc) if isinstance(exc, ConvscopeError) else ConvscopeError
    status, title = STATUSES[kind]
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("request failed", exc_info=exc)
        return render_status(status, INTERNAL, path, request_id)
    return _render(status, problem_type(kind), title, str(exc), path, request_id)


def render_status(
    status: int, detail: str, path: str, request_id: str
) -> tuple[int, dict[str, str], bytes]:
    """Return the same for a problem that says no more than its status does (RFC 9457, 4.2.1)."""
    return _render(status, "about:blank", HTTPStatus(status).phrase, detail, path, request_id)


def _render(
    status: int, uri: str, title: str, detail: str, path: str, request_id: str
) -> tuple[int, dict[str, str], bytes]:
    problem = Problem(
        type=uri,
        title=title,
        status=status,
        detail=detail,
        instance=shorten(path),
        request_id=request_id,
    )
    headers = {"content-type": PROBLEM_JSON, **_HEADERS.get(status, {})}
    return status, headers, problem.model_dump_json().encode()


def shorten(path: str) -> str:
    """Return as much of a request's path as an answer repeats."""
    return path[:MAX_PATH]


def reason(error: type[Exception]) -> str:
    """Return the error's name as it stands in metrics and at the end of its URI: `queue-full`."""
    words = "".join(f"-{char.lower()}" if char.isupper() else char for char in error.__name__)
    return words.removeprefix("-")


def problem_type(error: type[Exception]) -> str:
    """Return the URI that tells a program which error it is: `urn:convscope:problem:queue-full`."""
    return f"urn:convscope:problem:{reason(error)}"
