"""An artifact's ONNX graph in int8: calibrated on training images, proven on held-out ones.

Weights and activations are quantised statically. The normalisation, the last layer, the temperature
and the softmax stay in float32. The temperature is fitted anew, because rounding makes a network
surer or less sure. This is the only import of onnxruntime outside the service's backend. Only
`training.evaluate` reads the test split.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch

from app.artifact.directory import Artifact, record_file, rewritten
from app.artifact.files import GOLDEN, INT8_GRAPH, ONNX_GRAPH
from app.artifact.golden import pack_golden, read_golden
from app.artifact.manifest import Int8Graph, Int8Record
from app.artifact.tensors import Images
from app.inference.backends.onnx_cpu import (
    OnnxBackend,  # first: it switches the runtime's telemetry off
)
from training.data import dataset
from training.errors import ExportError
from training.evaluate import (
    Answered,
    answer,
    answer_test,
    load_heldout,
    load_splits,
)
from training.export.graphs import nodes_of_logits
from training.export.half_weights import unpack_onnx
from training.run.checkpoint import Checkpoint
from training.tasks.classification import fit_temperature, measure_served

CALIBRATION_IMAGES = 1000
CALIBRATION_SEED = 0
CALIBRATION_PIXELS = 100 * 32 * 32
"""In a batch."""

MOST_LOST = 0.003
"""The largest loss of held-out accuracy by int8, as a part of one."""

LEAST_PROBABILITY = 1e-30
"""Replaces a probability that is 0 in float32."""

INT8_TOLERANCE = 0.01
"""Largest difference of a golden probability from the int8 graph's at export.

The integers are exact on every processor (see `quantize`). The tolerance is for a runtime that
rounds an activation to the neighbouring step, which moved no probability of 5,000 images by more.
The float32 graph's probabilities differ by 0.016 to 0.045.
"""

_CONVOLUTIONS = {"Conv", "ConvTranspose"}
_LAYERS = {"Conv", "Gemm", "MatMul"}
_WITHOUT_PIXELS = {"GlobalAveragePool", "ReduceMean", "Shape"}


def add_int8(
    artifact: Artifact, checkpoint: Checkpoint, source: dataset.Source
) -> tuple[Artifact, Answered]:
    """Write the int8 graph, its golden probabilities and its record into an artifact.

    Args:
        artifact: unfinished, with a proven float32 graph.
        checkpoint: the run that it was exported from.
        source: the data set of the run.

    Returns:
        The artifact, and the graph's answers for the test split.

    Raises:
        ExportError: the graph cannot be quantised, or loses more than `MOST_LOST` of its accuracy
            on the held-out images.
        ConvscopeError: a graph does not load or fails.
    """
    calibration = choose_training_images(checkpoint, source, CALIBRATION_IMAGES).images.numpy()
    graph = quantize(unpack_onnx(artifact.read_graph(ONNX_GRAPH)), calibration)
    heldout = load_heldout(checkpoint, source)
    before = answer(_backend(artifact, ONNX_GRAPH).predict, heldout)
    artifact = with_graph(artifact, graph)
    after = answer(_backend(artifact, INT8_GRAPH).predict, heldout)
    check_loss(before.accuracy, after.accuracy, len(heldout))
    change = _temperature_of(after)
    artifact = with_graph(artifact, _divided_by(change, graph))
    int8 = _backend(artifact, INT8_GRAPH)
    answered = answer_test(int8.predict, source)
    test = measure_served(
        torch.from_numpy(answered.outputs.probabilities), torch.from_numpy(answered.labels)
    )
    record = Int8Record(
        file=INT8_GRAPH,
        calibration_images=len(calibration),
        temperature=artifact.classifier.temperature * change,
        heldout_accuracy_float32=before.accuracy,
        heldout_accuracy=after.accuracy,
        test_accuracy=test.accuracy,
        test_cross_entropy=test.cross_entropy,
        test_ece=test.ece,
        golden_tolerance=INT8_TOLERANCE,
    )
    return with_record(with_golden(artifact, int8), record), answered


def _backend(artifact: Artifact, graph: str) -> OnnxBackend:
    return OnnxBackend(artifact, torch.get_num_threads(), graph)


def _temperature_of(answered: Answered) -> float:
    """Return the temperature that fits probabilities best: their logarithms are logits."""
    probabilities = torch.from_numpy(answered.outputs.probabilities).double()
    logits = probabilities.clamp_min(LEAST_PROBABILITY).log()
    return fit_temperature(logits, torch.from_numpy(answered.labels))


def _divided_by(temperature: float, graph: bytes) -> bytes:
    """Return the graph with its logits divided by a further temperature."""
    model = onnx.load_from_string(graph)
    logits = model.graph.output[0].name
    [division] = [n for n in model.graph.node if n.op_type == "Div" and logits in n.output]
    [divisor] = [part for part in model.graph.initializer if part.name == division.input[1]]
    value = onnx.numpy_helper.to_array(divisor) * np.float32(temperature)
    divisor.CopyFrom(onnx.numpy_helper.from_array(value, divisor.name))
    return bytes(model.SerializeToString())


def check_loss(float32: float, int8: float, images: int) -> None:
    """Raise unless int8 keeps its accuracy on the held-out images.

    Args:
        float32: the float32 graph's accuracy, a part of one.
        int8: the int8 graph's.
        images: the number of held-out images; an accuracy is a multiple of one such part.

    Raises:
        ExportError: int8 loses more than `MOST_LOST`; the message has the accuracies and the limit.
    """
    lost = round((float32 - int8) * images) / images
    if lost > MOST_LOST:
        raise ExportError(
            f"int8 classifies {int8:.2%} of the {images} held-out images correctly, float32 "
            f"{float32:.2%}: it loses {100 * lost:.2f} points; the limit is {100 * MOST_LOST:.2f}"
        )


def choose_training_images(
    checkpoint: Checkpoint, source: dataset.Source, count: int
) -> dataset.Split:
    """Return a seeded random choice of the images that the run was trained on."""
    train, _ = load_splits(checkpoint, source)
    generator = torch.Generator().manual_seed(CALIBRATION_SEED)
    return train[torch.randperm(len(train), generator=generator)[:count]]


def quantize(
    graph: bytes,
    images: Images,
    float_nodes: Callable[[onnx.ModelProto], list[str]] | None = None,
) -> bytes:
    """Return a float32 ONNX graph with its layers in int8.

    The range of an activation is from its least to its largest value for the images. Weights have a
    scale for each output channel and a range of 7 bits, -64 to 64: processors without VNNI add two
    products of a weight and an unsigned activation in 16 bits, and two of 8 bits overflow silently.

    Args:
        graph: takes `image`.
        images: calibrate the ranges; uint8 `[N,H,W,3]`.
        float_nodes: names the nodes that stay in float32; by default a classifier's.

    Raises:
        ExportError: onnxruntime cannot quantise it.
    """
    from onnxruntime import quantization
    from onnxscript.rewriter import rewrite

    try:
        model = rewrite(onnx.load_from_string(graph))  # makes a normalisation part of its layer
        with tempfile.TemporaryDirectory() as folder, _quiet_quantizer():
            path = Path(folder) / INT8_GRAPH
            quantization.quantize_static(
                model,
                path,
                _Batches(images),
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
                calibrate_method=quantization.CalibrationMethod.MinMax,
                nodes_to_exclude=(float_nodes or _float_nodes)(model),
            )
            return path.read_bytes()
    except Exception as exc:
        raise ExportError(f"onnxruntime cannot quantise the graph: {exc}") from exc


class _Batches:
    """Images for `quantize_static`: one batch for each call, then None."""

    def __init__(self, images: Images) -> None:
        size = max(1, CALIBRATION_PIXELS // (images.shape[1] * images.shape[2]))
        starts = range(0, len(images), size)
        self._batches = iter([images[start : start + size] for start in starts])

    def get_next(self) -> dict[str, Images] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch}


def _float_nodes(model: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes that stay in float32.

    These are all nodes before the first layer, the last layer with all nodes after it, and all
    nodes that the logits do not depend on (the out-of-distribution score). The last layer is a
    small part of the arithmetic, and int8 would leave its logits only 256 values. The same holds
    for nodes that see only an image's means, such as the gates of squeeze and excitation.
    """
    before = nodes_of_logits(model)
    layers = [index for index, node in enumerate(before) if node.op_type in _LAYERS]
    if not layers:
        raise ValueError(f"it has no {' or '.join(sorted(_LAYERS))}")
    quantized = {node.name for node in before[layers[0] : layers[-1]]} - _nodes_of_means(model)
    return [node.name for node in model.graph.node if node.name not in quantized]


def inner_nodes(model: onnx.ModelProto) -> set[str]:
    """Return the names of the nodes from a convolution to another one, both included but the last.

    A detector or segmenter has several last convolutions, whose outputs need more than 256 values.
    """
    after = _reached(model.graph.node, "output", "input")
    before = _reached(list(reversed(model.graph.node)), "input", "output")
    return {
        node.name
        for node in model.graph.node
        if before[node.name] and (after[node.name] or node.op_type in _CONVOLUTIONS)
    }


def _reached(nodes: Sequence[onnx.NodeProto], gives: str, takes: str) -> dict[str, bool]:
    """Return which nodes a convolution comes before, in the order of the nodes."""
    tensors: set[str] = set()
    reached = {}
    for node in nodes:
        reached[node.name] = bool(tensors.intersection(getattr(node, takes)))
        if reached[node.name] or node.op_type in _CONVOLUTIONS:
            tensors.update(getattr(node, gives))
    return reached


def _nodes_of_means(model: onnx.ModelProto) -> set[str]:
    """Return the names of the nodes that see only an image's size and its channels' means."""
    known = {"", *(tensor.name for tensor in model.graph.initializer)}
    nodes = set()
    for node in model.graph.node:
        if node.op_type in _WITHOUT_PIXELS or known.issuperset(node.input):
            known.update(node.output)
            nodes.add(node.name)
    return nodes


def with_golden(artifact: Artifact, int8: OnnxBackend) -> Artifact:
    """Add the int8 graph's answers for the golden images."""
    images, answers = read_golden(artifact)
    golden = pack_golden(images, {"float32": answers, "int8": int8.predict(images)})
    np.savez_compressed(artifact.path / GOLDEN, allow_pickle=False, **golden)
    return with_files(artifact, GOLDEN)


def with_record(artifact: Artifact, record: Int8Graph) -> Artifact:
    """Write the manifest with the record."""
    manifest = artifact.manifest.model_copy(update={"int8": record})
    return rewritten(Artifact(artifact.path, manifest))


def with_graph(artifact: Artifact, graph: bytes) -> Artifact:
    """Write the int8 graph."""
    (artifact.path / INT8_GRAPH).write_bytes(graph)
    return with_files(artifact, INT8_GRAPH)


def with_files(artifact: Artifact, *names: str) -> Artifact:
    """Return the artifact with new records of some files."""
    files = artifact.manifest.files | {name: record_file(artifact.path / name) for name in names}
    manifest = artifact.manifest.model_copy(update={"files": dict(sorted(files.items()))})
    return Artifact(artifact.path, manifest)


@contextmanager
def _quiet_quantizer() -> Iterator[None]:
    """Silence the quantiser's advice, which it writes to the root logger."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
