"""POST /detect: pictures in, the objects in them out; JSON in COCO's terms, or a drawing.

api.pictures -> images.decode -> batcher.submit -> Backend.predict -> tasks.detection
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from app.api.dependencies import artifact_of, parameters_once, service_of
from app.api.negotiation import JSON, PNG, choose, one_in_png
from app.api.openapi import document_body, document_problems
from app.api.pictures import answered_pictures
from app.api.queries import DetectQuery
from app.api.schemas import Detections
from app.api.state import Service
from app.artifact.directory import Artifact
from app.explore.boxes import draw_found
from app.explore.pictures import DRAWN_SIDE
from app.images.decode import decode_whole
from app.images.placement import Placement
from app.tasks.detection import Found, Interpreter

router = APIRouter(tags=["detect"], dependencies=[Depends(parameters_once)])

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
    service = service_of(request)
    artifact = artifact_of(request, query, "detection")
    media_type = choose(request, _OFFERS, query.format)
    interpreter = Interpreter(
        artifact,
        score_threshold=query.score_threshold,
        iou_threshold=query.iou_threshold,
        max_detections=query.max_detections,
    )
    most = one_in_png(query.format) if media_type == PNG else None
    async with answered_pictures(request, artifact, most=most) as answered:
        placements = answered.placements
        found = interpreter.find(answered.answer.outputs, placements)
        content: str | bytes
        if media_type == PNG:
            data = answered.files[0].data
            content = await service.explore(
                _drawing, service, artifact, data, placements[0], found[0]
            )
        else:
            content = interpreter.render(found, placements, answered.filenames, answered.warnings)
    answered.count(service, artifact, interpreter.labels(found))
    headers = {"Server-Timing": answered.timing, "Vary": "Accept"}
    return Response(content, media_type=media_type, headers=headers)


def _drawing(
    service: Service, artifact: Artifact, data: bytes, placement: Placement, found: Found
) -> bytes:
    settings = service.settings
    whole = decode_whole(
        data, DRAWN_SIDE, settings.max_pixels, max_pixels_whole=settings.max_pixels_whole
    )
    return draw_found(
        whole,
        placement.picture,
        found.boxes,
        found.labels,
        found.scores,
        artifact.manifest.classes,
    )
