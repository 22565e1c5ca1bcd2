"""POST /predict: images in, classes out. The straight line of the service.

uploads.read -> images.decode -> batcher.submit -> Backend.predict -> schemas
"""

import asyncio
import time
from collections.abc import Sequence

import numpy as np
from fastapi import APIRouter, Request, Response

from app import http_errors, uploads
from app.batcher import Answer
from app.contract import Artifact, Images
from app.errors import DeadlineExceeded, ImageError, InvalidParameter, TooManyPixels
from app.images import decode
from app.routes import artifact_of, read_query, service_of
from app.routes.request_body import DOCUMENTATION, TIMEOUT_HEADER
from app.schemas import Predictions, PredictQuery, top_k_of
from app.service import Service
from app.settings import Settings
from app.store import key_of
from app.uploads import Upload

router = APIRouter(tags=["classify"])

# What a thread would take longer to be handed than the event loop takes to decode it.
INLINE_BYTES = 64 << 10
INLINE_PIXELS = 128 * 128

_TIMEOUT = TIMEOUT_HEADER.lower().encode()


@router.post(
    "/predict",
    response_model=Predictions,
    responses=http_errors.documented(400, 404, 408, 413, 415, 422, 500, 503, 504),
    openapi_extra=DOCUMENTATION,
)
async def predict(request: Request) -> Response:
    """Classify one image or many.

    Send an image as the body, one or many as the parts `file` of a form, or base64 in JSON.
    `Server-Timing` says how many milliseconds reading, decoding, waiting and inference took.
    """
    started = time.perf_counter()
    service = service_of(request)
    query = read_query(request, PredictQuery)
    artifact = artifact_of(request, query)
    top_k = top_k_of(query.top_k, artifact)
    headers = dict(request.scope["headers"])
    patience = _patience(headers.get(_TIMEOUT), service.settings)
    with service.bodies.hold() as hold:
        received = await uploads.read(headers, request.receive, service.upload_limits, hold)
        hold.complete()
        deadline = asyncio.get_running_loop().time() + patience
        read = time.perf_counter()
        try:
            images = await _decode(service, artifact, received, deadline)
            decoded = time.perf_counter()
            answer = await service.batchers[key_of(artifact)].submit(images, deadline)
        except (TimeoutError, DeadlineExceeded) as exc:
            raise DeadlineExceeded(f"no answer within {patience:g} s") from exc
    names = [upload.filename for upload in received]
    content = Predictions.render(artifact, answer.probabilities, names, top_k)
    _count(service, artifact, answer, read - started, decoded - read)
    timing = _server_timing(read - started, decoded - read, answer)
    return Response(content, media_type="application/json", headers={"Server-Timing": timing})


def _patience(wanted: bytes | None, settings: Settings) -> float:
    """Return the seconds that the client, or else the setting, gives the answer."""
    if wanted is None:
        return settings.request_timeout_seconds
    # Ten digits are a hundred days.
    if not (wanted.isdigit() and len(wanted) <= 10 and int(wanted)):
        given = wanted[:64].decode("latin-1")
        raise InvalidParameter(
            f"{TIMEOUT_HEADER}={given!r}: must be a whole number of milliseconds from 1 to "
            f"{settings.max_request_timeout_seconds * 1000:g}; more counts as that"
        )
    return min(int(wanted) / 1000, settings.max_request_timeout_seconds)


async def _decode(
    service: Service,
    artifact: Artifact,
    received: Sequence[Upload],
    deadline: float,
) -> Images:
    """Decode all images of a request: uint8 `[N,H,W,3]`; TimeoutError at the deadline.

    One at a time, so that others have their turn between two, and none is begun for nobody.
    """
    size = artifact.manifest.image_size
    images = np.empty((len(received), *size, 3), np.uint8)
    try:
        for index, upload in enumerate(received):
            if index:
                async with asyncio.timeout_at(deadline):
                    await asyncio.sleep(0)
            images[index] = await _decode_one(service, upload.data, size, deadline)
    except ImageError as exc:
        if len(received) == 1:
            raise
        name = f" ({upload.filename})" if upload.filename else ""
        raise type(exc)(f"image {index}{name} of {len(received)}: {exc}") from exc
    return images


async def _decode_one(
    service: Service, data: bytes, size: tuple[int, int], deadline: float
) -> Images:
    """Decode one image: uint8 `[H,W,3]`; a large one in a thread."""
    limit, whole = service.settings.max_pixels, service.settings.max_pixels_whole
    if len(data) <= INLINE_BYTES:
        try:
            inline = min(limit, INLINE_PIXELS)
            return decode(data, size, inline, max_pixels_whole=min(whole, inline))
        except TooManyPixels:  # few bytes can hold many pixels; in the thread, then
            pass
    async with asyncio.timeout_at(deadline):
        return await service.in_thread(decode, data, size, limit, max_pixels_whole=whole)


def _count(
    service: Service, artifact: Artifact, answer: Answer, read: float, decode: float
) -> None:
    classes = artifact.manifest.classes
    labels = [classes[index] for index in answer.probabilities.argmax(axis=1).tolist()]
    service.metrics.observe_stages(read, decode)
    service.model_metrics[key_of(artifact)].answered(labels, answer.queue_seconds)


def _server_timing(read: float, decode: float, answer: Answer) -> str:
    return (
        f"read;dur={read * 1000:.3f}, decode;dur={decode * 1000:.3f}, "
        f"queue;dur={answer.queue_seconds * 1000:.3f}, "
        f"inference;dur={answer.inference_seconds * 1000:.3f}"
    )
