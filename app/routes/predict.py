"""POST /predict: images in, classes out. The straight line of the service.

uploads.read -> images.decode -> batcher.submit -> Backend.predict -> schemas
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from starlette.requests import ClientDisconnect

from app import http_errors, uploads
from app.batcher import Answer
from app.contract import Artifact, Images
from app.errors import DeadlineExceeded, ImageError, QueueFull, TooManyPixels
from app.images import decode
from app.routes import artifact_of, service_of
from app.routes.request_body import REQUEST_BODY
from app.schemas import Predictions, PredictQuery, top_k_of
from app.service import Bodies, Service
from app.settings import Settings
from app.store import key_of
from app.uploads import Upload, UploadLimits

router = APIRouter(tags=["classify"])

# What a thread would take longer to be handed than the event loop takes to decode it.
INLINE_BYTES = 64 << 10
INLINE_PIXELS = 128 * 128

WATCH_AFTER_SECONDS = 0.02
"""When a client that waits for its answer begins to be watched."""


@router.post(
    "/predict",
    response_model=Predictions,
    response_model_exclude_none=True,
    responses=http_errors.documented(400, 404, 408, 413, 415, 422, 500, 503, 504),
    openapi_extra=REQUEST_BODY,
)
async def predict(request: Request, query: Annotated[PredictQuery, Query()]) -> Response:
    """Classify one image or many.

    Send an image as the body, one or many as the parts `file` of a form, or base64 in JSON.
    `Server-Timing` says how many milliseconds decoding, waiting and inference took.
    """
    service = service_of(request)
    artifact = artifact_of(request, query)
    top_k = top_k_of(query.top_k, artifact)
    with _held(service.bodies) as hold:
        received = await uploads.read(request, _upload_limits(service.settings), hold)
        patience = service.settings.request_timeout_seconds
        async with _awaited(request, patience) as deadline:
            started = time.perf_counter()
            images = await _decode(service, artifact, received)
            decode_seconds = time.perf_counter() - started
            answer = await service.batchers[key_of(artifact)].submit(images, deadline)
    names = [upload.filename for upload in received]
    predictions = Predictions.build(artifact, answer.probabilities, names, top_k)
    _count(service, artifact, predictions, decode_seconds, answer)
    return Response(
        predictions.model_dump_json(exclude_none=True),
        media_type="application/json",
        headers={"Server-Timing": _server_timing(decode_seconds, answer)},
    )


def _upload_limits(settings: Settings) -> UploadLimits:
    return UploadLimits(
        max_body_bytes=settings.max_body_bytes,
        max_images=settings.max_images,
        body_timeout_seconds=settings.body_timeout_seconds,
    )


@contextmanager
def _held(bodies: Bodies) -> Iterator[Callable[[int], None]]:
    """Count the bytes of a body as held until the request ends.

    What is given takes the size that the body has so far, and raises QueueFull if that is too much.
    """
    size = 0

    def hold(size_now: int) -> None:
        nonlocal size
        others = bodies.held - size
        if others + size_now > bodies.limit:
            raise QueueFull(
                f"bodies of {others} bytes are held and {size_now} more do not fit; "
                f"the limit is {bodies.limit} bytes"
            )
        bodies.held, size = others + size_now, size_now

    try:
        yield hold
    finally:
        bodies.held -= size


@asynccontextmanager
async def _awaited(request: Request, patience: float) -> AsyncIterator[float]:
    """Cancel the block at the deadline that is given, or when the client has gone."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    limit = asyncio.timeout_at(deadline)
    watchers: list[asyncio.Task[None]] = []
    # A task for each request would double what this costs: only what takes long is watched.
    timer = loop.call_later(
        WATCH_AFTER_SECONDS, lambda: watchers.append(asyncio.create_task(_watch(request, limit)))
    )
    try:
        async with limit:
            try:
                yield deadline
            finally:
                timer.cancel()
                for watcher in watchers:
                    watcher.cancel()
    except TimeoutError as exc:
        if limit.when() != deadline:
            raise ClientDisconnect from exc
        raise DeadlineExceeded(f"no answer within {patience:g} s") from exc


async def _watch(request: Request, limit: asyncio.Timeout) -> None:
    """Bring the limit forward to now when the client goes."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    if not limit.expired():
        limit.reschedule(0)


async def _decode(service: Service, artifact: Artifact, received: Sequence[Upload]) -> Images:
    """Decode all images of a request: uint8 `[N,H,W,3]`.

    One at a time, so that others have their turn between two, and none is begun for nobody.
    """
    size = artifact.manifest.image_size
    images = np.empty((len(received), *size, 3), np.uint8)
    for index, upload in enumerate(received):
        if index:
            await asyncio.sleep(0)
        try:
            images[index] = await _decode_one(service, upload.data, size)
        except ImageError as exc:
            if len(received) == 1:
                raise
            name = f" ({upload.filename})" if upload.filename else ""
            raise type(exc)(f"image {index}{name} of {len(received)}: {exc}") from exc
    return images


async def _decode_one(service: Service, data: bytes, size: tuple[int, int]) -> Images:
    """Decode one image: uint8 `[H,W,3]`; a large one in a thread."""
    limit, whole = service.settings.max_pixels, service.settings.max_pixels_whole
    if len(data) <= INLINE_BYTES:
        try:
            inline = min(limit, INLINE_PIXELS)
            return decode(data, size, inline, max_pixels_whole=min(whole, inline))
        except TooManyPixels:  # few bytes can hold many pixels; in the thread, then
            pass
    return await service.in_thread(decode, data, size, limit, max_pixels_whole=whole)


def _count(
    service: Service,
    artifact: Artifact,
    predictions: Predictions,
    decode_seconds: float,
    answer: Answer,
) -> None:
    service.metrics.decode_seconds.observe(decode_seconds)
    labels = [prediction.label for prediction in predictions.predictions]
    service.model_metrics[key_of(artifact)].answered(labels, answer.queue_seconds)


def _server_timing(decode_seconds: float, answer: Answer) -> str:
    steps = {
        "decode": decode_seconds,
        "queue": answer.queue_seconds,
        "inference": answer.inference_seconds,
    }
    return ", ".join(f"{step};dur={seconds * 1000:.3f}" for step, seconds in steps.items())
