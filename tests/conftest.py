"""Fixtures: a store of small artifacts, and clients of real applications."""

import io
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from app.artifact.store import read_store
from app.inference.backends import Backend
from app.main import create_app
from app.settings import Settings
from tests.support.artifacts import COLOURS, write_artifact
from tests.support.made_once import made_once

if "PYTEST_XDIST_WORKER" in os.environ:
    # There is a process for each processor and more; threads would wait for one another in loops.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_xdist_auto_num_workers() -> int:
    """Return one more than there are processors: tests wait a third of their time."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the files first that may take longest, so that none of them is alone at the end."""
    limits = dict[Path, float]()
    for item in items:
        marker = item.get_closest_marker("timeout")
        limits[item.path] = max(limits.get(item.path, 0), marker.args[0] if marker else 0)
    items.sort(key=lambda item: -limits[item.path])


# `make test-lowest` tests the service alone, without what trains and without a browser.
pytest_plugins: list[str] = []
collect_ignore: list[str] = []
if find_spec("torch"):
    pytest_plugins += ["tests.support.training_fixtures"]
else:
    collect_ignore += [
        "app/api/test_activations.py",
        "app/api/test_confusion_cells.py",
        "app/api/test_explain.py",
        "app/api/test_filter_responses.py",
        "app/explore/test_layers.py",
    ]

    @pytest.fixture(scope="session")
    def exported() -> None:
        pytest.skip("torch is not installed")


if find_spec("playwright"):
    pytest_plugins += ["tests.support.browser"]
else:
    collect_ignore += [
        "app/web/test_page_behind_nginx.py",
        "app/web/test_page_classify.py",
        "app/web/test_page_inside.py",
        "app/web/test_page_tasks.py",
    ]

Connect = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]
MakeSettings = Callable[..., Settings]
Picture = Callable[..., bytes]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """colour/1, colour/2 (the default) and flat/1, which has no convolution."""

    def make(path: Path) -> None:
        write_artifact(path, "colour", "1")
        write_artifact(path, "colour", "2")
        write_artifact(path, "flat", "1", convolutions=False)

    return made_once(tmp_path_factory, "store", make)


@pytest.fixture(scope="session")
def inside_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """averaging/1, a network that can be looked into, and colour/1, which was exported without."""
    from tests.support.inside_artifacts import write_averaging

    def make(path: Path) -> None:
        write_averaging(path)
        write_artifact(path, "colour", "1")

    return made_once(tmp_path_factory, "inside", make)


@pytest.fixture
def make_settings(store_path: Path) -> MakeSettings:
    def make(**changes: Any) -> Settings:
        return Settings(**{"store": store_path, "default_model": "colour", **changes})

    return make


@pytest.fixture
def connect(make_settings: MakeSettings) -> Connect:
    """Run an application, with a backend of one's own for all models if given."""

    @asynccontextmanager
    async def run(backend: Backend | None = None, **changes: Any) -> AsyncIterator[Any]:
        if backend is not None:  # which may hold its batches
            changes.setdefault("inference", "thread")
        settings = make_settings(**changes)
        backends: dict[str, Backend] | None = None
        if backend is not None:
            store = read_store(settings.store, settings.models, settings.default_model)
            backends = {artifact.ref: backend for artifact in store}
        app = create_app(settings, backends=backends)
        transport = httpx.ASGITransport(app=app)
        async with (
            app.framework.router.lifespan_context(app.framework),
            httpx.AsyncClient(transport=transport, base_url="http://convscope") as client,
        ):
            yield client

    return run


@pytest.fixture
async def client(connect: Connect) -> AsyncIterator[httpx.AsyncClient]:
    async with connect() as connected:
        yield connected


@pytest.fixture
def picture() -> Picture:
    """An image file of one colour."""

    def make(label: str, kind: str = "PNG", size: tuple[int, int] = (32, 32)) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", size, COLOURS[label]).save(buffer, kind)
        return buffer.getvalue()

    return make
