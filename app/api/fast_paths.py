"""Predictions of one small image that arrive whole: answered without a coroutine and FastAPI.

    read_whole -> batcher.begin -> images.decode -> Backend.predict -> tasks.classification

FastAPI's middleware, routing, dependencies and query parsing, a task for each request and the
messages of ASGI cost more than decoding and inference (`bench.serving.overhead`). So the server
offers each whole request to `FastPaths` first. It takes those that nothing is wrong with and leaves
all others, with their errors, to the routes: FastAPI has the same path, OpenAPI is generated from
it, and a test compares the answers.
"""

import asyncio
import time
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from fastapi import Request

from app import problems
from app.api.cors import Cors
from app.api.dependencies import check_task, refuse_repeated
from app.api.middleware import end_request
from app.api.pictures import INLINE_PIXELS, server_timing, timeout_of
from app.api.prefix import Prefix
from app.api.queries import PredictQuery
from app.api.routes import predict
from app.api.state import Service
from app.api.uploads.body import read_whole
from app.api.uploads.upload import Upload
from app.artifact.directory import Artifact
from app.artifact.tensors import Images
from app.errors import ConvscopeError, DeadlineExceeded, ImageError, QueueFull
from app.images.decode import decode, is_bounded
from app.inference.batcher import Answer, Batcher
from app.tasks.classification import Interpreter
from app.telemetry import requests
from app.telemetry.metrics import ModelMetrics
from app.telemetry.requests import (
    ClientAddress,
    Headers,
    RequestState,
    given_id,
    new_request_id,
)

PATHS = frozenset({predict.PATH})

MAX_BYTES = 16 << 10
"""Of a body: several times that of a small image, and little beside the head that may come with it,
because bodies that are collected are not counted with the others."""

MAX_PLANS = 64
"""Of targets that are remembered."""


class Client(Protocol):
    """The client of a whole request, as in `app.server.application`."""

    @property
    def address(self) -> ClientAddress:
        """Host and port."""

    def reply(self, status: int, lines: bytes, body: bytes) -> bool:
        """Write status, lines of headers and body; return whether the client was there."""

    def decline(self, body: bytes) -> None:
        """Leave the request to the routes after all."""


@dataclass(frozen=True)
class _Plan:
    """What a target asks for."""

    artifact: Artifact
    interpreter: Interpreter
    batcher: Batcher
    metrics: ModelMetrics


class FastPaths:
    """Answers requests that arrive whole.

    Attributes:
        service: that answers.
        cors: lets pages of other origins read answers.
        prefix: finds the prefix of a proxy.
        upload_limits: of one image.
        max_pixels: of an image that is decoded in the event loop.
    """

    def __init__(self, service: Service, cors: Cors | None, prefix: Prefix) -> None:
        settings = service.settings
        self.service = service
        self.cors = cors
        self.prefix = prefix
        self.upload_limits = replace(service.upload_limits, max_images=1)
        self.max_pixels = min(INLINE_PIXELS, settings.max_pixels, settings.max_pixels_whole)
        self._plans: dict[bytes, _Plan] = {}

    def handler(self, target: bytes, headers: Headers) -> "Handler | None":
        """Return the handler of requests with this head; None if the routes have to answer them.

        Args:
            target: of a POST to one of `PATHS`.
            headers: the request's; names are in lower case.
        """
        try:
            return Handler(self, self._plan(target), headers)
        except Exception:  # noqa: BLE001 - the route meets it again, and answers for it
            return None

    def refusal(self, target: bytes) -> QueueFull | None:
        """Return the error of a POST to this target, one of the last, if it may not wait."""
        plan = self._plans.get(target)
        return plan.batcher.refusal if plan is not None else None

    def _plan(self, target: bytes) -> _Plan:
        plan = self._plans.get(target)
        if plan is None:
            plan = self._make_plan(target)
            if len(self._plans) >= MAX_PLANS:  # targets are the clients'
                del self._plans[next(iter(self._plans))]
            self._plans[target] = plan
        return plan

    def _make_plan(self, target: bytes) -> _Plan:
        # As FastAPI reads the query of a route.
        request = Request({"type": "http", "query_string": target.partition(b"?")[2]})
        refuse_repeated(request)
        query = PredictQuery.model_validate(dict(request.query_params))
        service = self.service
        artifact = service.store.find(query.model, query.version, "classification")
        check_task(service.store, artifact, "classification")
        return _Plan(
            artifact,
            predict.interpreter_of(service, artifact, query),
            service.batchers[artifact.ref],
            service.model_metrics[artifact.ref],
        )


class Handler:
    """Answers predictions whose requests have one head."""

    def __init__(self, paths: FastPaths, plan: _Plan, headers: Headers) -> None:
        """Read the head.

        Raises:
            RequestError: something is wrong with it.
        """
        self.service = paths.service
        self.plan = plan
        self.headers = dict(headers)
        self.all_headers = headers
        self.request_id = given_id(headers)
        self.timeout = timeout_of(self.headers, self.service.settings)
        self.prefix = paths.prefix
        self.cross_origin = paths.cors.lines(headers).decode("latin-1") if paths.cors else ""
        self._paths = paths

    @property
    def refusal(self) -> QueueFull | None:
        """The error of a request that comes now, if it may not wait."""
        return self.plan.batcher.refusal

    def begin(self, body: bytes, started: float, client: Client) -> "Prediction | None":
        """Begin a prediction.

        Args:
            body: the whole body, of at most `most_bytes`.
            started: when the head had arrived, in `time.perf_counter()`.
            client: is answered once, unless the prediction is ended.

        Returns:
            None if the routes have to answer.
        """
        try:
            (file,) = read_whole(self.headers, body, self._paths.upload_limits)
            if not is_bounded(file.data):
                return None
            prediction = Prediction(self, client, body, file, started)
            prediction.begin()
        except Exception:  # noqa: BLE001 - the route meets it again, and answers for it
            return None
        return prediction

    def decode(self, file: Upload) -> Images:
        """Decode the only image of a request: uint8 `[1,H,W,3]`.

        Raises:
            ImageError: it cannot be decoded, or not quickly.
        """
        manifest, limit = self.plan.artifact.manifest, self._paths.max_pixels
        return decode(file.data, manifest.image_size, limit, resize=manifest.resize)[np.newaxis]


class Prediction:
    """One request that waits for its model."""

    def __init__(
        self, handler: Handler, client: Client, body: bytes, file: Upload, started: float
    ) -> None:
        """Prepare.

        Args:
            handler: of the request's head.
            client: is answered.
            body: is handed back if the routes have to answer.
            file: the image in it.
            started: when the head had arrived, in `time.perf_counter()`.
        """
        self._handler = handler
        self._client = client
        self._body = body
        self._file = file
        self._started = started
        self.state = RequestState("POST", predict.PATH, handler.request_id or new_request_id())
        self.state.route, self.state.model = predict.PATH, handler.plan.artifact.ref

    def begin(self) -> None:
        """Wait for the model.

        Raises:
            PredictionError: it takes no more.
        """
        self._read_seconds = time.perf_counter() - self._started
        self._future = self._handler.plan.batcher.begin(self._decode, self._handler.timeout)
        self._handler.service.metrics.begin_request()
        self._future.add_done_callback(self._finish)

    def end(self) -> None:
        """Give the request up; `state.ended_with` says with which status it is counted."""
        self._future.cancel()

    def _decode(self) -> Images:
        self._images = self._handler.decode(self._file)
        return self._images

    def _finish(self, future: "asyncio.Future[Answer]") -> None:
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
        except ImageError:  # the route meets it again, and answers for it
            self._handler.service.metrics.withdraw_request()
            self._client.decline(self._body)
            return
        except Exception as exc:  # noqa: BLE001 - a client waits for an answer
            answer = None
            status, lines, content = self._refusal(exc)
        delivered = False
        try:
            delivered = self._client.reply(status, lines, content)
        finally:
            self._count(status if delivered else problems.CLIENT_GONE)
        if delivered and answer is not None:
            self._count_images(answer)

    def _count(self, status: int) -> None:
        seconds = time.perf_counter() - self._started
        end_request(self._handler.service.metrics, self.state, status, seconds)

    def _count_images(self, answer: Answer) -> None:
        plan = self._handler.plan
        self._handler.service.metrics.observe_stages(self._read_seconds, answer.load_seconds)
        plan.metrics.answered(plan.interpreter.labels(answer.outputs), answer.queue_seconds)

    def _lines(self, answer: Answer) -> bytes:
        timing = server_timing(self._read_seconds, answer.load_seconds, answer)
        return (
            f"content-type: application/json\r\nserver-timing: {timing}\r\n"
            f"x-request-id: {self.state.request_id}\r\n{self._handler.cross_origin}"
        ).encode()

    def _content(self, answer: Answer) -> bytes:
        interpreter = self._handler.plan.interpreter
        return interpreter.render(answer.outputs, self._images, [self._file.filename]).encode()

    @property
    def _path(self) -> str:
        """The path as the client knows it."""
        handler = self._handler
        return handler.prefix.published(predict.PATH, handler.all_headers, self._client.address)

    def _refusal(self, error: Exception) -> tuple[int, bytes, bytes]:
        if isinstance(error, DeadlineExceeded):
            error = DeadlineExceeded(f"no answer within {self._handler.timeout:g} s")
        if isinstance(error, ConvscopeError):
            self.state.rejection = problems.reason(type(error))
        token = requests.current.set(self.state)
        try:
            status, headers, content = problems.render(error, self._path, self.state.request_id)
        finally:
            requests.current.reset(token)
        headers["x-request-id"] = self.state.request_id
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return status, (lines + self._handler.cross_origin).encode(), content
