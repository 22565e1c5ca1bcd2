"""Runtimes that compute a model's probabilities, behind one method.

`open_backend` imports the runtime that is asked for and no other.
"""

import ctypes
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from app.artifact.directory import Artifact
from app.artifact.manifest import Precision
from app.artifact.store import Store
from app.artifact.tensors import Images, Outputs
from app.errors import SettingsError

BackendName = Literal["onnx-cpu", "torch-cpu", "torch-cuda"]

BATCH_MACS = 6_000_000_000
"""Multiply-accumulates of a batch on a processor: a seventh of a second of one core. A heavy model
is no faster in larger batches, which take more memory and look as if they never ended."""


class Backend(Protocol):
    """Anything that classifies a batch."""

    def predict(self, images: Images) -> Outputs:
        """Return what the graph gives for uint8 RGB images `[N,H,W,3]`.

        Raises:
            BackendFailed: the runtime could not compute them.
        """
        ...


class Layers(Protocol):
    """Anything that shows what a network's layers give."""

    def outputs(self, image: NDArray[np.uint8], layers: Sequence[str]) -> list[NDArray[np.float32]]:
        """Return what layers give for one image uint8 `[H,W,3]`, each without the batch.

        Args:
            image: as the model takes it.
            layers: names in the manifest, or `pixels`.

        Raises:
            BackendFailed: the runtime could not compute them.
        """
        ...

    def features(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the feature map before global average pooling, float32 `[C,h,w]`."""
        ...


def batch_limit(artifact: Artifact, name: BackendName, most: int) -> int:
    """Return how many images the runtime is given at a time: at most `most`, at least one."""
    if name == "torch-cuda":
        return most
    return min(most, artifact.manifest.images_within(BATCH_MACS))


def check_precision(name: BackendName, precision: Precision) -> None:
    """Raise unless the runtime computes in this precision.

    Raises:
        SettingsError: naming both.
    """
    if precision == "int8" and name != "onnx-cpu":
        raise SettingsError(
            f"CONVSCOPE_PRECISION=int8: needs CONVSCOPE_BACKEND=onnx-cpu; it is {name}"
        )


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
        threads: how many processor threads one batch may use.
        precision: which of the artifact's ONNX graphs.

    Raises:
        ArtifactError: a file differs from its record, the graph is missing or does not load, or
            its probabilities for the golden images differ by more than the tolerance.
        SettingsError: the runtime is not installed, or does not compute in this precision.
    """
    check_precision(name, precision)
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
    return backend


def open_backends(
    store: Store, name: BackendName, threads: int, precision: Precision = "float32"
) -> dict[str, Backend]:
    """Check every file of every artifact, load the graphs and prove them on the golden images.

    Returns:
        A backend for each artifact's `ref`.

    Raises:
        ArtifactError: naming the first file that differs, or a model without this precision.
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
    return layers


def _prove(
    artifact: Artifact, name: BackendName, backend: Backend, precision: Precision = "float32"
) -> None:
    """Check the golden images in batches that are no larger than those that will be served."""

    def predict(images: Images) -> Outputs:
        size = batch_limit(artifact, name, len(images))
        return Outputs.in_batches(backend.predict, images, size)

    artifact.check_golden(name, predict, precision)
    _trim_heap()


def _trim_heap() -> None:
    """Give back to the system what loading a graph left free, where the C library is glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
