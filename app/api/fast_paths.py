"""Predictions of one small image that arrive whole: answered without a coroutine and FastAPI.

    uploads.read_whole -> images.decode -> batcher.begin -> tasks.classification

With FastAPI's middleware, routing, dependencies and query parsing, and with a task and the messages
of ASGI for each request, a prediction would take two to three times the processor time. So the
server offers each whole request to `FastPaths` first. It takes those that nothing is wrong with and
leaves all others, with their errors, to the routes: FastAPI has the same path, OpenAPI is generated
from it, and a test compares the answers.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar, cast

import numpy as np
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from app import problems
from app.api import uploads
from app.api.dependencies import refuse_repeated
from app.api.middleware import end_request
from app.api.pictures import INLINE_PIXELS, timeout_of
from app.api.queries import PredictQuery, Query
from app.api.routes import predict
from app.api.state import Service
from app.artifact.directory import Artifact
from app.artifact.tensors import Images
from app.errors import ConvscopeError, DeadlineExceeded
from app.images.decode import decode
from app.inference.batcher import Answer, Batcher
from app.tasks.classification import Interpreter
from app.telemetry import requests
from app.telemetry.metrics import ModelMetrics
from app.telemetry.requests import REQUEST_ID, RequestState, request_id_of

PATHS = frozenset({predict.PATH})

MAX_BYTES = 64 << 10
"""Of a body; handing a larger image to a thread takes less time than decoding it here."""

Headers = Sequence[tuple[bytes, bytes]]
Reply = Callable[[int, bytes, bytes], None]
"""Writes an answer: status, lines of headers, body."""

Q = TypeVar("Q", bound=Query)


@dataclass(frozen=True)
class _Plan:
    """What a target asks for."""

    artifact: Artifact
    interpreter: Interpreter
    batcher: Batcher
    metrics: ModelMetrics
    size: tuple[int, int]


class FastPaths:
    """Answers requests that arrive whole."""

    def __init__(self, service: Service) -> None:
        self._service = service
        # Bounded, as targets are the clients'; it remembers no errors.
        self._plan = lru_cache(64)(self._make_plan)

    def answer(
        self, target: bytes, headers: Headers, body: bytes, started: float, reply: Reply
    ) -> "Prediction | None":
        """Begin a prediction.

        Args:
            target: of a POST to one of `PATHS`.
            headers: the request's; names are in lower case.
            body: the whole body, of at most `MAX_BYTES`.
            started: when the head had arrived, in `time.perf_counter()`.
            reply: is called once, unless the prediction is ended.

        Returns:
            None if the routes have to answer.
        """
        service, given = self._service, dict(headers)
        try:
            plan = self._plan(target)
            timeout = timeout_of(given, service.settings)
            deadline = asyncio.get_running_loop().time() + timeout
            (file,) = uploads.read_whole(given, body, service.upload_limits)
            read = time.perf_counter()
            image = decode(file.data, plan.size, self._most_pixels)
            decoded = time.perf_counter()
            images = image[np.newaxis]
            answer = plan.batcher.begin(images, deadline)
        except (ConvscopeError, RequestValidationError, ValueError):
            return None
        state = RequestState("POST", predict.PATH, request_id_of(given.get(REQUEST_ID)))
        state.route, state.model = predict.PATH, plan.artifact.ref
        service.metrics.begin_request()
        prediction = Prediction(
            service, plan, state, images, file.filename, reply, timeout, (started, read, decoded)
        )
        prediction.future = answer
        answer.add_done_callback(prediction.finish)
        return prediction

    @property
    def _most_pixels(self) -> int:
        settings = self._service.settings
        return min(INLINE_PIXELS, settings.max_pixels, settings.max_pixels_whole)

    def _make_plan(self, target: bytes) -> _Plan:
        query = read_query(target.partition(b"?")[2], PredictQuery)
        service = self._service
        artifact = service.store.find(query.model, query.version)
        return _Plan(
            artifact,
            predict.interpreter_of(service, artifact, query),
            service.batchers[artifact.ref],
            service.model_metrics[artifact.ref],
            artifact.manifest.image_size,
        )


@dataclass(slots=True)
class Prediction:
    """One request that waits for its model."""

    service: Service
    plan: _Plan
    state: RequestState
    images: Images
    filename: str | None
    reply: Reply
    timeout: float
    times: tuple[float, float, float]
    future: "asyncio.Future[Answer]" = None  # type: ignore[assignment]  # set at once

    def end(self) -> None:
        """Give the request up; `state.ended_with` says with which status it is counted."""
        self.future.cancel()

    def finish(self, future: "asyncio.Future[Answer]") -> None:
        """Answer, count and log the request."""
        if future.cancelled():
            status = self.state.ended_with or problems.CLIENT_GONE
        elif (error := future.exception()) is not None:
            status = self._refuse(error)
        else:
            status = self._answer(future.result())
        end_request(self.service.metrics, self.state, status, time.perf_counter() - self.times[0])

    def _answer(self, answer: Answer) -> int:
        interpreter = self.plan.interpreter
        content = interpreter.render(answer.outputs, self.images, [self.filename])
        started, read, decoded = self.times
        self.service.metrics.observe_stages(read - started, decoded - read)
        self.plan.metrics.answered(interpreter.labels(answer.outputs), answer.queue_seconds)
        timing = predict.server_timing(read - started, decoded - read, answer)
        lines = (
            f"content-type: application/json\r\nserver-timing: {timing}\r\n"
            f"x-request-id: {self.state.request_id}\r\n"
        )
        self.reply(200, lines.encode(), content.encode())
        return 200

    def _refuse(self, error: BaseException) -> int:
        if isinstance(error, DeadlineExceeded):
            error = DeadlineExceeded(f"no answer within {self.timeout:g} s")
        if isinstance(error, ConvscopeError):
            self.state.rejection = problems.reason(type(error))
        token = requests.current.set(self.state)  # for the log
        try:
            status, headers, content = problems.render(
                cast(Exception, error), predict.PATH, self.state.request_id
            )
        finally:
            requests.current.reset(token)
        headers["x-request-id"] = self.state.request_id
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.reply(status, lines.encode(), content)
        return status


def read_query(query: bytes, kind: type[Q]) -> Q:
    """Return the query parameters, with the checks that FastAPI makes for routes.

    Raises:
        RequestValidationError: a value is not allowed.
        InvalidParameter: a parameter is given twice.
    """
    request = Request({"type": "http", "query_string": query})
    refuse_repeated(request)
    try:
        return kind.model_validate(dict(request.query_params))
    except ValidationError as exc:
        raise RequestValidationError(exc.errors()) from exc
