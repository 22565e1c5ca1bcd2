"""Predictions of one small image that arrive whole: answered without a coroutine and FastAPI.

    uploads.read_whole -> images.decode -> batcher.begin -> tasks.classification

FastAPI's middleware, routing, dependencies and query parsing, a task for each request and the
messages of ASGI cost more than decoding and inference (`bench.serving.overhead`). So the server
offers each whole request to `FastPaths` first. It takes those that nothing is wrong with and leaves
all others, with their errors, to the routes: FastAPI has the same path, OpenAPI is generated from
it, and a test compares the answers.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from fastapi import Request

from app import problems
from app.api import uploads
from app.api.dependencies import refuse_repeated
from app.api.middleware import end_request
from app.api.pictures import INLINE_PIXELS, timeout_of
from app.api.queries import PredictQuery
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
from app.telemetry.requests import RequestState, request_id_of

PATHS = frozenset({predict.PATH})

MAX_BYTES = 16 << 10
"""Of a body: several times that of a small image, and little beside the head that may come with it,
because bodies that are collected are not counted with the others."""

Headers = Sequence[tuple[bytes, bytes]]
Reply = Callable[[int, bytes, bytes], bool]
"""Writes an answer, status, lines of headers and body; returns whether the client was there."""


@dataclass(frozen=True)
class _Plan:
    """What a target asks for."""

    artifact: Artifact
    interpreter: Interpreter
    batcher: Batcher
    metrics: ModelMetrics
    size: tuple[int, int]


class FastPaths:
    """Answers requests that arrive whole.

    Attributes:
        most_bytes: the size of the largest body that is taken.
    """

    def __init__(self, service: Service) -> None:
        settings = service.settings
        self.most_bytes = min(MAX_BYTES, settings.max_body_bytes)
        self._service = service
        self._limits = replace(service.upload_limits, max_images=1)
        self._most_pixels = min(INLINE_PIXELS, settings.max_pixels, settings.max_pixels_whole)
        # Bounded, as targets are the clients'; it remembers no errors.
        self._plan = lru_cache(64)(self._make_plan)

    def answer(
        self, target: bytes, headers: Headers, body: bytes, started: float, reply: Reply
    ) -> "Prediction | None":
        """Begin a prediction.

        Args:
            target: of a POST to one of `PATHS`.
            headers: the request's; names are in lower case.
            body: the whole body, of at most `most_bytes`.
            started: when the head had arrived, in `time.perf_counter()`.
            reply: is called once, unless the prediction is ended.

        Returns:
            None if the routes have to answer.
        """
        try:
            return self._begin(target, headers, body, started, reply)
        except Exception:  # noqa: BLE001 - the route meets it again, and answers for it
            return None

    def _begin(
        self, target: bytes, headers: Headers, body: bytes, started: float, reply: Reply
    ) -> "Prediction | None":
        service, given = self._service, dict(headers)
        plan = self._plan(target)
        timeout = timeout_of(given, service.settings)
        deadline = asyncio.get_running_loop().time() + timeout
        if plan.batcher.full:
            return None
        (file,) = uploads.read_whole(given, body, self._limits)
        read = time.perf_counter()
        images = decode(file.data, plan.size, self._most_pixels)[np.newaxis]
        decoded = time.perf_counter()
        answer = plan.batcher.begin(images, deadline)
        state = RequestState("POST", predict.PATH, request_id_of(headers))
        state.route, state.model = predict.PATH, plan.artifact.ref
        service.metrics.begin_request()
        prediction = Prediction(
            service,
            plan,
            state,
            images,
            file.filename,
            reply,
            timeout,
            (started, read, decoded),
            answer,
        )
        answer.add_done_callback(prediction.finish)
        return prediction

    def _make_plan(self, target: bytes) -> _Plan:
        # As FastAPI reads the query of a route.
        request = Request({"type": "http", "query_string": target.partition(b"?")[2]})
        refuse_repeated(request)
        query = PredictQuery.model_validate(dict(request.query_params))
        service = self._service
        artifact = service.store.find(query.model, query.version)
        return _Plan(
            artifact,
            predict.interpreter_of(service, artifact, query),
            service.batchers[artifact.ref],
            service.model_metrics[artifact.ref],
            artifact.manifest.image_size,
        )


@dataclass(slots=True, eq=False)
class Prediction:
    """One request that waits for its model.

    `times` are those of the head's arrival and of the ends of reading and decoding.
    """

    service: Service
    plan: _Plan
    state: RequestState
    images: Images
    filename: str | None
    reply: Reply
    timeout: float
    times: tuple[float, float, float]
    future: "asyncio.Future[Answer]"

    def end(self) -> None:
        """Give the request up; `state.ended_with` says with which status it is counted."""
        self.future.cancel()

    def finish(self, future: "asyncio.Future[Answer]") -> None:
        """Count, log and answer the request."""
        if self.state.ended_with is not None:  # even if its outputs were there first
            if not future.cancelled():
                future.exception()  # which asyncio would say was never asked for
            self._count(self.state.ended_with)
            return
        answer: Answer | None = None
        try:
            answer = future.result()
            status, lines, content = 200, self._lines(answer), self._content(answer)
        except Exception as exc:  # noqa: BLE001 - a client waits for an answer
            answer = None
            status, lines, content = self._refusal(exc)
        delivered = False
        try:
            delivered = self.reply(status, lines, content)
        finally:
            self._count(status if delivered else problems.CLIENT_GONE)
        if delivered and answer is not None:
            self._count_images(answer)

    def _count(self, status: int) -> None:
        seconds = time.perf_counter() - self.times[0]
        end_request(self.service.metrics, self.state, status, seconds)

    def _count_images(self, answer: Answer) -> None:
        started, read, decoded = self.times
        self.service.metrics.observe_stages(read - started, decoded - read)
        labels = self.plan.interpreter.labels(answer.outputs)
        self.plan.metrics.answered(labels, answer.queue_seconds)

    def _lines(self, answer: Answer) -> bytes:
        started, read, decoded = self.times
        timing = predict.server_timing(read - started, decoded - read, answer)
        return (
            f"content-type: application/json\r\nserver-timing: {timing}\r\n"
            f"x-request-id: {self.state.request_id}\r\n"
        ).encode()

    def _content(self, answer: Answer) -> bytes:
        return self.plan.interpreter.render(answer.outputs, self.images, [self.filename]).encode()

    def _refusal(self, error: Exception) -> tuple[int, bytes, bytes]:
        if isinstance(error, DeadlineExceeded):
            error = DeadlineExceeded(f"no answer within {self.timeout:g} s")
        if isinstance(error, ConvscopeError):
            self.state.rejection = problems.reason(type(error))
        token = requests.current.set(self.state)
        try:
            status, headers, content = problems.render(error, predict.PATH, self.state.request_id)
        finally:
            requests.current.reset(token)
        headers["x-request-id"] = self.state.request_id
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return status, lines.encode(), content
