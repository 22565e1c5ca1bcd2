"""Backends that misbehave, as real classes."""

import threading
import time

import numpy as np

from app.artifact.tensors import Images, Outputs
from app.errors import BackendFailed
from tests.support.artifacts import CLASSES, numpy_predict


class RecordingBackend:
    """Answers as the colour model does and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[Images] = []

    def predict(self, images: Images) -> Outputs:
        self.batches.append(images)
        return Outputs.of_classes(numpy_predict(images))


class SlowBackend(RecordingBackend):
    """Takes a fixed time for a batch."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def predict(self, images: Images) -> Outputs:
        time.sleep(self._seconds)
        return super().predict(images)


class HeldBackend(RecordingBackend):
    """Holds every batch until it is released; `entered` is set while a batch is held."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.release = threading.Event()

    def predict(self, images: Images) -> Outputs:
        self.entered.set()
        if not self.release.wait(10):
            raise TimeoutError("the batch was not released within 10 s")
        return super().predict(images)


class LaterHeldBackend(HeldBackend):
    """Computes its first batch at once and holds the others."""

    def predict(self, images: Images) -> Outputs:
        if not self.batches:
            return RecordingBackend.predict(self, images)
        return super().predict(images)


class PatchBackend(RecordingBackend):
    """Gives the second class a probability that grows with the red of a patch of 4×4 pixels."""

    def __init__(self, top: int, left: int) -> None:
        super().__init__()
        self._patch = slice(top, top + 4), slice(left, left + 4)

    def predict(self, images: Images) -> Outputs:
        super().predict(images)
        red = images[:, *self._patch, 0].astype(np.float32).mean(axis=(1, 2)) / 255
        odds = np.ones((len(images), len(CLASSES)), np.float32)
        odds[:, 1] = np.exp(8 * red - 4)
        return Outputs.of_classes(odds / odds.sum(axis=1, keepdims=True))


class BrightnessBackend(RecordingBackend):
    """Gives each image its brightness, 0 to 1, as the score of foreign images."""

    def predict(self, images: Images) -> Outputs:
        scores = images.astype(np.float32).mean(axis=(1, 2, 3)) / 255
        return Outputs.of_classes(super().predict(images).probabilities, scores)


class HangingBackend(RecordingBackend):
    """Never answers, like a runtime that has lost its device."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()

    def predict(self, images: Images) -> Outputs:
        self.entered.set()
        threading.Event().wait()
        return super().predict(images)


class FailingBackend(RecordingBackend):
    """Fails on batches that hold a black image."""

    def predict(self, images: Images) -> Outputs:
        answer = super().predict(images)
        if not images.any(axis=(1, 2, 3)).all():
            raise BackendFailed("secret of the inside")
        return answer


class ShortBackend(RecordingBackend):
    """Loses a row of its answer."""

    def predict(self, images: Images) -> Outputs:
        return super().predict(images).part(1, len(images))


class NumberlessBackend(RecordingBackend):
    """Answers with NaN, like a graph that divides by zero."""

    def predict(self, images: Images) -> Outputs:
        return Outputs.of_classes(super().predict(images).probabilities * np.float32("nan"))


class Crash(BaseException):
    """An error that a worker does not survive: no subclass of Exception."""


class DyingBackend(RecordingBackend):
    """Ends the worker."""

    def predict(self, images: Images) -> Outputs:
        raise Crash(f"the end, at {len(images)} images")


def black(count: int = 1) -> Images:
    """Images that FailingBackend fails on."""
    return np.zeros((count, 32, 32, 3), np.uint8)


def burn(seconds: float) -> None:
    """Use this thread's processor for so long."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass
