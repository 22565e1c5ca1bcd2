"""GET /confusion-matrix: a model's errors on the test split; JSON, PNG or CSV."""

import csv
import io
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Path, Query, Request, Response

from app.api.dependencies import artifact_of, class_id_of, parameters_once, service_of
from app.api.negotiation import CSV, JSON, PNG, choose, respond_unless_known
from app.api.openapi import document_problems
from app.api.queries import ClassName, ConfusionCellQuery, ConfusionMatrixQuery
from app.api.schemas import (
    CellImage,
    ConfusionCell,
    ConfusionMatrix,
    DetectionConfusionMatrix,
    SegmentationConfusionMatrix,
)
from app.artifact.detection import DetectionEvaluation
from app.artifact.directory import AnyEvaluation, Artifact
from app.artifact.examples import check_examples, read_examples
from app.artifact.files import EVALUATION, EXAMPLES
from app.artifact.manifest import Task
from app.artifact.segmentation import SegmentationEvaluation
from app.errors import UnknownClass
from app.explore.confusion_matrix import Counted, contact_sheet, draw_matrix, normalized
from app.explore.pictures import data_url

router = APIRouter(tags=["what is inside"], dependencies=[Depends(parameters_once)])

_OFFERS = {"json": JSON, "png": PNG, "csv": CSV}
_CELL_OFFERS = {"json": JSON, "png": PNG}

_COUNTED: Mapping[Task, Counted] = {
    "classification": "images",
    "detection": "objects",
    "segmentation": "pixels",
}


@router.get(
    "/confusion-matrix",
    response_model=ConfusionMatrix | DetectionConfusionMatrix | SegmentationConfusionMatrix,
    responses=document_problems(404, 406, 422)
    | {
        200: {
            "description": "Rows are true classes, columns predicted ones.",
            "content": {
                PNG: {"schema": {"type": "string", "format": "binary"}},
                CSV: {"schema": {"type": "string"}},
            },
        },
        304: {"description": "The client's copy is current (If-None-Match)."},
    },
)
async def confusion_matrix(
    request: Request, query: Annotated[ConfusionMatrixQuery, Query()]
) -> Response:
    """The confusion matrix on the test split, with the metrics that follow from it."""
    artifact = artifact_of(request, query)
    media_type = choose(request, _OFFERS, query.format)
    basis = (artifact.ref, artifact.manifest.files[EVALUATION].sha256, query.normalize)
    render = partial(service_of(request).explore, _RENDERERS[media_type], artifact, query)
    return await respond_unless_known(request, media_type, basis, render)


def _as_png(artifact: Artifact, query: ConfusionMatrixQuery) -> bytes:
    evaluation = artifact.any_evaluation()
    counts = np.array(evaluation.confusion_matrix)
    counted = _COUNTED[artifact.manifest.task]
    return draw_matrix(counts, evaluation.labels, query.normalize, counted=counted)


def _as_json(artifact: Artifact, query: ConfusionMatrixQuery) -> str:
    return _answer(artifact, query).model_dump_json(exclude_none=True)


def _answer(
    artifact: Artifact, query: ConfusionMatrixQuery
) -> ConfusionMatrix | DetectionConfusionMatrix | SegmentationConfusionMatrix:
    manifest, evaluation = artifact.manifest, artifact.any_evaluation()
    common: dict[str, Any] = {
        "model": manifest.name,
        "version": manifest.version,
        "labels": evaluation.labels,
        "images": evaluation.images,
        "counts": evaluation.confusion_matrix,
        "normalize": query.normalize,
        "normalized": _normalized(evaluation, query) if query.normalize else None,
    }
    if isinstance(evaluation, DetectionEvaluation):
        return DetectionConfusionMatrix(
            **common, objects=evaluation.objects, score_threshold=evaluation.score_threshold
        )
    if isinstance(evaluation, SegmentationEvaluation):
        return SegmentationConfusionMatrix(**common, objects=evaluation.objects)
    return ConfusionMatrix(
        **common,
        accuracy=evaluation.test.accuracy,
        per_class=evaluation.per_class,
        top_confusions=evaluation.top_confusions,
    )


def _as_csv(artifact: Artifact, query: ConfusionMatrixQuery) -> str:
    evaluation = artifact.any_evaluation()
    rows = _normalized(evaluation, query) if query.normalize else evaluation.confusion_matrix
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["true \\ predicted", *evaluation.labels])
    for label, row in zip(evaluation.labels, rows, strict=True):
        writer.writerow([label, *row])
    return text.getvalue()


def _normalized(evaluation: AnyEvaluation, query: ConfusionMatrixQuery) -> list[list[float]]:
    counts = np.array(evaluation.confusion_matrix)
    rows: list[list[float]] = normalized(counts, query.normalize).tolist()
    return rows


_RENDERERS: Mapping[str, Callable[[Artifact, ConfusionMatrixQuery], bytes | str]] = {
    JSON: _as_json,
    PNG: _as_png,
    CSV: _as_csv,
}


@router.get(
    "/confusion-matrix/{true}/{predicted}",
    response_model=ConfusionCell,
    responses=document_problems(404, 406, 422)
    | {
        200: {
            "description": "Test images of one class, predicted as another or as the same one.",
            "content": {PNG: {"schema": {"type": "string", "format": "binary"}}},
        },
        304: {"description": "The client's copy is current (If-None-Match)."},
    },
)
async def confusion_cell(
    request: Request,
    true: Annotated[ClassName, Path(description="The true class.")],
    predicted: Annotated[ClassName, Path(description="The predicted class.")],
    query: Annotated[ConfusionCellQuery, Query()],
) -> Response:
    """The test images of one cell of the confusion matrix, most confident predictions first."""
    artifact = artifact_of(request, query)
    media_type = choose(request, _CELL_OFFERS, query.format)
    check_examples(artifact)
    cell = (
        class_id_of(artifact, true, UnknownClass),
        class_id_of(artifact, predicted, UnknownClass),
    )
    files = artifact.manifest.files
    hashes = [files[name].sha256 for name in (EVALUATION, EXAMPLES)]
    basis = (artifact.ref, *hashes, *cell, query.scale)
    draw: Callable[..., bytes | str] = _cell_as_png if media_type == PNG else _cell_as_json
    render = partial(service_of(request).explore, draw, artifact, cell, query)
    return await respond_unless_known(request, media_type, basis, render)


def _cell_as_png(artifact: Artifact, cell: tuple[int, int], query: ConfusionCellQuery) -> bytes:
    return contact_sheet(read_examples(artifact, *cell).images, query.scale)


def _cell_as_json(
    artifact: Artifact,
    cell: tuple[int, int],
    query: ConfusionCellQuery,  # noqa: ARG001 - of a picture
) -> str:
    shown = read_examples(artifact, *cell)
    manifest = artifact.manifest
    true, predicted = cell
    return ConfusionCell(
        model=manifest.name,
        version=manifest.version,
        true=manifest.classes[true],
        predicted=manifest.classes[predicted],
        count=artifact.evaluation().confusion_matrix[true][predicted],
        images=[
            CellImage(index=index, confidence=round(confidence, 6), png=data_url(image))
            for image, index, confidence in zip(
                shown.images, shown.index.tolist(), shown.confidence.tolist(), strict=True
            )
        ],
    ).model_dump_json()
