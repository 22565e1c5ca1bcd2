"""The runtimes that compute a model's outputs, behind one method.

`open_backend` imports only the runtime that it is asked for.
"""

import timeit
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.artifact.directory import Artifact
from app.artifact.golden import check_golden
from app.artifact.manifest import PRECISIONS, BackendName, Precision
from app.artifact.store import Store
from app.artifact.tensors import Images, Outputs
from app.errors import SettingsError
from app.images import RgbImage
from app.machine import trim_heap

BATCH_MACS = 6_000_000_000
"""Multiply-accumulates of a batch on a processor at most: a seventh of a second of one core. Larger
batches of a heavy model are no faster, take more memory, and would be mistaken for a stall."""


LOOP_SECONDS = 0.008
"""A full batch that takes no longer may be computed in the event loop, where all others wait."""


class Backend(Protocol):
    """A runtime that computes a batch."""

    def predict(self, images: Images) -> Outputs:
        """Return the graph's outputs for uint8 RGB images `[N,H,W,3]`.

        Raises:
            BackendFailed: the runtime failed.
        """
        ...


class Layers(Protocol):
    """A runtime that computes the outputs of a network's layers."""

    def outputs(self, image: RgbImage, layers: Sequence[str]) -> list[NDArray[np.float32]]:
        """Return the outputs of layers for one image, each without the batch axis.

        Args:
            image: uint8 `[H,W,3]`, of the model's size.
            layers: names in the manifest, or `pixels`.

        Raises:
            BackendFailed: the runtime failed.
        """
        ...

    def features(self, image: RgbImage) -> NDArray[np.float32]:
        """Return the feature map before global average pooling, float32 `[C,h,w]`."""
        ...


def batch_limit(artifact: Artifact, name: BackendName, most: int) -> int:
    """Return the largest batch for the runtime: at most `most` images, at least one."""
    if name == "torch-cuda":
        return most
    return min(most, artifact.manifest.images_within(BATCH_MACS))


def is_quick(artifact: Artifact, backend: Backend, most: int) -> bool:
    """Measure whether a batch of `most` images takes at most `LOOP_SECONDS`."""

    def best_of_three(images: int) -> float:
        zeros = np.zeros((images, *artifact.manifest.image_size, 3), np.uint8)
        return min(timeit.repeat(lambda: backend.predict(zeros), number=1, repeat=3))

    return best_of_three(1) <= LOOP_SECONDS and best_of_three(most) <= LOOP_SECONDS


def open_backend(
    artifact: Artifact,
    name: BackendName,
    threads: int = 1,
    precision: Precision = "float32",
) -> Backend:
    """Load an artifact's graph and prove that it answers here as it did at export.

    Args:
        artifact: the model directory.
        name: the runtime: `onnx-cpu`, or torch on the processor or the GPU.
        threads: processor threads for one batch.
        precision: of the artifact's graph.

    Raises:
        ArtifactError: a file differs from its record, the graph is missing or does not load, or
            its probabilities for the golden images differ by more than the tolerance.
        SettingsError: the runtime is not installed, or does not compute in this precision.
    """
    if precision not in PRECISIONS[name]:
        raise SettingsError(f"{name} does not compute in {precision}")
    backend: Backend
    if name == "onnx-cpu":
        from app.inference.backends.onnx_cpu import OnnxBackend

        backend = OnnxBackend(artifact, threads, artifact.onnx_graph(precision))
    else:
        try:
            from app.inference.backends.torchscript import TorchBackend
        except ModuleNotFoundError as exc:
            raise SettingsError(f"CONVSCOPE_BACKEND={name}: {exc.name} is not installed") from exc

        backend = TorchBackend(artifact, name.removeprefix("torch-"), threads)
    _prove(artifact, name, backend, precision)
    trim_heap()
    return backend


def open_backends(
    store: Store, name: BackendName, threads: int, precision: Precision = "float32"
) -> dict[str, Backend]:
    """Check every file of every artifact, load the graphs and prove them on the golden images.

    Returns:
        A backend for each artifact's `ref`.

    Raises:
        ArtifactError: names the first file that differs, or a model without this precision.
    """
    backends: dict[str, Backend] = {}
    for artifact in store:
        artifact.verify()
        backends[artifact.ref] = open_backend(artifact, name, threads, precision)
    return backends


def open_layers(artifact: Artifact) -> Layers:
    """Load an artifact's float32 graph with the output of every layer, and prove it.

    Raises:
        ArtifactError: a file differs from its record or does not load, or the probabilities for
            the golden images differ by more than the tolerance.
    """
    from app.inference.backends.onnx_cpu import OnnxLayers

    layers = OnnxLayers(artifact)
    _prove(artifact, "onnx-cpu", layers)
    trim_heap()
    return layers


def _prove(
    artifact: Artifact, name: BackendName, backend: Backend, precision: Precision = "float32"
) -> None:
    """Check the golden answers, in batches no larger than those that will be served."""

    def predict(images: Images) -> Outputs:
        size = batch_limit(artifact, name, len(images))
        return Outputs.in_batches(backend.predict, images, size)

    check_golden(artifact, name, predict, precision)
