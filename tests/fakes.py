"""Backends that misbehave, as real classes: no mocks."""

import threading
import time

import numpy as np

from app.contract import Images, Probabilities
from app.errors import BackendFailed
from tests.artifacts import numpy_predict


class RecordingBackend:
    """Answers as the colour model does and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[Images] = []

    def predict(self, images: Images) -> Probabilities:
        self.batches.append(images)
        return numpy_predict(images)


class SlowBackend(RecordingBackend):
    """Takes a fixed time for a batch."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def predict(self, images: Images) -> Probabilities:
        time.sleep(self._seconds)
        return super().predict(images)


class HeldBackend(RecordingBackend):
    """Holds every batch until it is let go; `entered` says that one is inside."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.release = threading.Event()

    def predict(self, images: Images) -> Probabilities:
        self.entered.set()
        if not self.release.wait(10):
            raise TimeoutError("nobody let the batch go")
        return super().predict(images)


class HangingBackend(RecordingBackend):
    """Never answers, as a runtime that has lost its device."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()

    def predict(self, images: Images) -> Probabilities:
        self.entered.set()
        threading.Event().wait()
        return super().predict(images)


class FailingBackend(RecordingBackend):
    """Fails on batches that hold a black image."""

    def predict(self, images: Images) -> Probabilities:
        answer = super().predict(images)
        if not images.any(axis=(1, 2, 3)).all():
            raise BackendFailed("secret of the inside")
        return answer


class ShortBackend(RecordingBackend):
    """Loses a row."""

    def predict(self, images: Images) -> Probabilities:
        return super().predict(images)[1:]


class NumberlessBackend(RecordingBackend):
    """Answers with what is no number, as a graph that divides by zero."""

    def predict(self, images: Images) -> Probabilities:
        return super().predict(images) * np.float32("nan")


class Crash(BaseException):
    """Not an Exception: what a worker does not survive."""


class DyingBackend(RecordingBackend):
    """Takes the worker with it."""

    def predict(self, images: Images) -> Probabilities:
        raise Crash(f"the end, at {len(images)} images")


def black(count: int = 1) -> Images:
    """Images that FailingBackend fails on."""
    return np.zeros((count, 32, 32, 3), np.uint8)
