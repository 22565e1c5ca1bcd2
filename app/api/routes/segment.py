"""POST /segment: pictures in, the classes of their pixels and the objects in them out.

api.pictures -> images.decode -> batcher.submit -> Backend.predict -> tasks.segmentation

Masks are made in the threads that decode large images: both take time and memory that grow with the
picture.
"""

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from app.api.dependencies import artifact_of, parameters_once, service_of
from app.api.negotiation import JSON, PNG, choose, one_in_png
from app.api.openapi import document_body, document_problems
from app.api.pictures import Answered, answered_pictures
from app.api.queries import SegmentQuery
from app.api.schemas import Segments
from app.api.state import Service
from app.artifact.directory import Artifact
from app.errors import InvalidParameter
from app.explore.masks import draw_masks, index_png
from app.explore.pictures import DRAWN_SIDE
from app.images.decode import decode_whole, warning_of
from app.tasks.segmentation import Described, Interpreter

router = APIRouter(tags=["segment"], dependencies=[Depends(parameters_once)])

MAX_OUTPUT_BYTES = 256 << 20
"""Of a request: the maps of all its images are in memory until the last mask is made."""

_OFFERS = {"json": JSON, "png": PNG, "overlay": PNG}


@router.post(
    "/segment",
    response_model=Segments,
    responses=document_problems(400, 404, 406, 408, 409, 413, 415, 422, 500, 503, 504)
    | {
        200: {
            "description": "The masks; or a palette PNG of classes, or one of the picture with "
            "the masks over it.",
            "content": {PNG: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
    openapi_extra=document_body(several=True),
)
async def segment(request: Request, query: Annotated[SegmentQuery, Query()]) -> Response:
    """Find the class of each pixel of one picture or many, and the objects in them.

    Send pictures as to `/predict`. Masks are in pixels of the picture that was sent, upright. A PNG
    shows one picture.
    """
    service = service_of(request)
    artifact = artifact_of(request, query, "segmentation")
    media_type = choose(request, _OFFERS, query.format)
    interpreter = Interpreter(
        artifact, score_threshold=query.score_threshold, max_instances=query.max_instances
    )
    is_map = media_type == PNG and query.format != "overlay"
    if is_map:
        _refuse_objects(query)
    most = one_in_png(query.format) if media_type == PNG else _most_images(artifact)
    async with answered_pictures(request, artifact, most=most) as answered:
        started = time.perf_counter()
        content: bytes
        labels: list[str]
        if is_map:
            content, labels = await service.decode(_map, artifact, interpreter, answered), []
        elif media_type == PNG:
            content, labels = await service.decode(_overlay, service, interpreter, answered)
        else:
            pictures = [
                await service.decode(_described, interpreter, answered, index)
                for index in range(len(answered.files))
            ]
            content = interpreter.render(pictures)
            labels = [label for picture in pictures for label in picture.labels]
        seconds = time.perf_counter() - started
    answered.count(service, artifact, labels)
    service.model_metrics[artifact.ref].masked(seconds)
    timing = f"{answered.timing}, masks;dur={seconds * 1000:.3f}"
    headers = {"Server-Timing": timing, "Vary": "Accept"}
    return Response(content, media_type=media_type, headers=headers)


def _refuse_objects(query: SegmentQuery) -> None:
    """Raise InvalidParameter for a limit of objects, of which a map of classes has none."""
    for name in ("score_threshold", "max_instances"):
        value = getattr(query, name)
        if value is not None:
            raise InvalidParameter(
                f"{name}={value:g}: a PNG of classes has no objects; format=overlay and JSON do"
            )


def _most_images(artifact: Artifact) -> tuple[int, str]:
    """Return how many images have maps of `MAX_OUTPUT_BYTES`, and the reason; at least one."""
    height, width = artifact.manifest.image_size
    maps = len(artifact.manifest.classes) + 2
    most = max(MAX_OUTPUT_BYTES // (4 * maps * height * width), 1)
    return most, f"each has {maps} maps of {width}x{height} in memory"


def _described(interpreter: Interpreter, answered: Answered, index: int) -> Described:
    return interpreter.describe(
        answered.answer.outputs_of(index),
        answered.placements[index],
        answered.files[index].filename,
        warning_of(answered.files[index].data),
    )


def _map(artifact: Artifact, interpreter: Interpreter, answered: Answered) -> bytes:
    classes = interpreter.classes(answered.answer.outputs, answered.placements[0])
    return index_png(classes, len(artifact.manifest.classes))


def _overlay(
    service: Service, interpreter: Interpreter, answered: Answered
) -> tuple[bytes, list[str]]:
    settings = service.settings
    whole = decode_whole(
        answered.files[0].data,
        DRAWN_SIDE,
        settings.max_pixels,
        max_pixels_whole=settings.max_pixels_whole,
    )
    placement = answered.placements[0].reduced((whole.shape[1], whole.shape[0]))
    segmented = interpreter.segment(answered.answer.outputs, placement)
    return draw_masks(whole, *segmented.regions), interpreter.labels(segmented)
