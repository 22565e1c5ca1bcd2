"""TorchScript graphs on a GPU or on the processor. The service imports torch only here.

`torch-cuda` serves. `torch-cpu` serves too, slower than ONNX, and proves an export where there is
no GPU.
"""

import io
import warnings

import numpy as np
import torch

from app.artifact.directory import Artifact
from app.artifact.files import TORCHSCRIPT_GRAPH
from app.artifact.tensors import Images, Outputs
from app.errors import ArtifactError, BackendFailed


class TorchBackend:
    """An artifact's TorchScript graph on one device."""

    def __init__(self, artifact: Artifact, device: str, threads: int = 1) -> None:
        """Load the graph.

        Args:
            artifact: the model directory.
            device: `cuda` or `cpu`.
            threads: processor threads for one batch on `cpu`.

        Raises:
            ArtifactError: there is no GPU, the file differs from its record, or the graph does not
                load.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise ArtifactError(f"{artifact.path}: torch sees no CUDA device to serve it on")
        if device == "cpu":
            torch.set_num_threads(threads)
        self._device = torch.device(device)
        names = [output.name for output in artifact.manifest.outputs]
        self._places = {name: names.index(name) for name in artifact.manifest.predicted}
        self._module = load_graph(artifact, self._device, freeze=True)

    def predict(self, images: Images) -> Outputs:
        """Return the graph's outputs for uint8 RGB images `[N,H,W,3]`."""
        try:
            with torch.inference_mode():
                batch = torch.from_numpy(np.ascontiguousarray(images)).to(self._device)
                outputs = self._module(batch)
                found = {name: outputs[at].cpu().numpy() for name, at in self._places.items()}
        except RuntimeError as exc:
            raise BackendFailed(f"torch failed on {len(images)} images: {exc}") from exc
        return Outputs(found)


def load_graph(
    artifact: Artifact, device: torch.device, *, freeze: bool = False
) -> torch.jit.ScriptModule:
    """Return an artifact's TorchScript graph on a device.

    Args:
        artifact: the model directory.
        device: where its tensors are.
        freeze: make its weights constants: float16 ones are widened once, and none can be read.

    Raises:
        ArtifactError: the file differs from its record, or the graph does not load.
    """
    graph = artifact.read(TORCHSCRIPT_GRAPH)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            module: torch.jit.ScriptModule = torch.jit.load(io.BytesIO(graph), map_location=device)
            return torch.jit.freeze(module.eval()) if freeze else module
    except RuntimeError as exc:
        raise ArtifactError(f"{artifact.path / TORCHSCRIPT_GRAPH}: does not load: {exc}") from exc
