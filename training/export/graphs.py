"""A trained network as it is served, and its ONNX and TorchScript graphs as bytes.

Nothing here writes a file or knows what an artifact is.
"""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch
from torch import Tensor, nn

from app.artifact.files import LAYER_OUTPUT, PIXELS
from app.artifact.manifest import FEATURES, Views
from app.artifact.tensors import OOD_SCORE, Images, Outputs
from training.architectures.describe import averaged_layer, changing_layers, layers_of
from training.architectures.views import with_views
from training.data import dataset
from training.errors import ExportError
from training.export.layer_outputs import outputs_of
from training.export.ood import OodScore
from training.served import Served
from training.tasks.suppression import translations

OPSET = 20


class ServedNetwork(nn.Module):
    """A network as it is served: uint8 `[N,H,W,3]` to calibrated logits and probabilities.

    Both outputs are float32 `[N,classes]`. The logits are divided by the temperature, so their
    softmax is the probabilities. A network that ends in global average pooling has a third output,
    the feature map before the pooling, float32 `[N,C,h,w]`, of the first view. With an `ood_score`,
    the last output is the score, float32 `[N]`.
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
        ood_score: OodScore | None = None,
    ) -> None:
        super().__init__()
        self.plain = network
        self.network = with_views(network, views)
        self.temperature = temperature
        # One number for each value of an image: onnxruntime takes ten times as long to repeat three
        # numbers along the innermost dimension.
        shape = (*dataset.IMAGE_SIZE, 3)
        scale = 1 / (255 * torch.tensor(deviation))
        shift = torch.tensor(mean) / torch.tensor(deviation)
        self.register_buffer("scale", scale.expand(shape).contiguous())
        self.register_buffer("shift", shift.expand(shape).contiguous())
        self.layers = changing_layers(
            layers_of(network.eval(), torch.empty(1, 3, *dataset.IMAGE_SIZE))
        )
        self.output_names: tuple[str, ...] = ("logits", "probabilities")
        self._averaged = averaged_layer(self.layers)
        if self._averaged is not None:
            self.output_names += (FEATURES,)
        self.ood_score = ood_score
        if ood_score is not None:
            self.output_names += (OOD_SCORE,)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return logits and probabilities, then features and the score where there are any."""
        pixels = image.to(torch.float32) * self.scale - self.shift
        looked_at = [] if self._averaged is None else [self._averaged]
        if self.ood_score is not None:
            looked_at.append(self.ood_score.layer)
        with outputs_of(self.plain, looked_at, image.shape[0]) as maps:
            logits = self.network(pixels.permute(0, 3, 1, 2)) / self.temperature
        probabilities = torch.softmax(logits, 1)
        outputs = [logits, probabilities]
        if self._averaged is not None:
            outputs.append(maps[self._averaged])
        if self.ood_score is not None:
            outputs.append(self.ood_score(maps[self.ood_score.layer], logits))
        return tuple(outputs)

    @torch.inference_mode()
    def predict(self, images: Images) -> Outputs:
        """Return the eager network's answers, as a backend does."""
        outputs = self(torch.from_numpy(images))
        score = None if self.ood_score is None else outputs[-1].numpy()
        return Outputs.of_classes(outputs[1].numpy(), score)


def onnx_graph(served: ServedNetwork | Served, images: Images) -> tuple[bytes, bytes]:
    """Return the network as an ONNX file, traced with uint8 images `[N,H,W,3]`.

    Returns:
        The graph, and bytes to append to it. With them, the normalised image and the outputs of all
        layers are outputs of the graph. (Concatenated protocol buffers are read as one.)

    Raises:
        ExportError: the exporter returned no graph.
    """
    names = [LAYER_OUTPUT.format(name) for name in (PIXELS, *(item.name for item in served.layers))]
    with quiet_exporters():
        program = torch.onnx.export(
            _WithLayers(served),
            (torch.from_numpy(images),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=[*served.output_names, *names],
            dynamic_shapes={"image": {0: torch.export.Dim("N")}},
            custom_translation_table=translations(),
            verbose=False,
        )
        if program is None:
            raise ExportError("torch.onnx gave no program")
        return _split_outputs(program.model_proto, len(served.output_names))


class _WithLayers(nn.Module):
    """A served network that also returns the outputs of its layers."""

    def __init__(self, served: ServedNetwork | Served) -> None:
        super().__init__()
        self.served = served

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the served network's outputs, the normalised image, and each layer's output."""
        names = [layer.name for layer in self.served.layers]
        with outputs_of(self.served.plain, (PIXELS, *names), image.shape[0]) as layers:
            outputs = self.served(image)
        return *outputs, *(layers[name] for name in (PIXELS, *names))


def _split_outputs(model: onnx.ModelProto, count: int) -> tuple[bytes, bytes]:
    """Move all outputs but the first `count` to a graph of their own; return both graphs."""
    others = onnx.ModelProto()
    others.graph.output.extend(model.graph.output[count:])
    del model.graph.output[count:]
    return model.SerializeToString(), others.SerializeToString()


def nodes_of_logits(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the nodes that a graph's first output depends on, in the graph's order."""
    needed = {model.graph.output[0].name}
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
    return [node for node in model.graph.node if needed.intersection(node.output)]


def torchscript_graph(served: nn.Module, images: Images) -> bytes:
    """Return the network as a TorchScript file, traced with uint8 images `[N,H,W,3]`."""
    buffer = io.BytesIO()
    with quiet_exporters(), torch.no_grad():
        traced = torch.jit.trace(served, torch.from_numpy(images), check_trace=False)
        torch.jit.save(traced, buffer)
    return buffer.getvalue()


@contextmanager
def quiet_exporters() -> Iterator[None]:
    """Silence torch's warning that TorchScript is deprecated, and the exporter's log."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
