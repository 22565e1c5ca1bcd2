"""Ray Serve runs the service as replicas on the nodes of a cluster.

    serve deploy deploy/ray/serve.yaml

A replica is what a worker of `convscope serve` is, without its socket: Ray's proxies own that.
Ray is an extra: `convscope[ray]`.
"""

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reads it when it is imported

import ray
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig
from starlette.types import ASGIApp

from app.engines.asgi import AsgiApplication
from app.errors import BackendFailed, ConvscopeError
from app.main import Application, create_app
from app.server.worker import open_in_process
from app.settings import PREFIX, Settings, read_settings
from app.telemetry.exposition import Exposition
from app.telemetry.metrics import Metrics

NAME = "convscope"
"""Of the application."""

MAX_ONGOING = 1024
"""Requests in a replica; `CONVSCOPE_MAX_WAIT_MS` refuses predictions long before."""

MAX_QUEUED = 2048
"""Requests that wait in a proxy while no replica takes them."""

GATHER_SECONDS = 0.5
"""How often, at most, the metrics of all replicas are gathered, however many ask."""

GATHER_TIMEOUT = 5.0
"""How long a replica may take to give its metrics, in seconds."""

OBJECT_STORE_BYTES = 128 << 20
"""Of a local cluster; requests do not pass through it."""

QUIET = LoggingConfig(enable_access_log=False, log_level="WARNING")
"""Ray's own log; the service writes its own lines."""

Open = Callable[..., Application]
"""Builds an application from settings, and `metrics` and `exposition` by name."""


class Replica:
    """One process with all models, their queues and its own metrics."""

    def __init__(self, open_application: Open = create_app) -> None:
        """Read the settings from the environment, and build the application.

        Args:
            open_application: as `create_app`.

        Raises:
            SettingsError: a variable is wrong.
        """
        self._settings = read_settings()
        metrics = Metrics()
        exposition = _Exposition(metrics)
        self._application = open_in_process(
            lambda: open_application(self._settings, metrics=metrics, exposition=exposition)
        )
        metrics.workers.set(1)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the ASGI application; Ray runs its lifespan, which proves the models."""
        return AsgiApplication(self._application, self._settings.body_timeout_seconds)

    async def check_health(self) -> None:
        """Have Ray replace this replica if a model hangs, as the supervisor replaces a worker.

        Raises:
            BackendFailed: a batch takes longer than `hang_seconds`, or a model takes no work.
        """
        stuck, limit = self._application.stuck_seconds, self._settings.hang_seconds
        if stuck > limit:
            raise BackendFailed(f"a batch has taken {stuck:g} s; the limit is {limit:g} s")

    async def metrics(self) -> "_Gathered":
        """Return this replica's metrics."""
        metrics = self._application.metrics
        metrics.flush()
        return _Gathered(serve.get_replica_context().replica_tag, list(metrics.registry.collect()))


def deployment() -> serve.Deployment:
    """Return the deployment of `Replica`; a Serve config may override its options."""
    make = serve.deployment(
        name="Convscope",
        max_ongoing_requests=MAX_ONGOING,
        max_queued_requests=MAX_QUEUED,
        max_surge_percent=100,  # a new version serves before the old one stops
        health_check_period_s=2,
        health_check_timeout_s=10,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=40,  # the longest request, and time to spare
        logging_config=QUIET,
    )
    return make(serve.ingress()(Replica))


def build(_: dict[str, Any]) -> serve.Application:
    """Return the application, as `import_path` of a Serve config names it."""
    return deployment().bind()


@dataclass(frozen=True)
class _Gathered:
    """The metrics of one replica."""

    replica: str
    families: list[Metric]


class _Exposition(Exposition):
    """Renders the metrics of all replicas, whichever is asked.

    Each series has the label `replica`: sums over replicas that come and go would make rates wrong.
    """

    def __init__(self, metrics: Metrics) -> None:
        super().__init__(metrics)
        self._gathering = asyncio.Lock()
        self._gathered: list[_Gathered] = []
        self._begun = float("-inf")

    async def text(self, accept: str) -> tuple[bytes, str]:
        asked = time.monotonic()
        async with self._gathering:
            if self._begun <= asked:
                if (too_soon := self._begun + GATHER_SECONDS - time.monotonic()) > 0:
                    await asyncio.sleep(too_soon)
                self._begun = time.monotonic()
                self._gathered = await _gather()
        return await super().text(accept)

    def _collected(self) -> CollectorRegistry:
        registry = CollectorRegistry()
        registry.register(_Labelled(self._gathered))
        return registry


async def _gather() -> list[_Gathered]:
    """Ask all replicas for their metrics; those that fail have none."""
    context = serve.get_replica_context()
    handle = serve.get_deployment_handle(context.deployment, context.app_name)
    results = await handle.broadcast("metrics").results_async(
        timeout_s=GATHER_TIMEOUT, return_exceptions=True
    )
    return [result for result in results if isinstance(result, _Gathered)]


class _Labelled(Collector):
    """The metrics of replicas, with their names."""

    def __init__(self, gathered: Iterable[_Gathered]) -> None:
        self._gathered = gathered

    def collect(self) -> Iterable[Metric]:
        merged: dict[str, Metric] = {}
        for part in self._gathered:
            for family in part.families:
                into = merged.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type, family.unit)
                )
                into.samples += [
                    sample._replace(labels={**sample.labels, "replica": part.replica})
                    for sample in family.samples
                ]
        return merged.values()


def serve_locally(
    settings: Settings, host: str, port: int, replicas: int, on_ready: Callable[[], None]
) -> None:
    """Serve on a Ray cluster of this machine alone until SIGTERM or SIGINT.

    Args:
        settings: of every replica.
        host: the address to listen on.
        port: the port to listen on.
        replicas: their number; each has a processor.
        on_ready: is called once, when all replicas serve.

    Raises:
        ConvscopeError: the replicas could not start.
    """
    # Replicas inherit the environment; these are what the command line and this folder decide.
    variables = {
        f"{PREFIX}STORE": str(settings.store.resolve()),
        f"{PREFIX}ROOT_PATH": settings.root_path,
        f"{PREFIX}DEFAULT_MODEL": settings.default_model or "",
    }
    os.environ["RAY_DEDUP_LOGS"] = "0"
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves replicas on a busy machine
    # A proxy that is not ready after Ray's 5 s is killed, again and again on a slow machine.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    try:
        ray.init(
            address="local",
            num_cpus=replicas,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            runtime_env={"env_vars": variables},
            logging_level=logging.WARNING,
            _node_ip_address="127.0.0.1",
        )
    except Exception as exc:  # Ray raises no narrower one
        raise ConvscopeError(f"Ray could not start: {exc}") from exc
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # after Ray has set its own handlers
        signal.signal(number, lambda *_: stop.set())
    try:
        options = HTTPOptions(
            host=host,
            port=port,
            keep_alive_timeout_s=settings.keep_alive_seconds,
            request_timeout_s=2 * settings.max_request_timeout_seconds,
        )
        serve.start(http_options=options, logging_config=QUIET)
        application = deployment().options(num_replicas=replicas).bind()
        try:
            serve.run(application, name=NAME, route_prefix="/")
        except RuntimeError as exc:
            raise ConvscopeError(f"Ray Serve could not start the replicas: {exc}") from exc
        on_ready()
        stop.wait()
        serve.delete(NAME)  # replicas answer what they hold; a shutdown alone cuts it off
        serve.shutdown()  # type: ignore[no-untyped-call]
    finally:
        ray.shutdown()
