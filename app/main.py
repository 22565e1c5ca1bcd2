"""The application: `uvicorn --factory app.main:create_app`. Wiring and lifespan, nothing else."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.handlers import respond
from app.api.middleware import RequestMiddleware
from app.api.routes import (
    activations,
    confusion_matrix,
    explain,
    filters,
    health,
    models,
    page,
    predict,
)
from app.api.routes import metrics as metrics_route
from app.api.schemas import Activations, Filters
from app.api.state import Service, run_service
from app.artifact.store import Store, read_store
from app.errors import ConvscopeError, SettingsError
from app.inference.backends import Backend, open_backends
from app.problems import Problem
from app.settings import Settings, read_settings
from app.telemetry import logs
from app.telemetry.metrics import Metrics

DESCRIPTION = """Classify images, and look inside the network that does it.

Every error is `application/problem+json` (RFC 9457) and every answer carries `X-Request-ID`."""


def create_app(
    settings: Settings | None = None,
    *,
    store: Store | None = None,
    backends: Mapping[str, Backend] | None = None,
    metrics: Metrics | None = None,
) -> FastAPI:
    """Build the application; models are loaded and proven when it starts.

    Args:
        settings: read from the environment unless given.
        store: the models; read from `settings.store` unless given.
        backends: one for each model by its `ref`, already proven; opened at the start unless given.
        metrics: where to count; new ones unless given.
    """
    if settings is None:
        settings = _settings_or_exit()
    logs.configure(settings.log_format, settings.log_level)
    registry = metrics or Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        served = store or read_store(settings.store, settings.models, settings.default_model)
        proven = backends or open_backends(
            served, settings.backend, settings.threads, settings.precision
        )
        async with run_service(settings, served, proven, registry) as app.state.service:
            yield

    # The documentation's scripts come from the package, not from another host.
    app = FastAPIOffline(
        title="Convscope",
        description=DESCRIPTION,
        version=version("convscope"),
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
        # We count for ourselves; looking for somebody else's telemetry takes time at every request.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        swagger_ui_parameters={"validatorUrl": None, "tryItOutEnabled": True},
    )
    _serve_whole(app)
    modules = (predict, explain, activations, filters, confusion_matrix, models, health)
    for module in (*modules, metrics_route, page):
        app.include_router(module.router)
    app.routes.append(page.mount())
    for error in (ConvscopeError, RequestValidationError, HTTPException):
        app.add_exception_handler(error, respond)
    app.add_middleware(RequestMiddleware, metrics=registry)
    framework = app.build_middleware_stack

    def build() -> ASGIApp:
        return _StraightLine(framework(), RequestMiddleware(_predict, registry))

    app.build_middleware_stack = build  # type: ignore[method-assign]  # nothing else goes around it
    _document(app)
    return app


@dataclass(frozen=True)
class Replica:
    """An application whose models are open, as one process serves it."""

    asgi: FastAPI
    metrics: Metrics

    @property
    def stuck_seconds(self) -> float:
        """As `Service.stuck_seconds`; only between start-up and shutdown."""
        service: Service = self.asgi.state.service
        return service.stuck_seconds


def open_replica(settings: Settings) -> Replica:
    """Read the models, open and prove their backends, and build the application.

    Raises:
        ArtifactError: a model is missing, damaged or answers differently than at export.
    """
    store = read_store(settings.store, settings.models, settings.default_model)
    backends = open_backends(store, settings.backend, settings.threads, settings.precision)
    metrics = Metrics()
    asgi = create_app(settings, store=store, backends=backends, metrics=metrics)
    return Replica(asgi, metrics)


class _StraightLine:
    """Takes predictions past the framework's layers, which cost more than decoding an image does.

    The route is registered like the others all the same: OpenAPI shows it.
    """

    def __init__(self, framework: ASGIApp, prediction: ASGIApp) -> None:
        self._framework = framework
        self._prediction = prediction

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or the lifespan."""
        if scope["type"] == "http" and (scope["method"], scope["path"]) == ("POST", "/predict"):
            await self._prediction(scope, receive, send)
        else:
            await self._framework(scope, receive, send)


async def _predict(scope: Scope, receive: Receive, send: Send) -> None:
    (scope["route"],) = predict.router.routes
    response = await predict.predict(Request(scope, receive, send))
    await response(scope, receive, send)


def _settings_or_exit() -> Settings:
    """A server started by `uvicorn --factory` has nobody else to say it in one line."""
    try:
        return read_settings()
    except SettingsError as exc:
        raise SystemExit(f"convscope: {exc}") from exc


def _serve_whole(app: FastAPI) -> None:
    """Send the documentation's scripts as the page's are: who asks for a part gets all of one."""
    for route in app.routes:
        if isinstance(route, Mount) and isinstance(route.app, StaticFiles):
            route.app = page.WholeFiles(directory=route.app.directory)


def _document(app: FastAPI) -> None:
    """Add the schemas that only answers made by hand have."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generate()
        for model in (Activations, Filters, Problem):
            schema["components"]["schemas"][model.__name__] = model.model_json_schema()
        return schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend it
