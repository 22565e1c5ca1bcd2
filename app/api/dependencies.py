"""The service, the model and the class that a request asks for, for all routes."""

from collections.abc import Mapping
from typing import cast

from fastapi import Request

from app.api.queries import ModelQuery
from app.api.state import Service
from app.artifact.directory import Artifact
from app.artifact.manifest import Task
from app.artifact.store import Store
from app.errors import ConvscopeError, InvalidParameter, WrongTask
from app.telemetry.requests import state_of

ROUTES: Mapping[Task, str] = {
    "classification": "/predict",
    "detection": "/detect",
    "segmentation": "/segment",
}
"""The resource that serves the models of each task."""

MAX_PARAMETERS = 64
"""Of a query; no resource has more than eight."""


def service_of(request: Request) -> Service:
    """Return the process's service."""
    return cast(Service, request.app.state.service)


def artifact_of(request: Request, query: ModelQuery, task: Task | None = None) -> Artifact:
    """Return the model that the query names, and note it for the log line.

    Args:
        request: of a resource.
        query: of the request.
        task: of the models that the resource has; None: of any.

    Raises:
        UnknownModel: there is no such model.
        WrongTask: the model has another task.
    """
    store = service_of(request).store
    artifact = store.find(query.model, query.version, task)
    state_of(request.scope).model = artifact.ref
    check_task(store, artifact, task)
    return artifact


def check_task(store: Store, artifact: Artifact, task: Task | None) -> None:
    """Raise WrongTask if a model has another task than that of a resource; name what fits."""
    found = artifact.manifest.task
    if task is None or task == found:
        return
    names = sorted({other.manifest.name for other in store.for_task(task)})
    raise WrongTask(
        f"{artifact.ref} is for {found}: POST {ROUTES[found]} serves it. For {task} there are: "
        f"{', '.join(names) or 'none'}"
    )


def class_id_of(artifact: Artifact, name: str, error: type[ConvscopeError]) -> int:
    """Return the index of a class of the model; raise `error` if there is none of this name."""
    classes = artifact.manifest.classes
    if name not in classes:
        raise error(f"no class {name[:64]!r}; there are: {', '.join(classes)}")
    return classes.index(name)


def refuse_repeated(request: Request) -> None:
    """Raise InvalidParameter if a query parameter is given twice: either could be meant.

    A query of very many parameters is refused before it is parsed.
    """
    count = request.scope["query_string"].count(b"&") + 1
    if count > MAX_PARAMETERS:
        raise InvalidParameter(f"the query has {count} parameters; the limit is {MAX_PARAMETERS}")
    seen: set[str] = set()
    for name, _ in request.query_params.multi_items():
        if name in seen:
            raise InvalidParameter(f"query parameter {name[:64]!r} stands more than once")
        seen.add(name)


async def parameters_once(request: Request) -> None:
    """As `refuse_repeated`, for routes: FastAPI calls what is no coroutine in a thread."""
    refuse_repeated(request)
