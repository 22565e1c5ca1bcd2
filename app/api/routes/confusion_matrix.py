"""GET /confusion-matrix: how a model errs on the test split; JSON, PNG or CSV."""

import csv
import io
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Path, Query, Request, Response

from app.api.negotiation import CSV, JSON, PNG, Representation, choose
from app.api.openapi import document_problems
from app.api.queries import ConfusionCellQuery, ConfusionMatrixQuery
from app.api.routes import artifact_of, refuse_repeated, service_of
from app.api.schemas import CellImage, ConfusionCell, ConfusionMatrix
from app.artifact.directory import Artifact
from app.artifact.examples import read_examples
from app.artifact.files import EVALUATION, EXAMPLES
from app.artifact.manifest import Evaluation
from app.errors import UnknownClass
from app.explore.confusion_matrix import contact_sheet, draw_matrix, normalized
from app.explore.pictures import data_url

router = APIRouter(tags=["what is inside"], dependencies=[Depends(refuse_repeated)])

_OFFERS = {"json": JSON, "png": PNG, "csv": CSV}
_CELL_OFFERS = {"json": JSON, "png": PNG}


@router.get(
    "/confusion-matrix",
    response_model=ConfusionMatrix,
    responses=document_problems(404, 406, 422)
    | {
        200: {
            "description": "Rows are true classes, columns predicted ones.",
            "content": {
                PNG: {"schema": {"type": "string", "format": "binary"}},
                CSV: {"schema": {"type": "string"}},
            },
        },
        304: {"description": "The client's copy is still right (If-None-Match)."},
    },
)
async def confusion_matrix(
    request: Request, query: Annotated[ConfusionMatrixQuery, Query()]
) -> Response:
    """The confusion matrix on the test split, with the figures that follow from it."""
    artifact = artifact_of(request, query)
    media_type = choose(request, _OFFERS, query.format)
    sha256 = artifact.manifest.files[EVALUATION].sha256
    representation = Representation(request, media_type, sha256, artifact.ref, query.normalize)
    unchanged = representation.not_modified()
    if unchanged is not None:
        return unchanged
    content = await service_of(request).draw(_render, artifact, media_type, query)
    return representation.respond(content)


def _render(artifact: Artifact, media_type: str, query: ConfusionMatrixQuery) -> bytes | str:
    evaluation = artifact.evaluation()
    if media_type == JSON:
        return _as_json(artifact, evaluation, query)
    if media_type == CSV:
        return _as_csv(evaluation, query)
    counts = np.array(evaluation.confusion_matrix)
    return draw_matrix(counts, evaluation.classes, query.normalize)


def _as_json(artifact: Artifact, evaluation: Evaluation, query: ConfusionMatrixQuery) -> str:
    manifest = artifact.manifest
    return ConfusionMatrix(
        model=manifest.name,
        version=manifest.version,
        labels=evaluation.classes,
        images=evaluation.images,
        accuracy=evaluation.test.accuracy,
        counts=evaluation.confusion_matrix,
        normalize=query.normalize,
        normalized=_normalized(evaluation, query) if query.normalize else None,
        per_class=evaluation.per_class,
        top_confusions=evaluation.top_confusions,
    ).model_dump_json(exclude_none=True)


def _as_csv(evaluation: Evaluation, query: ConfusionMatrixQuery) -> str:
    rows = _normalized(evaluation, query) if query.normalize else evaluation.confusion_matrix
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["true \\ predicted", *evaluation.classes])
    for label, row in zip(evaluation.classes, rows, strict=True):
        writer.writerow([label, *row])
    return text.getvalue()


def _normalized(evaluation: Evaluation, query: ConfusionMatrixQuery) -> list[list[float]]:
    counts = np.array(evaluation.confusion_matrix)
    rows: list[list[float]] = normalized(counts, query.normalize).tolist()
    return rows


@router.get(
    "/confusion-matrix/{true}/{predicted}",
    response_model=ConfusionCell,
    responses=document_problems(404, 406, 422)
    | {
        200: {
            "description": "Test images of one class that were predicted as another, or the same.",
            "content": {PNG: {"schema": {"type": "string", "format": "binary"}}},
        },
        304: {"description": "The client's copy is still right (If-None-Match)."},
    },
)
async def confusion_cell(
    request: Request,
    true: Annotated[str, Path(description="The class that they show.")],
    predicted: Annotated[str, Path(description="The class that is predicted.")],
    query: Annotated[ConfusionCellQuery, Query()],
) -> Response:
    """The test images behind a cell of the confusion matrix, the surest predictions first."""
    artifact = artifact_of(request, query)
    media_type = choose(request, _CELL_OFFERS, query.format)
    cell = _class_id(artifact, true), _class_id(artifact, predicted)
    files = artifact.manifest.files
    sha256 = "".join(files[name].sha256 for name in (EVALUATION, EXAMPLES) if name in files)
    parameters = (artifact.ref, *cell, query.scale)
    representation = Representation(request, media_type, sha256, *parameters)
    unchanged = representation.not_modified() if EXAMPLES in files else None
    if unchanged is not None:
        return unchanged
    content = await service_of(request).draw(_render_cell, artifact, media_type, cell, query)
    return representation.respond(content)


def _class_id(artifact: Artifact, name: str) -> int:
    classes = artifact.manifest.classes
    if name not in classes:
        raise UnknownClass(f"no class {name[:64]!r}; there are: {', '.join(classes)}")
    return classes.index(name)


def _render_cell(
    artifact: Artifact, media_type: str, cell: tuple[int, int], query: ConfusionCellQuery
) -> bytes | str:
    shown = read_examples(artifact, *cell)
    if media_type == PNG:
        return contact_sheet(shown.images, query.scale)
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
