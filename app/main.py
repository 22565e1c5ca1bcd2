"""The application: `uvicorn --factory app.main:create_app`. Wiring and lifespan, nothing else."""

import os
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, cast

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from app.api.cors import Cors
from app.api.fast_paths import MAX_BYTES, PATHS, FastPaths, Handler
from app.api.handlers import respond
from app.api.middleware import RequestMiddleware
from app.api.prefix import Prefix, PrefixMiddleware
from app.api.routes import (
    activations,
    confusion_matrix,
    detect,
    documentation,
    evaluation,
    explain,
    filters,
    health,
    models,
    page,
    predict,
    segment,
)
from app.api.routes import metrics as metrics_route
from app.api.state import Service, run_service
from app.artifact.store import Store, read_store
from app.errors import ConvscopeError, QueueFull, SettingsError
from app.inference.backends import Backend, open_backends
from app.problems import Problem
from app.settings import Settings, read_settings
from app.tasks.segmentation import check_library
from app.telemetry import logs
from app.telemetry.exposition import Exposition
from app.telemetry.metrics import Metrics
from app.telemetry.requests import ClientAddress, Headers

DESCRIPTION = """Classify images, and look inside the network that does it.

Every error is `application/problem+json` (RFC 9457) and every answer carries `X-Request-ID`."""

TRUSTED_PROXIES_VARIABLE = "FORWARDED_ALLOW_IPS"
"""uvicorn's environment variable: addresses and networks of proxies, with commas, or `*`."""


class Application:
    """The service: an ASGI application, the middleware around FastAPI; and `handler` beside it.

    Attributes:
        framework: FastAPI with all routes; OpenAPI is generated from it.
        metrics: where requests are counted.
        most_bytes: the size of the largest body that a handler takes.
        cors: lets pages of other origins read answers, if the settings name some.
    """

    def __init__(
        self,
        framework: FastAPI,
        metrics: Metrics,
        settings: Settings,
        cors: Cors | None,
        prefix: Prefix,
    ) -> None:
        self.framework = framework
        self.metrics = metrics
        self.cors = cors
        self.most_bytes = min(MAX_BYTES, settings.max_body_bytes)
        self._prefix = prefix
        self._handle = RequestMiddleware(PrefixMiddleware(cors or framework, prefix), metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or run the lifespan."""
        await self._handle(scope, receive, send)

    @property
    def service(self) -> Service:
        """Models, queues and threads; there are none before the start."""
        return cast(Service, self.framework.state.service)

    @property
    def _fast(self) -> FastPaths:
        return cast(FastPaths, self.framework.state.fast_paths)

    @property
    def stuck_seconds(self) -> float:
        """As `Service.stuck_seconds`."""
        return self.service.stuck_seconds

    def stop_being_ready(self) -> None:
        """Let `/health/ready` answer 503 from now on."""
        self.service.stopping.set()

    @property
    def fast_paths(self) -> Collection[str]:
        """The paths that may have a handler, and which count when the server refuses them."""
        return PATHS

    def handler(self, target: bytes, headers: Headers) -> Handler | None:
        """As `FastPaths.handler`."""
        return self._fast.handler(target, headers)

    def refusal(self, target: bytes) -> QueueFull | None:
        """As `FastPaths.refusal`."""
        return self._fast.refusal(target)

    def published(self, path: str, headers: Headers, client: ClientAddress) -> str:
        """As `Prefix.published`."""
        return self._prefix.published(path, headers, client)


def create_app(
    settings: Settings | None = None,
    *,
    store: Store | None = None,
    backends: Mapping[str, Backend] | None = None,
    metrics: Metrics | None = None,
    exposition: Exposition | None = None,
) -> Application:
    """Build the application; models are loaded and proven when it starts.

    Args:
        settings: read from the environment unless given.
        store: the models; read from `settings.store` unless given.
        backends: one for each model by its `ref`, already proven; opened at the start unless given.
        metrics: where to count; new ones unless given.
        exposition: renders the metrics; of all processes on this machine unless given.
    """
    if settings is None:
        settings = _settings_or_exit()
    logs.configure(settings.log_format, settings.log_level)
    metrics = metrics or Metrics()
    exposition = exposition or Exposition(metrics)

    @asynccontextmanager
    async def lifespan(framework: FastAPI) -> AsyncIterator[None]:
        served = store or read_store(settings.store, settings.models, settings.default_model)
        proven = backends or _open_backends(served, settings)
        async with run_service(settings, served, proven, metrics, exposition) as service:
            framework.state.service = service
            framework.state.fast_paths = FastPaths(service, cors, prefix)
            yield

    framework = FastAPI(
        title="Convscope",
        description=DESCRIPTION,
        version=version("convscope"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # The middleware counts; looking for other telemetry takes time in every request.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    # The outermost of its layers, so that answers to failures have the headers too.
    cors = Cors(framework, settings.cors_origins) if settings.cors_origins else None
    prefix = Prefix(settings.root_path, os.environ.get(TRUSTED_PROXIES_VARIABLE, "127.0.0.1"))
    _add_routes(framework)
    _document(framework)
    return Application(framework, metrics, settings, cors, prefix)


def open_application(settings: Settings) -> Application:
    """Read the models, open and prove their backends, and build the application.

    Raises:
        ArtifactError: a model is missing, damaged or answers differently than at export.
        SettingsError: a library that a model needs is not installed.
    """
    store = read_store(settings.store, settings.models, settings.default_model)
    return create_app(settings, store=store, backends=_open_backends(store, settings))


def _open_backends(store: Store, settings: Settings) -> dict[str, Backend]:
    check_library(store)
    return open_backends(store, settings.backend, settings.threads, settings.precision)


def _settings_or_exit() -> Settings:
    """Read the settings; under `uvicorn --factory`, nothing else turns an error into one line."""
    try:
        return read_settings()
    except SettingsError as exc:
        raise SystemExit(f"convscope: {exc}") from exc


def _add_routes(framework: FastAPI) -> None:
    """Add all resources, and the one handler of their errors."""
    modules = (
        predict,
        detect,
        segment,
        explain,
        activations,
        filters,
        confusion_matrix,
        evaluation,
        models,
        health,
    )
    for module in (*modules, metrics_route, documentation, page):
        framework.include_router(module.router)
    framework.routes.extend((documentation.mount(), page.mount()))
    for error in (
        ConvscopeError,
        RequestValidationError,
        HTTPException,
        ClientDisconnect,
        Exception,
    ):
        framework.add_exception_handler(error, respond)


def _document(framework: FastAPI) -> None:
    """Add the schema of errors, which no route returns."""
    generate = framework.openapi

    def openapi() -> dict[str, Any]:
        schema = generate()
        schema["components"]["schemas"]["Problem"] = Problem.model_json_schema()
        return schema

    framework.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend it
