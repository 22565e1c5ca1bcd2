"""ONNX graphs on the processor. The service imports onnxruntime only here."""

import os
from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

# From 1.29 on, onnxruntime reports the process and its models to Microsoft unless this variable is
# set before the import. Set it to 0 to allow the reports.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

from app.artifact.directory import Artifact
from app.artifact.files import LAYER_OUTPUT, LAYER_OUTPUTS, LAYERS, ONNX_GRAPH
from app.artifact.manifest import FEATURES
from app.artifact.tensors import Images, Outputs
from app.errors import ArtifactError, BackendFailed
from app.images import RgbImage

_ERRORS_ONLY = 3  # the runtime's warnings say nothing that an operator could act on


class OnnxBackend:
    """One of an artifact's ONNX graphs in an onnxruntime session."""

    def __init__(
        self,
        artifact: Artifact,
        threads: int = 1,
        file_name: str = ONNX_GRAPH,
        more: bytes = b"",
    ) -> None:
        """Load the graph.

        Args:
            artifact: the model directory.
            threads: processor threads for one batch.
            file_name: the graph's file.
            more: bytes to append to the graph.

        Raises:
            ArtifactError: the file differs from its record, or the graph does not load.
        """
        graph = artifact.read_graph(file_name) + more
        try:
            self._session = ort.InferenceSession(
                graph, _options(threads), providers=["CPUExecutionProvider"]
            )
        except Exception as exc:
            raise ArtifactError(f"{artifact.path / file_name}: does not load: {exc}") from exc
        self._session._model_bytes = None  # a second copy, kept only to change the provider
        self._input = artifact.manifest.input.name
        self._outputs = artifact.manifest.predicted

    def predict(self, images: Images) -> Outputs:
        """Return the graph's outputs for uint8 RGB images `[N,H,W,3]`."""
        arrays = self._run(self._outputs, images)
        return Outputs(dict(zip(self._outputs, arrays, strict=True)))

    def _run(self, outputs: list[str], images: Images) -> list[Any]:
        try:
            return cast(list[Any], self._session.run(outputs, {self._input: images}))
        except Exception as exc:
            raise BackendFailed(f"onnxruntime failed on {len(images)} images: {exc}") from exc


class OnnxLayers(OnnxBackend):
    """An artifact's float32 graph, with the output of every layer among its outputs."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact, more=artifact.arrays(LAYERS)[LAYER_OUTPUTS].tobytes())

    def outputs(self, image: RgbImage, layers: Sequence[str]) -> list[NDArray[np.float32]]:
        """Return the outputs of layers for one image, each without the batch axis."""
        names = [LAYER_OUTPUT.format(layer) for layer in layers]
        return [values[0] for values in self._run(names, image[np.newaxis])]

    def features(self, image: RgbImage) -> NDArray[np.float32]:
        """Return the feature map before global average pooling, float32 `[C,h,w]`."""
        (features,) = self._run([FEATURES], image[np.newaxis])
        return cast(NDArray[np.float32], features[0])


def _options(threads: int) -> ort.SessionOptions:
    _share_arena()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.enable_mem_pattern = False  # it would keep a block of memory for each batch size
    return options


@cache
def _share_arena() -> None:
    """Let all sessions share one arena, since an arena keeps the memory of its largest batch."""
    place = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    ort.create_and_register_allocator(place, None)
