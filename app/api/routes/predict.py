"""POST /predict: images in, classes out. The straight line of the service.

uploads.read -> images.decode -> batcher.submit -> Backend.predict -> schemas
"""

import asyncio
import time
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from app.api import uploads
from app.api.openapi import document_body, document_problems
from app.api.pictures import decode_all, patience_of
from app.api.queries import PredictQuery
from app.api.routes import artifact_of, refuse_repeated, service_of
from app.api.schemas import Predictions, top_k_of
from app.api.state import Service
from app.artifact.directory import Artifact
from app.artifact.manifest import Confidence
from app.errors import DeadlineExceeded, NothingToSee
from app.inference.batcher import Answer
from app.tasks import classification

PATH = "/predict"

router = APIRouter(tags=["classify"], dependencies=[Depends(refuse_repeated)])


@router.post(
    PATH,
    response_model=Predictions,
    responses=document_problems(400, 404, 408, 413, 415, 422, 500, 503, 504),
    openapi_extra=document_body(several=True),
)
async def predict(request: Request, query: Annotated[PredictQuery, Query()]) -> Response:
    """Classify one image or many.

    Send an image as the body, one or many as the parts `file` of a form, or base64 in JSON.
    `Server-Timing` says how many milliseconds reading, decoding, waiting and inference took.
    """
    started = time.perf_counter()
    service = service_of(request)
    artifact = artifact_of(request, query)
    top_k = top_k_of(query.top_k, artifact)
    confidence = artifact.manifest.confidence.get(service.settings.precision)
    threshold = _threshold(query, artifact, confidence)
    headers = dict(request.scope["headers"])
    patience = patience_of(headers, service.settings)
    with service.bodies.hold() as hold:
        received = await uploads.read(headers, request.receive, service.upload_limits, hold)
        deadline = asyncio.get_running_loop().time() + patience
        read = time.perf_counter()
        try:
            images = await decode_all(service, artifact, received, deadline)
            decoded = time.perf_counter()
            answer = await service.batchers[artifact.ref].submit(images, deadline)
        except (TimeoutError, DeadlineExceeded) as exc:
            raise DeadlineExceeded(f"no answer within {patience:g} s") from exc
    sets = None
    if threshold is not None:
        probabilities = answer.outputs.probabilities
        sets = classification.prediction_sets(probabilities, images, query.sets, threshold)
    names = [upload.filename for upload in received]
    content = Predictions.render(artifact, answer.outputs, names, top_k, confidence, sets)
    _count(service, artifact, answer, read - started, decoded - read)
    timing = _server_timing(read - started, decoded - read, answer)
    return Response(content, media_type="application/json", headers={"Server-Timing": timing})


def _threshold(
    query: PredictQuery, artifact: Artifact, confidence: Confidence | None
) -> float | None:
    """Return the highest score in a prediction set, or None if no sets are asked for."""
    if query.coverage is None:
        return None
    if confidence is None:
        raise NothingToSee(
            f"coverage={query.coverage:g}: {artifact.ref} was exported without the "
            "thresholds of prediction sets; `convscope-train export` adds them today"
        )
    return classification.find_threshold(confidence.conformal, query.coverage, query.sets)


def _count(
    service: Service, artifact: Artifact, answer: Answer, read: float, decode: float
) -> None:
    classes = artifact.manifest.classes
    labels = [classes[index] for index in answer.outputs.probabilities.argmax(axis=1).tolist()]
    service.metrics.observe_stages(read, decode)
    service.model_metrics[artifact.ref].answered(labels, answer.queue_seconds)


def _server_timing(read: float, decode: float, answer: Answer) -> str:
    return (
        f"read;dur={read * 1000:.3f}, decode;dur={decode * 1000:.3f}, "
        f"queue;dur={answer.queue_seconds * 1000:.3f}, "
        f"inference;dur={answer.inference_seconds * 1000:.3f}"
    )
