"""GET /evaluation: the figures of a detector or segmenter on the test split; JSON or PNG."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from app.api.dependencies import artifact_of, parameters_once, service_of
from app.api.negotiation import JSON, PNG, choose, respond_unless_known
from app.api.openapi import document_problems
from app.api.queries import EvaluationQuery
from app.api.schemas import DetectorEvaluation, SegmenterEvaluation
from app.artifact.detection import DetectionEvaluation
from app.artifact.directory import Artifact
from app.artifact.files import EVALUATION
from app.artifact.manifest import Task
from app.artifact.segmentation import SegmentationEvaluation
from app.artifact.store import Store
from app.errors import UnknownModel, WrongTask
from app.explore.bars import draw_bars
from app.explore.curves import Line, draw_curves

router = APIRouter(tags=["what is inside"], dependencies=[Depends(parameters_once)])

_OFFERS = {"json": JSON, "png": PNG}


@router.get(
    "/evaluation",
    response_model=DetectorEvaluation | SegmenterEvaluation,
    responses=document_problems(404, 406, 409, 422)
    | {
        200: {
            "description": "The figures, or the curves or bars of them as a picture.",
            "content": {PNG: {"schema": {"type": "string", "format": "binary"}}},
        },
        304: {"description": "The client's copy is current (If-None-Match)."},
    },
)
async def evaluation(request: Request, query: Annotated[EvaluationQuery, Query()]) -> Response:
    """The figures of a detector or segmenter on the test split: of each class, and their means.

    Without a model, it is the default model, or, where that is a classifier, the default for
    detection or else that for segmentation.
    """
    task = None if query.model else _task_of_default(service_of(request).store)
    artifact = artifact_of(request, query, task)
    found = artifact.any_evaluation()
    if not isinstance(found, DetectionEvaluation | SegmentationEvaluation):
        raise WrongTask(
            f"{artifact.ref} is for {artifact.manifest.task}, and has no curves; its figures are "
            "in GET /confusion-matrix and in its manifest"
        )
    media_type = choose(request, _OFFERS, query.format)
    basis = (artifact.ref, artifact.manifest.files[EVALUATION].sha256)
    draw = _as_png if media_type == PNG else _as_json
    render = partial(service_of(request).explore, draw, artifact, found)
    return await respond_unless_known(request, media_type, basis, render)


def _task_of_default(store: Store) -> Task:
    tasks: tuple[Task, ...] = (store.default.manifest.task, "detection", "segmentation")
    for task in tasks:
        if task != "classification" and task in store.defaults:
            return task
    raise UnknownModel("no model here is for detection or segmentation")


def _as_png(
    _artifact: Artifact, found: DetectionEvaluation | SegmentationEvaluation
) -> bytes | str:
    if isinstance(found, SegmentationEvaluation):
        return draw_bars("IoU", found.classes, [figures.iou for figures in found.per_class])
    return draw_curves(
        [Line(figures.label, figures.precision, figures.ap50) for figures in found.per_class]
    )


def _as_json(
    artifact: Artifact, found: DetectionEvaluation | SegmentationEvaluation
) -> bytes | str:
    if isinstance(found, SegmentationEvaluation):
        return SegmenterEvaluation(
            model=artifact.manifest.name,
            version=artifact.manifest.version,
            images=found.images,
            objects=found.objects,
            per_class=found.per_class,
            **found.test.model_dump(),
        ).model_dump_json(exclude_none=True)
    return DetectorEvaluation(
        model=artifact.manifest.name,
        version=artifact.manifest.version,
        images=found.images,
        objects=found.objects,
        score_threshold=found.score_threshold,
        per_class=found.per_class,
        **found.test.model_dump(),
    ).model_dump_json()
