"""POST /explain: the evidence of each pixel for a class; JSON, a heat map or an overlay."""

import math
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Query, Request, Response

from app.api.dependencies import artifact_of, class_id_of, parameters_once, service_of
from app.api.negotiation import JSON, PNG, as_json, choose
from app.api.openapi import document_body, document_problems
from app.api.pictures import Picture, one_picture
from app.api.queries import ExplainQuery
from app.api.schemas import Explanation
from app.api.state import Service
from app.artifact.directory import Artifact
from app.artifact.tensors import Images, Probabilities
from app.errors import InvalidParameter, NothingToSee
from app.explore import heat_maps, saliency
from app.explore.layers import Inside
from app.explore.saliency import PERTURBATIONS, Heat, SaliencyMethod
from app.images.decode import decode_whole
from app.images.placement import place

# Multiply-accumulates of a batch of copies: a twentieth of a second of one core, so that a
# prediction does not wait long behind it.
TURN_MACS = 2_000_000_000

router = APIRouter(tags=["what is inside"], dependencies=[Depends(parameters_once)])

OVERLAY_SIDE = 1024
LEAST_OVERLAY_SIDE = 256
HEAT_MAP_SCALE = 8

_OFFERS = {"json": JSON, "png": PNG, "overlay": PNG}


@router.post(
    "/explain",
    response_model=Explanation,
    responses=document_problems(400, 404, 406, 408, 409, 413, 415, 422, 500, 503, 504)
    | {
        200: {
            "description": "The evidence of each pixel for the class, or against it.",
            "content": {PNG: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
    openapi_extra=document_body(several=False),
)
async def explain(request: Request, query: Annotated[ExplainQuery, Query()]) -> Response:
    """Return the evidence of each pixel of one image for a class.

    The class is the predicted one unless the parameter `class` names another.
    """
    service = service_of(request)
    artifact = artifact_of(request, query, "classification")
    method = _method(artifact, query)
    media_type = choose(request, _OFFERS, query.format)
    wanted = None if query.class_ is None else class_id_of(artifact, query.class_, InvalidParameter)
    gate = service.explain_gates[artifact.ref]
    async with one_picture(request, artifact) as picture, gate.enter():
        answer = await service.batchers[artifact.ref].submit(
            picture.image[np.newaxis], picture.deadline
        )
        probabilities = answer.outputs.probabilities[0]
        class_id = int(probabilities.argmax()) if wanted is None else wanted
        if method == "cam":
            inside = await service.look_inside(artifact)
            heat = await service.explore(_class_activation, inside, picture, class_id)
        else:
            perturbation = PERTURBATIONS[method]
            after = await _ask(service, artifact, perturbation.copies(picture.image), picture)
            size = artifact.manifest.image_size
            heat = perturbation.heat(size, class_id, probabilities, after)
        if media_type == JSON:
            content = _as_json(artifact, method, class_id, probabilities, heat)
        elif query.format == "overlay":
            content = await service.explore(_as_overlay, service, artifact, picture, heat)
        else:
            content = await service.explore(heat_maps.draw_heat, heat, HEAT_MAP_SCALE)
    return Response(content, media_type=media_type, headers={"Vary": "Accept"})


def _method(artifact: Artifact, query: ExplainQuery) -> SaliencyMethod:
    if query.method == "cam" and not artifact.manifest.averages_features:
        raise NothingToSee(
            f"method=cam: {artifact.ref} ({artifact.manifest.architecture}) does not end in global "
            f"average pooling; method={' and method='.join(PERTURBATIONS)} work for every model"
        )
    return query.method


async def _ask(
    service: Service, artifact: Artifact, copies: Images, picture: Picture
) -> Probabilities:
    """Return the probabilities of a picture's copies, `[copies,classes]`.

    A small batch at a time: other requests get their turn in between.
    """
    batcher = service.batchers[artifact.ref]
    settings = service.settings
    light = artifact.manifest.images_within(TURN_MACS)
    size = min(light, settings.max_batch, settings.queue_capacity)
    answers = [
        await batcher.submit(copies[start : start + size], picture.deadline)
        for start in range(0, len(copies), size)
    ]
    return np.concatenate([answer.outputs.probabilities for answer in answers])


def _class_activation(inside: Inside, picture: Picture, class_id: int) -> Heat:
    features, weights = inside.layers.features(picture.image), inside.weights_of(class_id)
    return saliency.class_activation_map(features, weights, inside.artifact.manifest.image_size)


def _as_overlay(service: Service, artifact: Artifact, picture: Picture, heat: Heat) -> bytes:
    settings = service.settings
    whole = decode_whole(
        picture.data,
        OVERLAY_SIDE,
        settings.max_pixels,
        max_pixels_whole=settings.max_pixels_whole,
    )
    height, width = artifact.manifest.image_size
    shown = whole.shape[1], whole.shape[0]
    box = place(shown, (width, height), artifact.manifest.resize.policy).box
    scale = math.ceil(LEAST_OVERLAY_SIDE / max(whole.shape[:2]))
    return heat_maps.draw_overlay(whole, box, heat, scale)


def _as_json(
    artifact: Artifact,
    method: SaliencyMethod,
    class_id: int,
    probabilities: Probabilities,
    heat: Heat,
) -> bytes:
    manifest = artifact.manifest
    content = {
        "model": manifest.name,
        "version": manifest.version,
        "method": method,
        "label": manifest.classes[class_id],
        "class_id": class_id,
        "probability": probabilities[class_id],
        "heat": heat,
    }
    return as_json(content)
