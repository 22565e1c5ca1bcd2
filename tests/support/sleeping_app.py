"""An application whose model sleeps for each image, as if it ran on a machine of its own."""

from typing import Any

from app import main
from app.artifact.store import read_store
from app.artifact.tensors import Images, Outputs
from app.settings import Settings
from tests.support.fakes import RecordingBackend, SlowBackend

IMAGE_SECONDS = 0.1


class SleepingBackend(RecordingBackend):
    """Takes a fixed time for each image."""

    def predict(self, images: Images) -> Outputs:
        return SlowBackend(IMAGE_SECONDS * len(images)).predict(images)


def open_sleeping(settings: Settings, **given: Any) -> main.Application:
    """As `create_app`."""
    store = read_store(settings.store, settings.models, settings.default_model)
    backend = SleepingBackend()
    backends = {artifact.ref: backend for artifact in store}
    return main.create_app(settings, store=store, backends=backends, **given)
