"""POST /detect: pictures in, the objects in them out; JSON in COCO's terms, or a drawing.

read_files -> images.decode -> batcher.submit -> Backend.predict -> tasks.detection
"""

import asyncio
import time
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from app.api.dependencies import artifact_of, refuse_repeated, service_of
from app.api.negotiation import JSON, PNG, choose
from app.api.openapi import document_body, document_problems
from app.api.pictures import decode_images, server_timing, timeout_of
from app.api.queries import DetectQuery
from app.api.schemas import Detections
from app.api.state import Service
from app.api.uploads.body import read_files
from app.artifact.directory import Artifact
from app.errors import DeadlineExceeded
from app.explore.boxes import Box, draw_boxes
from app.images.decode import decode_whole, warning_of
from app.images.placement import Placement
from app.tasks.detection import Found, Interpreter

router = APIRouter(tags=["detect"], dependencies=[Depends(refuse_repeated)])

DRAWN_SIDE = 1280
"""Of a drawing's longer side in pixels; a larger picture is reduced."""

_OFFERS = {"json": JSON, "png": PNG}


@router.post(
    "/detect",
    response_model=Detections,
    responses=document_problems(400, 404, 406, 408, 409, 413, 415, 422, 500, 503, 504)
    | {
        200: {
            "description": "The objects, or a PNG of the picture with boxes drawn.",
            "content": {PNG: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
    openapi_extra=document_body(several=True),
)
async def detect(request: Request, query: Annotated[DetectQuery, Query()]) -> Response:
    """Find the objects in one picture or many.

    Send pictures as to `/predict`. Boxes are in pixels of the picture that was sent, upright. A PNG
    shows one picture.
    """
    started = time.perf_counter()
    service = service_of(request)
    artifact = artifact_of(request, query, "detection")
    media_type = choose(request, _OFFERS, query.format)
    interpreter = Interpreter(
        artifact,
        score_threshold=query.score_threshold,
        iou_threshold=query.iou_threshold,
        max_detections=query.max_detections,
    )
    headers = dict(request.scope["headers"])
    timeout = timeout_of(headers, service.settings)
    limits = service.upload_limits
    if media_type == PNG:
        limits = replace(limits, max_images=1)
    with service.bodies.hold() as hold:
        files = await read_files(headers, request.receive, limits, hold)
        deadline = asyncio.get_running_loop().time() + timeout
        read = time.perf_counter()
        batcher = service.batchers[artifact.ref]
        batcher.check_wait()
        try:
            async with asyncio.timeout_at(deadline):
                pictures = await decode_images(service, artifact, files, deadline)
                decoded = time.perf_counter()
                answer = await batcher.submit(pictures.images, deadline)
                found = interpreter.find(answer.outputs, pictures.placements)
                content: str | bytes
                if media_type == PNG:
                    content = await service.explore(
                        _drawing, service, artifact, files[0].data, pictures.placements[0], found[0]
                    )
                else:
                    names = [file.filename for file in files]
                    faults = [warning_of(file.data) for file in files]
                    content = interpreter.render(found, pictures.placements, names, faults)
        except (TimeoutError, DeadlineExceeded) as exc:
            raise DeadlineExceeded(f"no answer within {timeout:g} s") from exc
    service.metrics.observe_stages(read - started, decoded - read)
    service.model_metrics[artifact.ref].answered(interpreter.labels(found), answer.queue_seconds)
    timing = server_timing(read - started, decoded - read, answer)
    return Response(
        content, media_type=media_type, headers={"Server-Timing": timing, "Vary": "Accept"}
    )


def _drawing(
    service: Service, artifact: Artifact, data: bytes, placement: Placement, found: Found
) -> bytes:
    settings = service.settings
    whole = decode_whole(
        data, DRAWN_SIDE, settings.max_pixels, max_pixels_whole=settings.max_pixels_whole
    )
    across, down = whole.shape[1] / placement.picture[0], whole.shape[0] / placement.picture[1]
    boxes = [
        Box((x * across, y * down, width * across, height * down), label, score)
        for (x, y, width, height), label, score in zip(
            found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True
        )
    ]
    return draw_boxes(whole, boxes, artifact.manifest.classes)
