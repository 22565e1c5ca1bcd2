"""An application with a slow model, for `uvicorn --factory`."""

from app import main
from app.artifact.store import read_store
from app.settings import read_settings
from tests.support.fakes import SlowBackend


def create_app() -> main.Application:
    settings = read_settings()
    store = read_store(settings.store, settings.models, settings.default_model)
    backend = SlowBackend(1.0)
    return main.create_app(
        settings, store=store, backends={artifact.ref: backend for artifact in store}
    )
