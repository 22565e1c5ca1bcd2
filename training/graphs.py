"""A trained network as it is served, and its ONNX and TorchScript graphs as bytes.

Nothing here writes a file or knows what an artifact is.
"""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from app.contract import Images, Probabilities, Views
from training import data
from training.errors import ExportError
from training.views import with_views

OPSET = 20


class ServedNetwork(nn.Module):
    """A network as it is served: uint8 `[N,H,W,3]` to calibrated logits and probabilities.

    Both outputs are float32 `[N,classes]`; the logits are divided by the temperature, so their
    softmax is the probabilities.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: list[float],
        deviation: list[float],
        temperature: float,
        views: Views = 1,
    ) -> None:
        super().__init__()
        self.network = with_views(network, views)
        self.temperature = temperature
        # One number for each value of an image: onnxruntime is ten times slower at repeating
        # three along the innermost dimension.
        shape = (*data.IMAGE_SIZE, 3)
        scale = 1 / (255 * torch.tensor(deviation))
        shift = torch.tensor(mean) / torch.tensor(deviation)
        self.register_buffer("scale", scale.expand(shape).contiguous())
        self.register_buffer("shift", shift.expand(shape).contiguous())

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and probabilities."""
        pixels = image.to(torch.float32) * self.scale - self.shift
        logits = self.network(pixels.permute(0, 3, 1, 2)) / self.temperature
        return logits, torch.softmax(logits, 1)

    @torch.inference_mode()
    def predict(self, images: Images) -> Probabilities:
        """Return the eager network's probabilities, as a backend would."""
        probabilities: Probabilities = self(torch.from_numpy(images))[1].numpy()
        return probabilities


def onnx_graph(served: ServedNetwork, images: Images) -> bytes:
    """Return the network as an ONNX file, traced with uint8 images `[N,H,W,3]`.

    Raises:
        ExportError: the exporter gave nothing.
    """
    batch = torch.export.Dim("N")
    with _quiet_exporters():
        program = torch.onnx.export(
            served,
            (torch.from_numpy(images),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits", "probabilities"],
            dynamic_shapes={"image": {0: batch}},
            verbose=False,
        )
        if program is None:
            raise ExportError("torch.onnx gave no program")
        return bytes(program.model_proto.SerializeToString())


def torchscript_graph(served: nn.Module, images: Images) -> bytes:
    """Return the network as a TorchScript file, traced with uint8 images `[N,H,W,3]`."""
    buffer = io.BytesIO()
    with _quiet_exporters(), torch.no_grad():
        traced = torch.jit.trace(served, torch.from_numpy(images), check_trace=False)
        torch.jit.save(traced, buffer)
    return buffer.getvalue()


@contextmanager
def _quiet_exporters() -> Iterator[None]:
    """Keep torch's word that TorchScript is deprecated, and the exporter's steps, to itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
