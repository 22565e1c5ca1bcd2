"""GET /models: the served models, and each model's manifest."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.api import queries
from app.api.dependencies import service_of
from app.api.openapi import document_problems
from app.api.schemas import ModelVersion, ModelVersions
from app.artifact.detection import DetectorManifest
from app.artifact.directory import Artifact
from app.artifact.manifest import ClassifierManifest
from app.artifact.segmentation import SegmenterManifest

router = APIRouter(tags=["models"])

NoQuery = Annotated[queries.Query, Query()]


@router.get(
    "/models",
    response_model=ModelVersions,
    response_model_exclude_none=True,
    responses=document_problems(422),
)
async def list_models(request: Request, query: NoQuery) -> ModelVersions:  # noqa: ARG001
    """All served models and versions; the default of each task is marked."""
    return _summarise(request, list(service_of(request).store))


@router.get(
    "/models/{name}",
    response_model=ModelVersions,
    response_model_exclude_none=True,
    responses=document_problems(404, 422),
)
async def list_versions(request: Request, name: str, query: NoQuery) -> ModelVersions:  # noqa: ARG001
    """The served versions of one model, ascending."""
    return _summarise(request, service_of(request).store.versions(name))


@router.get(
    "/models/{name}/versions/{version}",
    response_model=ClassifierManifest | DetectorManifest | SegmenterManifest,
    responses=document_problems(404, 422),
)
async def show_manifest(
    request: Request,
    name: str,
    version: str,
    query: NoQuery,  # noqa: ARG001
) -> Response:
    """The manifest: the model's training, its metrics, and the hash of every file."""
    manifest = service_of(request).store.find(name, version).manifest
    return Response(manifest.model_dump_json(), media_type="application/json")


def _summarise(request: Request, artifacts: list[Artifact]) -> ModelVersions:
    defaults = service_of(request).store.defaults.values()
    return ModelVersions(
        models=[
            ModelVersion.of(artifact.manifest, default=artifact in defaults)
            for artifact in artifacts
        ]
    )
