"""The HTTP resources, one module each."""

from typing import cast

from fastapi import Request

from app.contract import Artifact
from app.schemas import ModelQuery
from app.service import Service


def service_of(request: Request) -> Service:
    """Return what the process has."""
    return cast(Service, request.app.state.service)


def artifact_of(request: Request, query: ModelQuery) -> Artifact:
    """Return the model that the query means, and note it for the log line.

    Raises:
        UnknownModel: there is none.
    """
    artifact = service_of(request).store.find(query.model, query.version)
    request.state.model = f"{artifact.manifest.name}/{artifact.manifest.version}"
    return artifact
