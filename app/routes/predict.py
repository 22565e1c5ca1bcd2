"""POST /predict: images in, classes out. The straight line of the service.

uploads.read -> images.decode -> batcher.submit -> Backend.predict -> schemas
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request, Response

from app import http_errors, uploads
from app.batcher import Answer
from app.contract import Artifact, Images
from app.errors import DeadlineExceeded, ImageError, TooManyPixels
from app.images import decode
from app.routes import artifact_of, service_of
from app.routes.request_body import REQUEST_BODY
from app.schemas import Predictions, PredictQuery, top_k_of
from app.service import Service
from app.settings import Settings
from app.store import key_of
from app.uploads import Upload, UploadLimits

router = APIRouter(tags=["classify"])

# What a thread would take longer to be handed than the event loop takes to decode it.
INLINE_BYTES = 64 << 10
INLINE_PIXELS = 128 * 128


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
    received = await uploads.read(request, _upload_limits(service.settings))
    deadline = asyncio.get_running_loop().time() + service.settings.request_timeout_seconds
    started = time.perf_counter()
    images = await _decode(service, artifact, received, deadline)
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


async def _decode(
    service: Service, artifact: Artifact, received: Sequence[Upload], deadline: float
) -> Images:
    """Decode all images of a request: uint8 `[N,H,W,3]`; the large ones in a thread."""
    size = artifact.manifest.image_size
    settings = service.settings
    limits = settings.max_pixels, settings.max_pixels_whole
    if sum(len(upload.data) for upload in received) <= INLINE_BYTES:
        try:
            return _decode_all(received, size, *(min(limit, INLINE_PIXELS) for limit in limits))
        except TooManyPixels:  # few bytes can hold many pixels; in the thread, then
            pass
    try:
        async with asyncio.timeout_at(deadline):
            return await service.in_thread(_decode_all, received, size, *limits)
    except TimeoutError as exc:
        raise DeadlineExceeded(
            f"not decoded within {settings.request_timeout_seconds:g} s"
        ) from exc


def _decode_all(
    received: Sequence[Upload], size: tuple[int, int], max_pixels: int, max_pixels_whole: int
) -> Images:
    images = np.empty((len(received), *size, 3), np.uint8)
    for index, upload in enumerate(received):
        try:
            images[index] = decode(upload.data, size, max_pixels, max_pixels_whole=max_pixels_whole)
        except ImageError as exc:
            if len(received) == 1:
                raise
            name = f" ({upload.filename})" if upload.filename else ""
            raise type(exc)(f"image {index}{name} of {len(received)}: {exc}") from exc
    return images


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
