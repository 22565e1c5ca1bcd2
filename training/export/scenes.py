"""Export of a trained detector or segmenter to an artifact directory that carries its own proof.

As `training.export.export` does for classifiers: before the directory gets its name, the service's
backends give the network's answers with both graphs, for the golden pictures and, up to the figure
that they are measured by, for all test pictures.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch

from app.artifact.directory import Artifact, read_artifact, rewritten
from app.artifact.files import (
    EVALUATION,
    GOLDEN,
    HISTORY,
    INT8_GRAPH,
    LAYER_OUTPUTS,
    LAYERS,
    ONNX_GRAPH,
    TORCHSCRIPT_GRAPH,
)
from app.artifact.golden import check_golden, pack_golden
from app.artifact.manifest import Int8Graph, Manifest, TensorSpec
from app.artifact.tensors import Images
from app.errors import ConvscopeError
from app.explore.confusion_matrix import draw_matrix
from app.inference.backends import open_backend, open_layers
from app.inference.backends.onnx_cpu import OnnxBackend
from training.architectures import find_architecture
from training.architectures.describe import describe
from training.data.annotated import Scene
from training.data.scenes import SceneSource
from training.errors import ExportError
from training.evaluate_scenes import Evaluated
from training.export.export import (
    CONFUSION_MATRIX_PLOT,
    PROVEN_BACKENDS,
    check_exportable,
    common_record,
    input_spec,
    tell_nobody,
)
from training.export.graphs import onnx_graph, torchscript_graph
from training.export.inside import biases_and_classifier
from training.export.quantize import inner_nodes, quantize, with_golden, with_graph, with_record
from training.export.shared_weights import share_weights
from training.report import LEARNING_CURVE, draw_learning_curve
from training.run import durable
from training.run.checkpoint import Checkpoint, history_json
from training.run.scene_lessons import RESIZE, count_outputs, decode_laid, split

GOLDEN_PICTURES = 4
CALIBRATION_PICTURES = 64
CALIBRATION_SEED = 0

GOLDEN_TOLERANCE = {"onnx-cpu": 1e-3, "torch-cpu": 1e-3, "torch-cuda": 2e-2}
"""Largest difference of a score or of a pixel's probability; rounding grows with the layers."""

MOST_APART = 0.002
"""The largest difference of the mAP, or of the IoU, on test pictures between network and graph."""

MOST_LOST = 0.01
"""The largest loss by int8 of mAP, or of IoU, on held-out pictures."""

INT8_TOLERANCE = 0.05
"""Largest difference of a golden score. A step of an activation moves it further than a
classifier's probability, since nothing averages over the picture."""


@dataclass(frozen=True)
class SceneExport:
    """The parts of an artifact. With `int8`, it has a second ONNX graph."""

    checkpoint: Checkpoint
    evaluated: Evaluated
    source: SceneSource
    name: str
    version: str
    int8: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input."""
        recipe = self.checkpoint.state.recipe
        return recipe.height, recipe.width


def export_scenes(
    what: SceneExport, store: Path, tell: Callable[[str], None] = tell_nobody
) -> Artifact:
    """Write the artifact `<store>/<name>/<version>`; `tell` as for `export.export`.

    Raises:
        ExportError: the version exists or cannot be written, the name or version is not allowed,
            the exported graphs do not agree with the network, or int8 loses too much or cannot be
            proven. The store is left as it was.
        DataError: `source` is not the data set that the run was trained on.
    """
    check_exportable(what.checkpoint, what.source, store, what.name, what.version, int8=what.int8)
    place = store / what.name / what.version
    try:
        tell("writing the graphs")
        with durable.new_directory(place) as folder:
            _write_files(what, folder)
            artifact = rewritten(Artifact(folder, _manifest(what, folder)))
            tell("checking the graphs on the test pictures")
            _prove(artifact, what)
            if what.int8:
                tell("adding the int8 graph")
                _add_int8(artifact, what)
    except (OSError, ValueError, RuntimeError, ConvscopeError) as exc:
        raise ExportError(f"{place}: not exported: {exc}") from exc
    return read_artifact(place)


def _write_files(what: SceneExport, folder: Path) -> None:
    served, evaluation = what.evaluated.served, what.evaluated.evaluation
    images = _golden_images(what)
    graph, layer_outputs = onnx_graph(served, images)
    script = torchscript_graph(served, images)
    (folder / TORCHSCRIPT_GRAPH).write_bytes(script)
    (folder / ONNX_GRAPH).write_bytes(share_weights(graph, TORCHSCRIPT_GRAPH, script))
    golden = pack_golden(images, {"float32": served.predict(images)})
    np.savez_compressed(folder / GOLDEN, allow_pickle=False, **golden)
    weights = biases_and_classifier(served.plain, served.layers)
    appended = {LAYER_OUTPUTS: np.frombuffer(layer_outputs, np.uint8)}
    np.savez_compressed(folder / LAYERS, allow_pickle=False, **appended, **weights)
    durable.write_text(folder / EVALUATION, evaluation.model_dump_json(indent=1))
    (folder / CONFUSION_MATRIX_PLOT).write_bytes(
        draw_matrix(np.array(evaluation.confusion_matrix), evaluation.labels, None)
    )
    history = what.checkpoint.state.history
    durable.write_text(folder / HISTORY, history_json(history))
    draw_learning_curve(history, folder / LEARNING_CURVE)


def _golden_images(what: SceneExport) -> Images:
    """Return some pictures that the run held out, or learned from if there are none."""
    train, heldout = split(what.checkpoint.state.recipe, what.source)
    scenes = heldout if len(heldout) >= GOLDEN_PICTURES else train
    chosen = np.linspace(0, len(scenes) - 1, GOLDEN_PICTURES).astype(int)
    return _decoded([scenes[index] for index in chosen], what.size)


def _decoded(scenes: Sequence[Scene], size: tuple[int, int]) -> Images:
    return np.stack([decode_laid(scene, size)[0] for scene in scenes])


def _manifest(what: SceneExport, folder: Path) -> Manifest:
    state, evaluated = what.checkpoint.state, what.evaluated
    train, heldout = split(state.recipe, what.source)
    sizes = len(train), len(heldout), evaluated.evaluation.images
    task = find_architecture(state.recipe.architecture).task
    description = describe(state.recipe.architecture, count_outputs(task, what.source), what.size)
    common = common_record(what.checkpoint, what.name, what.version, folder, sizes) | {
        "input": input_spec(what.size),
        "resize": RESIZE,
        "outputs": _outputs(what),
        "parameters": description.parameters,
        "macs": description.macs,
        "layers": evaluated.served.layers,
        "category_ids": what.source.category_ids,
        "golden_tolerance": GOLDEN_TOLERANCE,
    }
    return evaluated.manifest(common)


def _outputs(what: SceneExport) -> tuple[TensorSpec, ...]:
    served = what.evaluated.served
    found = served.predict(np.zeros((1, *what.size, 3), np.uint8))
    return tuple(
        TensorSpec.model_validate(
            {"name": name, "dtype": str(array.dtype), "shape": ("N", *array.shape[1:])}
        )
        for name, array in found.arrays.items()
    )


def _prove(artifact: Artifact, what: SceneExport) -> None:
    """Raise unless the service's backends give the eager network's answers with both graphs."""
    artifact.verify()
    scenes = what.source.test
    expected = what.evaluated.score(what.evaluated.served.predict, scenes)
    threads = torch.get_num_threads()
    for name in PROVEN_BACKENDS:
        backend = open_backend(artifact, name, threads)
        check_golden(artifact, name, backend.predict)
        found = what.evaluated.score(backend.predict, scenes)
        if abs(found - expected) > MOST_APART:
            raise ExportError(
                f"{name} scores {found:.4f} on the test pictures, the network {expected:.4f}; "
                f"the limit is a difference of {MOST_APART}"
            )
    open_layers(artifact)


def _add_int8(artifact: Artifact, what: SceneExport) -> None:
    """Write the int8 graph, its golden answers and its record into an artifact.

    Raises:
        ExportError: the graph cannot be quantised, or loses more than `MOST_LOST` on the held-out
            pictures.
    """
    train, heldout = split(what.checkpoint.state.recipe, what.source)
    generator = torch.Generator().manual_seed(CALIBRATION_SEED)
    chosen = torch.randperm(len(train), generator=generator)[:CALIBRATION_PICTURES].tolist()
    images = _decoded([train[index] for index in chosen], what.size)
    graph = quantize(artifact.read_graph(ONNX_GRAPH), images, _outer_nodes)
    artifact = with_graph(artifact, graph)
    threads = torch.get_num_threads()
    before = OnnxBackend(artifact, threads)
    after = OnnxBackend(artifact, threads, INT8_GRAPH)
    scores = tuple(what.evaluated.score(each.predict, heldout) for each in (before, after))
    if scores[0] - scores[1] > MOST_LOST:
        raise ExportError(
            f"int8 scores {scores[1]:.4f} on the {len(heldout)} held-out pictures, float32 "
            f"{scores[0]:.4f}; the limit is a loss of {MOST_LOST}"
        )
    file = Int8Graph(
        file=INT8_GRAPH, calibration_images=len(images), golden_tolerance=INT8_TOLERANCE
    )
    record = what.evaluated.int8_record(
        file, (scores[0], scores[1]), after.predict, what.source.test
    )
    with_record(with_golden(artifact, after), record)


def _outer_nodes(model: onnx.ModelProto) -> list[str]:
    """Return the nodes that stay in float32: before the first layer, and the last ones after."""
    quantized = inner_nodes(model)
    return [node.name for node in model.graph.node if node.name not in quantized]
