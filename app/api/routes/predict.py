"""POST /predict: images in, classes out. The straight line of the service.

read_files -> images.decode -> batcher.submit -> Backend.predict -> tasks.classification
"""

import asyncio
import time
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from app.api.dependencies import artifact_of, refuse_repeated, service_of
from app.api.openapi import document_body, document_problems
from app.api.pictures import decode_images, server_timing, timeout_of
from app.api.queries import PredictQuery
from app.api.schemas import Predictions
from app.api.state import Service
from app.api.uploads.body import read_files
from app.artifact.directory import Artifact
from app.errors import DeadlineExceeded
from app.images.decode import warning_of
from app.tasks.classification import Interpreter

PATH = "/predict"

router = APIRouter(tags=["classify"], dependencies=[Depends(refuse_repeated)])


@router.post(
    PATH,
    response_model=Predictions,
    responses=document_problems(400, 404, 408, 409, 413, 415, 422, 500, 503, 504),
    openapi_extra=document_body(several=True),
)
async def predict(request: Request, query: Annotated[PredictQuery, Query()]) -> Response:
    """Classify one image or many.

    Send one image as the body, one or many as parts named `file` of a form, or as base64 in JSON.
    `Server-Timing` gives the milliseconds of reading, decoding, waiting and inference.
    """
    started = time.perf_counter()
    service = service_of(request)
    artifact = artifact_of(request, query, "classification")
    interpreter = interpreter_of(service, artifact, query)
    headers = dict(request.scope["headers"])
    timeout = timeout_of(headers, service.settings)
    with service.bodies.hold() as hold:
        files = await read_files(headers, request.receive, service.upload_limits, hold)
        deadline = asyncio.get_running_loop().time() + timeout
        read = time.perf_counter()
        batcher = service.batchers[artifact.ref]
        batcher.check_wait()
        try:
            pictures = await decode_images(service, artifact, files, deadline)
            decoded = time.perf_counter()
            answer = await batcher.submit(pictures.images, deadline)
        except (TimeoutError, DeadlineExceeded) as exc:
            raise DeadlineExceeded(f"no answer within {timeout:g} s") from exc
    names, warnings = [file.filename for file in files], [warning_of(file.data) for file in files]
    content = interpreter.render(answer.outputs, pictures.images, names, warnings)
    service.metrics.observe_stages(read - started, decoded - read)
    labels = interpreter.labels(answer.outputs)
    service.model_metrics[artifact.ref].answered(labels, answer.queue_seconds)
    timing = server_timing(read - started, decoded - read, answer)
    return Response(content, media_type="application/json", headers={"Server-Timing": timing})


def interpreter_of(service: Service, artifact: Artifact, query: PredictQuery) -> Interpreter:
    """Return what writes the answer, as the query asks for it.

    Raises:
        InvalidParameter: a parameter does not fit the model.
        NothingToSee: the model has no prediction sets.
    """
    return Interpreter(
        artifact,
        service.settings.precision,
        top_k=query.top_k,
        coverage=query.coverage,
        method=query.sets,
    )
