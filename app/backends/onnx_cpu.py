"""ONNX graphs on the processor. The only import of onnxruntime."""

import os
from typing import cast

# From 1.29 on, onnxruntime's packages tell Microsoft about the process and its models unless this
# is set before the import. Who wants that can set it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

from app.contract import ONNX_GRAPH, Artifact, Images, Probabilities
from app.errors import ArtifactError, BackendFailed

_QUIET = 3  # errors only: a warning of the runtime says nothing to who serves


class OnnxBackend:
    """One of an artifact's ONNX graphs, by its file's name, in an onnxruntime session."""

    def __init__(self, artifact: Artifact, threads: int = 1, file_name: str = ONNX_GRAPH) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _QUIET
        graph = artifact.read(file_name)
        try:
            self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as exc:
            raise ArtifactError(f"{artifact.path / file_name}: does not load: {exc}") from exc
        self._input = artifact.manifest.input.name
        self._output = artifact.manifest.outputs[1].name

    def predict(self, images: Images) -> Probabilities:
        """Return float32 probabilities `[N,classes]` for uint8 RGB images `[N,H,W,3]`."""
        try:
            (probabilities,) = self._session.run([self._output], {self._input: images})
        except Exception as exc:
            raise BackendFailed(f"onnxruntime failed on {len(images)} images: {exc}") from exc
        return cast(Probabilities, probabilities)
