"""Fixtures: a store of small artifacts, and clients of real applications."""

import io
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
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
from tests.support.inside_artifacts import write_averaging

pytest_plugins = ["tests.support.browser", "tests.support.training_fixtures"]

Connect = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]
MakeSettings = Callable[..., Settings]
Picture = Callable[..., bytes]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """colour/1, colour/2 (the default) and flat/1, which has no convolution."""
    path = tmp_path_factory.mktemp("store")
    write_artifact(path, "colour", "1")
    write_artifact(path, "colour", "2")
    write_artifact(path, "flat", "1", convolutions=False)
    return path


@pytest.fixture(scope="session")
def inside_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """averaging/1, a network that can be looked into, and colour/1, which was exported without."""
    path = tmp_path_factory.mktemp("inside")
    write_averaging(path)
    write_artifact(path, "colour", "1")
    return path


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
