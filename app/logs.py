"""How the service logs: one event a line, structlog's and everybody else's alike, on stderr.

Readable on a terminal, JSON otherwise. No value of a request reaches a line unescaped: JSON
escapes by itself, and `middleware` logs the path percent-encoded, as it came.
"""

import logging
import sys
from typing import Literal, TextIO

import structlog
from structlog.typing import Processor

LogFormat = Literal["auto", "text", "json"]

_OURS = ("app", "convscope")
_TALK_OF_INPUT = ("PIL", "python_multipart")  # what a stranger sent is the stranger's news
_UVICORN = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")


class _Handler(logging.StreamHandler[TextIO]):
    """Marks the handler that is ours, so that a second set-up replaces it."""


def configure(log_format: LogFormat, level: str, stream: TextIO | None = None) -> None:
    """Send every logger of the process through one formatter; other packages' from warning on.

    Args:
        log_format: `auto` is text on a terminal and JSON otherwise.
        level: the lowest of the service's and uvicorn's: debug, info, warning or error.
        stream: where to write; stderr unless given.
    """
    stream = stream or sys.stderr
    as_json = log_format == "json" or (log_format == "auto" and not stream.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
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
    handler = _Handler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder(allow=())],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(as_json, colors=stream.isatty()),
            ],
        )
    )
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
        logger.propagate = name != "uvicorn.access"  # the middleware writes that line
        logger.setLevel(logging.NOTSET if name != "uvicorn" else level.upper())


def _renderers(as_json: bool, *, colors: bool) -> list[Processor]:
    if as_json:
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    # Where rich is installed, the default shows every frame's locals: images and secrets too.
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)]
