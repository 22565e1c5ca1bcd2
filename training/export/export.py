"""Export of a trained network to an artifact directory that carries its own proof.

Before the directory gets its name, the service's backends run the ONNX and TorchScript graphs on
the golden images and on the whole test split. Their answers are compared with the eager network's.
Training and measuring happen elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from app.artifact.directory import Artifact, first_error, read_artifact, record_file, rewritten
from app.artifact.files import (
    EVALUATION,
    EXAMPLES,
    GOLDEN,
    HISTORY,
    LAYER_OUTPUTS,
    LAYERS,
    ONNX_GRAPH,
    RESPONSES,
    TORCHSCRIPT_GRAPH,
)
from app.artifact.golden import pack_golden
from app.artifact.manifest import (
    BackendName,
    ClassifierManifest,
    DataRecord,
    Evaluation,
    Name,
    Precision,
    TensorSpec,
    Version,
)
from app.artifact.tensors import Images
from app.errors import ConvscopeError
from app.explore.confusion_matrix import draw_matrix
from app.explore.filters import filter_grid
from app.inference.backends import open_backend, open_layers
from training.architectures.describe import describe
from training.data import dataset
from training.data.foreign import foreign_images
from training.data.scenes import SceneSource
from training.errors import ExportError
from training.evaluate import (
    Answered,
    answer,
    answer_test,
    check_source,
    load_heldout,
    load_network,
    load_splits,
)
from training.export.confidence import OOD_TRAINING_IMAGES, fit_ood_score, measure_confidence
from training.export.examples import examples
from training.export.graphs import OPSET, ServedNetwork, onnx_graph, torchscript_graph
from training.export.half_weights import pack_onnx, packed
from training.export.inside import (
    biases_and_classifier,
    first_filters_and_kernels,
    strongest_patches,
)
from training.export.quantize import add_int8, choose_training_images
from training.export.shared_weights import share_weights
from training.recipes import Recipe
from training.report import LEARNING_CURVE, draw_learning_curve
from training.run import durable
from training.run.checkpoint import Checkpoint, history_json
from training.run.commit import find_commit
from training.run.scene_lessons import split
from training.run.sources import Source

GOLDEN_IMAGES = 16
LEAST_AGREEMENT = 0.9999
GOLDEN_TOLERANCE = {"onnx-cpu": 1e-4, "torch-cpu": 1e-4, "torch-cuda": 5e-3}
"""Largest difference of a probability. A GPU multiplies in TF32, with a mantissa of 10 bits."""

PROVEN_BACKENDS: tuple[BackendName, ...] = ("onnx-cpu", "torch-cpu")
CONFUSION_MATRIX_PLOT = "confusion_matrix.png"
FILTERS_PLOT = "filters.png"


@dataclass(frozen=True)
class Export:
    """The parts of an artifact. With `int8`, it has a second ONNX graph."""

    checkpoint: Checkpoint
    evaluation: Evaluation
    source: dataset.Source
    name: str
    version: str
    int8: bool = False


def tell_nobody(_: str) -> None:
    """Take a stage of an export, and print nothing."""


def export(what: Export, store: Path, tell: Callable[[str], None] = tell_nobody) -> Artifact:
    """Write the artifact `<store>/<name>/<version>`.

    Args:
        what: its parts.
        store: the folder of the artifacts.
        tell: is called with each stage when it begins.

    Raises:
        ExportError: the version exists or cannot be written, the name or version is not allowed,
            the exported graphs do not agree with the network, or int8 loses too much accuracy or
            cannot be proven. The store is left as it was.
        DataError: `source` is not the data set that the run was trained on.
    """
    check_exportable(what.checkpoint, what.source, store, what.name, what.version, int8=what.int8)
    place = store / what.name / what.version
    heldout = load_heldout(what.checkpoint, what.source)
    try:
        tell("writing the graphs")
        served = _served(what, heldout)
        with durable.new_directory(place) as folder:
            answered = answer_test(served.predict, what.source)
            _write_files(what, served, answered, folder)
            manifest = _manifest(what, served, folder)
            artifact = rewritten(Artifact(folder, manifest))
            tell("checking the graphs on the test images")
            served_test = _prove(artifact, served, answered, what.source)
            artifact = _with_confidence(artifact, heldout, served_test, "float32")
            if what.int8:
                tell("adding the int8 graph")
                artifact, served_test = add_int8(artifact, what.checkpoint, what.source)
                artifact = _with_confidence(artifact, heldout, served_test, "int8")
    except (OSError, ValueError, RuntimeError, ConvscopeError) as exc:
        raise ExportError(f"{place}: not exported: {exc}") from exc
    return read_artifact(place)


def check_exportable(
    checkpoint: Checkpoint,
    source: Source,
    store: Path,
    name: str,
    version: str,
    *,
    int8: bool,
) -> None:
    """Raise unless the run is finished and the name and version are free.

    Raises:
        ExportError: the name or version is not allowed or exists, the run is not finished, or no
            held-out images can prove an int8 graph.
        DataError: `source` is not the data set that the run was trained on.
    """
    try:
        TypeAdapter(Name).validate_python(name)
        TypeAdapter(Version).validate_python(version)
    except ValidationError as exc:
        raise ExportError(f"{name}/{version}: {first_error(exc)}") from exc
    place = store / name / version
    if place.exists():
        raise ExportError(f"{place}: exists already; choose another --version")
    state = checkpoint.state
    if state.epoch < state.recipe.epochs:
        raise ExportError(
            f"{checkpoint.path}: is epoch {state.epoch} of {state.recipe.epochs}; "
            "finish the run with --resume"
        )
    check_source(checkpoint, source)
    if int8 and not _holds_out(state.recipe, source):
        raise ExportError(
            f"{checkpoint.path}: holdout is {state.recipe.holdout:g} and holds out nothing; "
            "without held-out images nothing shows the loss of accuracy by int8, so export without "
            "--int8"
        )


def _holds_out(recipe: Recipe, source: Source) -> bool:
    if isinstance(source, SceneSource):
        return bool(split(recipe, source)[1])
    return recipe.holdout > 0


def _served(what: Export, heldout: dataset.Split) -> ServedNetwork:
    """Return the network as it is served, with a score that held-out images have calibrated."""
    state, evaluation = what.checkpoint.state, what.evaluation
    network = load_network(what.checkpoint, weights=evaluation.weights)
    parts = network, state.mean, state.deviation, evaluation.temperature, evaluation.views
    served = ServedNetwork(*parts).eval()
    if len(heldout) == 0:
        return served
    learned = choose_training_images(what.checkpoint, what.source, OOD_TRAINING_IMAGES)
    score = fit_ood_score(served, learned.images.numpy(), heldout.images.numpy())
    return ServedNetwork(*parts, score).eval()


def next_version(store: Path, name: str) -> str:
    """Return the number after the highest version of a model in the store."""
    versions = [int(path.name) for path in (store / name).glob("*") if path.name.isdecimal()]
    return str(max(versions, default=0) + 1)


def _write_files(what: Export, served: ServedNetwork, answered: Answered, folder: Path) -> None:
    _write_graphs(what, served, folder)
    _write_inside(what, served, answered, folder)
    probabilities = answered.outputs.probabilities
    shown = examples(answered.images, answered.labels, probabilities)
    np.savez_compressed(folder / EXAMPLES, allow_pickle=False, **shown)
    durable.write_text(folder / EVALUATION, what.evaluation.model_dump_json(indent=1))
    (folder / CONFUSION_MATRIX_PLOT).write_bytes(
        draw_matrix(np.array(what.evaluation.confusion_matrix), what.evaluation.classes, None)
    )
    history = what.checkpoint.state.history
    durable.write_text(folder / HISTORY, history_json(history))
    draw_learning_curve(history, folder / LEARNING_CURVE)


def _write_graphs(what: Export, served: ServedNetwork, folder: Path) -> None:
    images = _golden_images(what)
    half = what.evaluation.weights == "float16"
    graph, layer_outputs = onnx_graph(served, images)
    script = torchscript_graph(packed(served) if half else served, images)
    (folder / TORCHSCRIPT_GRAPH).write_bytes(script)
    graph = share_weights(pack_onnx(graph) if half else graph, TORCHSCRIPT_GRAPH, script)
    (folder / ONNX_GRAPH).write_bytes(graph)
    golden = pack_golden(images, {"float32": served.predict(images)})
    np.savez_compressed(folder / GOLDEN, allow_pickle=False, **golden)
    weights = biases_and_classifier(served.plain, served.layers)
    appended = {LAYER_OUTPUTS: np.frombuffer(layer_outputs, np.uint8)}
    np.savez_compressed(folder / LAYERS, allow_pickle=False, **appended, **weights)


def _write_inside(what: Export, served: ServedNetwork, answered: Answered, folder: Path) -> None:
    first = next(iter(first_filters_and_kernels(served.plain, dataset.IMAGE_SIZE).values()))
    (folder / FILTERS_PLOT).write_bytes(_filters_plot(first))
    state = what.checkpoint.state
    strongest = strongest_patches(
        served.plain, served.layers, answered.images, state.mean, state.deviation
    )
    np.savez_compressed(folder / RESPONSES, allow_pickle=False, **strongest)


def _filters_plot(weights: NDArray[np.float32]) -> bytes:
    """Draw filters: small ones enlarged and in few columns, image-sized ones closer together."""
    scale = max(2, 36 // weights.shape[-1])
    return filter_grid(weights, scale, columns=8 if len(weights) <= 64 else 16)


def _golden_images(what: Export) -> Images:
    train, heldout = load_splits(what.checkpoint, what.source)
    split = heldout if len(heldout) >= GOLDEN_IMAGES else train
    chosen = torch.linspace(0, len(split) - 1, GOLDEN_IMAGES).long()
    images: Images = split[chosen].images.numpy()
    return images


def _manifest(what: Export, served: ServedNetwork, folder: Path) -> ClassifierManifest:
    train, heldout = load_splits(what.checkpoint, what.source)
    sizes = len(train), len(heldout), what.evaluation.images
    state = what.checkpoint.state
    description = describe(state.recipe.architecture, len(state.classes))
    return ClassifierManifest(
        **common_record(what.checkpoint, what.name, what.version, folder, sizes),
        input=input_spec(dataset.IMAGE_SIZE),
        outputs=_outputs(served),
        parameters=description.parameters,
        macs=description.macs * what.evaluation.views,
        views=what.evaluation.views,
        weights=what.evaluation.weights,
        layers=served.layers,
        test=what.evaluation.test,
        temperature=what.evaluation.temperature,
    )


def common_record(
    checkpoint: Checkpoint, name: str, version: str, folder: Path, sizes: tuple[int, int, int]
) -> dict[str, Any]:
    """Return the fields that the manifests of all tasks take from the run and from the machine.

    Args:
        checkpoint: of the run.
        name: of the model.
        version: likewise.
        folder: holds the model's files.
        sizes: number of images to train on, held out and to test with.
    """
    state = checkpoint.state
    train, heldout, test = sizes
    return {
        "schema_version": 1,
        "name": name,
        "version": version,
        "architecture": state.recipe.architecture,
        "classes": state.classes,
        "opset": OPSET,
        "files": {path.name: record_file(path) for path in sorted(folder.iterdir())},
        "recipe": state.recipe.model_dump(),
        "seed": state.recipe.seed,
        "lineage": state.lineage,
        "data": DataRecord(
            name=state.data_name,
            sha256=state.data_sha256,
            train=train,
            heldout=heldout,
            test=test,
        ),
        "libraries": state.libraries
        | {name: installed_version(name) for name in ("numpy", "onnx", "onnxruntime")},
        "hardware": state.hardware,
        "training_seconds": state.training_seconds,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "golden_tolerance": GOLDEN_TOLERANCE,
    }


def input_spec(size: tuple[int, int]) -> TensorSpec:
    """Return the record of a graph's input of a height and width."""
    return TensorSpec(name="image", dtype="uint8", shape=("N", *size, 3))


def _outputs(served: ServedNetwork) -> tuple[TensorSpec, ...]:
    """Return the graphs' outputs, found by running the network on one image."""
    values = served(torch.zeros(1, *dataset.IMAGE_SIZE, 3, dtype=torch.uint8))
    return tuple(
        TensorSpec(name=name, dtype="float32", shape=("N", *value.shape[1:]))
        for name, value in zip(served.output_names, values, strict=True)
    )


def _prove(
    artifact: Artifact, served: ServedNetwork, answered: Answered, source: dataset.Source
) -> Answered:
    """Raise unless the service's backends give the eager network's answers with both graphs.

    The weights that the service reads out of the graph must be the network's as well.

    Returns:
        The ONNX graph's answers for the test split.
    """
    artifact.verify()
    expected = first_filters_and_kernels(served.plain, dataset.IMAGE_SIZE)
    read = artifact.filters()
    if list(read) != list(expected):
        raise ExportError(
            f"weights of {list(read)} are read out of the graph; they must be {list(expected)}"
        )
    for layer, weights in expected.items():
        if not np.array_equal(read[layer], weights):
            raise ExportError(f"{layer}: other weights are read out of the graph")
    threads = torch.get_num_threads()
    found = {}
    for name in PROVEN_BACKENDS:
        found[name] = answer_test(open_backend(artifact, name, threads).predict, source)
        same = found[name].predicted == answered.predicted
        if same.mean() < LEAST_AGREEMENT:
            raise ExportError(
                f"{name} gives the network's prediction for {same.mean():.4%} of the test images; "
                f"the limit is {LEAST_AGREEMENT:.2%}"
            )
    open_layers(artifact)
    return found["onnx-cpu"]


def _with_confidence(
    artifact: Artifact, heldout: dataset.Split, test: Answered, precision: Precision
) -> Artifact:
    """Add one graph's thresholds and their figures, if images were held out to fit them."""
    if len(heldout) == 0:
        return artifact
    backend = open_backend(artifact, "onnx-cpu", torch.get_num_threads(), precision)
    known = answer(backend.predict, heldout)
    found = measure_confidence(known, test, foreign_images(), backend.predict)
    confidence = artifact.classifier.confidence | {precision: found}
    manifest = artifact.manifest.model_copy(update={"confidence": confidence})
    return rewritten(Artifact(artifact.path, manifest))


def git_commit() -> str:
    """Return the commit of this code, marked if tracked files differ from it."""
    commit = find_commit()
    if commit is None:
        return "unknown"
    return f"{commit.sha}-dirty" if commit.changed else commit.sha
