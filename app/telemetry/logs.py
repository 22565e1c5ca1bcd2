"""The log: one event a line on stderr, in one format for the service and for its libraries.

It is text on a terminal and JSON otherwise. Values from a request are always escaped: JSON escapes
them, and a path is logged percent-encoded, as it was received.
"""

import json
import logging
import sys
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from app.telemetry.requests import MAX_PATH, RequestState, current

LogFormat = Literal["auto", "text", "json"]

_OURS = ("app", "convscope")
_TALK_OF_INPUT = ("PIL",)  # they warn about what clients send
_PROBES = frozenset({"/health/live", "/health/ready", "/metrics"})
_UVICORN = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")

_BLOCK_LINES = 128  # of about 250 bytes

_requests = logging.getLogger("convscope.access")


class _Handler(logging.StreamHandler[TextIO]):
    """The handler of this module. Configuring again replaces it.

    Lines of requests wait until there is a block of them, or for `flush`, because writing each one
    takes longer than formatting it. Every other line is written at once, after those that wait.
    """

    def __init__(self, stream: TextIO, *, as_json: bool) -> None:
        super().__init__(stream)
        self.as_json = as_json
        self._waiting: list[str] = []

    def write_soon(self, line: str) -> None:
        self._waiting.append(line)
        if len(self._waiting) >= _BLOCK_LINES:
            self.write_waiting()

    def write_waiting(self) -> None:
        # Any thread may write, and the event loop may add lines meanwhile.
        with (
            self.lock or nullcontext(),
            suppress(OSError, ValueError),
        ):  # a full disk, a closed pipe
            count = len(self._waiting)
            lines = "".join(self._waiting[:count])
            del self._waiting[:count]
            self.stream.write(lines)
            self.stream.flush()

    def emit(self, record: logging.LogRecord) -> None:
        self.write_waiting()
        super().emit(record)


def write_request(state: RequestState, status: int, seconds: float) -> None:
    """Log one answered request; a probe is logged at level debug.

    JSON is formatted without the logging module, which would take longer than decoding the image,
    and written at the next `flush`.
    """
    path, model = state.path[:MAX_PATH], state.model
    # Probes arrive every few seconds.
    level = logging.DEBUG if path in _PROBES else logging.INFO
    if not _requests.isEnabledFor(level):
        return
    duration = round(seconds * 1000, 2)
    handler = logging.getLogger().handlers[-1]
    if isinstance(handler, _Handler) and handler.as_json:
        ending = f',"model":{json.dumps(model)}}}\n' if model is not None else "}\n"
        line = (
            f'{{"event":"request","level":"{"debug" if path in _PROBES else "info"}",'
            f'"timestamp":"{datetime.now(UTC).isoformat()[:-6]}Z",'
            f'"request_id":{json.dumps(state.request_id)},"method":{json.dumps(state.method)},'
            f'"path":{json.dumps(path)},"status":{status},"duration_ms":{duration}{ending}'
        )
        handler.write_soon(line)
        return
    fields: dict[str, Any] = {"method": state.method, "path": path, "status": status}
    named = {"model": model} if model is not None else {}
    structlog.get_logger(_requests.name).log(
        level, "request", request_id=state.request_id, **fields, duration_ms=duration, **named
    )


def flush() -> None:
    """Write the lines of requests that wait; call it several times a second and at the end."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Handler):
            handler.write_waiting()


def configure(log_format: LogFormat, level: str, stream: TextIO | None = None) -> None:
    """Send every logger of the process through one formatter.

    Loggers of other packages write warnings and errors only.

    Args:
        log_format: `auto` is text on a terminal and JSON otherwise.
        level: the lowest level that the service and uvicorn write: debug, info, warning or error.
        stream: where to write; stderr by default.
    """
    stream = stream or sys.stderr
    as_json = log_format == "json" or (log_format == "auto" and not stream.isatty())
    shared: list[Processor] = [
        _add_request_id,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=as_json),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    handler = _Handler(stream, as_json=as_json)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder(allow=())],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(as_json, colors=stream.isatty()),
            ],
        )
    )
    flush()
    root = logging.getLogger()
    root.handlers = [old for old in root.handlers if not isinstance(old, _Handler)]
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for name in _OURS:
        logging.getLogger(name).setLevel(level.upper())
    for name in _TALK_OF_INPUT:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name in _UVICORN:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = name != "uvicorn.access"  # `write_request` writes that line
        logger.setLevel(logging.NOTSET if name != "uvicorn" else level.upper())


def _renderers(as_json: bool, *, colors: bool) -> list[Processor]:
    if as_json:
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    # If rich is installed, the default prints every frame's locals, images and secrets included.
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)]


def _add_request_id(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    state = current.get()
    if state is not None:
        event.setdefault("request_id", state.request_id)
    return event
