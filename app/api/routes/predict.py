"""POST /predict: images in, classes out. The straight line of the service.

api.pictures -> images.decode -> batcher.submit -> Backend.predict -> tasks.classification
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from app.api.dependencies import artifact_of, parameters_once, service_of
from app.api.openapi import document_body, document_problems
from app.api.pictures import answered_pictures
from app.api.queries import PredictQuery
from app.api.schemas import Predictions
from app.api.state import Service
from app.artifact.directory import Artifact
from app.tasks.classification import Interpreter

PATH = "/predict"

router = APIRouter(tags=["classify"], dependencies=[Depends(parameters_once)])


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
    service = service_of(request)
    artifact = artifact_of(request, query, "classification")
    interpreter = interpreter_of(service, artifact, query)
    async with answered_pictures(request, artifact) as answered:
        outputs = answered.answer.outputs
        content = interpreter.render(
            outputs, answered.images, answered.filenames, answered.warnings
        )
    answered.count(service, artifact, interpreter.labels(outputs))
    headers = {"Server-Timing": answered.timing}
    return Response(content, media_type="application/json", headers=headers)


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
