"""A trained network to an artifact directory that carries its own proof.

Before the directory gets its name, ONNX and TorchScript are run by the
service's own backends and compared with the eager network, on the golden images and on the whole
test split. Training and measuring happen elsewhere.
"""

import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from torch import nn

from app import drawing
from app.backends import BackendName, open_backend
from app.contract import (
    EVALUATION,
    FILTERS,
    GOLDEN,
    HISTORY,
    MANIFEST,
    ONNX_GRAPH,
    TORCHSCRIPT_GRAPH,
    Artifact,
    DataRecord,
    Evaluation,
    Images,
    Manifest,
    Name,
    TensorSpec,
    Version,
    read_artifact,
    record_file,
)
from app.errors import ConvscopeError
from training import data, durable
from training.checkpoint import Checkpoint, history_json
from training.describe import describe
from training.errors import ExportError
from training.evaluate import agreement_on_test, check_source, load_heldout, load_network
from training.graphs import OPSET, ServedNetwork, onnx_graph, torchscript_graph
from training.half_weights import pack_onnx, packed
from training.quantize import add_int8
from training.report import LEARNING_CURVE, draw_learning_curve

GOLDEN_IMAGES = 16
LEAST_AGREEMENT = 0.9999
GOLDEN_TOLERANCE = {"onnx-cpu": 1e-4, "torch-cpu": 1e-4, "torch-cuda": 5e-3}
"""Largest difference of a probability. A GPU multiplies in TF32, whose mantissa has 10 bits."""

PROVEN_BACKENDS: tuple[BackendName, ...] = ("onnx-cpu", "torch-cpu")
CONFUSION_MATRIX_PLOT = "confusion_matrix.png"
FILTERS_PLOT = "filters.png"


@dataclass(frozen=True)
class Export:
    """What an artifact is made of; with `int8`, it holds a second ONNX graph."""

    checkpoint: Checkpoint
    evaluation: Evaluation
    source: data.Source
    name: str
    version: str
    int8: bool = False


def export(what: Export, store: Path) -> Artifact:
    """Write the artifact `<store>/<name>/<version>`.

    Raises:
        ExportError: the place is taken or cannot be written, the name or version is not allowed,
            the exported graphs do not agree with the network, or int8 loses too much accuracy or
            cannot be proven; the store stands as it was.
        DataError: `source` is not the data set that the run was trained on.
    """
    _check_exportable(what, store)
    place = store / what.name / what.version
    state = what.checkpoint.state
    network = load_network(what.checkpoint, what.evaluation.weights)
    served = ServedNetwork(
        network, state.mean, state.deviation, what.evaluation.temperature, what.evaluation.views
    )
    served.eval()
    try:
        with durable.new_directory(place) as folder:
            _write_files(what, served, folder)
            manifest = _manifest(what, folder)
            (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1))
            artifact = Artifact(folder, manifest)
            _prove(artifact, served, what.source)
            if what.int8:
                artifact = add_int8(artifact, what.checkpoint, what.source)
                open_backend(artifact, "onnx-cpu", precision="int8")
    except (OSError, ValueError, RuntimeError, ConvscopeError) as exc:
        raise ExportError(f"{place}: not exported: {exc}") from exc
    return read_artifact(place)


def _check_exportable(what: Export, store: Path) -> None:
    """Raise unless there is something finished to export and a free place for it."""
    try:
        TypeAdapter(Name).validate_python(what.name)
        TypeAdapter(Version).validate_python(what.version)
    except ValidationError as exc:
        raise ExportError(f"{what.name}/{what.version}: {exc.errors()[0]['msg']}") from exc
    place = store / what.name / what.version
    if place.exists():
        raise ExportError(f"{place}: exists already; choose another --version")
    state = what.checkpoint.state
    if state.epoch < state.recipe.epochs:
        raise ExportError(
            f"{what.checkpoint.path}: is epoch {state.epoch} of {state.recipe.epochs}; "
            "finish the run with --resume"
        )
    if what.int8 and state.recipe.holdout == 0:
        raise ExportError(
            f"{what.checkpoint.path}: holdout is 0; without held-out images nothing shows what "
            "int8 costs, so export without --int8"
        )
    check_source(what.checkpoint, what.source)


def next_version(store: Path, name: str) -> str:
    """Return the number after the highest version of a model in the store."""
    versions = [int(path.name) for path in (store / name).glob("*") if path.name.isdecimal()]
    return str(max(versions, default=0) + 1)


def _write_files(what: Export, served: ServedNetwork, folder: Path) -> None:
    images = _golden_images(what)
    half = what.evaluation.weights == "float16"
    graph = onnx_graph(served, images)
    (folder / ONNX_GRAPH).write_bytes(pack_onnx(graph) if half else graph)
    script = torchscript_graph(packed(served) if half else served, images)
    (folder / TORCHSCRIPT_GRAPH).write_bytes(script)
    np.savez_compressed(folder / GOLDEN, images=images, probabilities=served.predict(images))
    filters = first_filters_and_kernels(load_network(what.checkpoint), data.IMAGE_SIZE)
    stored = {layer: kernels.astype(what.evaluation.weights) for layer, kernels in filters.items()}
    np.savez_compressed(folder / FILTERS, allow_pickle=False, **stored)
    _, first = next(iter(filters.items()))
    (folder / FILTERS_PLOT).write_bytes(_filters_plot(first))
    (folder / EVALUATION).write_text(what.evaluation.model_dump_json(indent=1))
    (folder / CONFUSION_MATRIX_PLOT).write_bytes(
        drawing.confusion_matrix(
            np.array(what.evaluation.confusion_matrix), what.evaluation.classes, None
        )
    )
    history = what.checkpoint.state.history
    (folder / HISTORY).write_text(history_json(history))
    draw_learning_curve(history, folder / LEARNING_CURVE)


def first_filters_and_kernels(
    network: nn.Module, image_size: tuple[int, int]
) -> dict[str, NDArray[np.float32]]:
    """Return the weights that can be looked at as pictures, by layer, in network order.

    Every convolution's kernels, `[out,in,height,width]`. Where the first layer is fully
    connected, its weights come first, as one picture of the input's size for each of its units.
    """
    weights: dict[str, NDArray[np.float32]] = {}
    layers = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    for index, (name, module) in enumerate(layers):
        kernels = module.weight.detach()
        if isinstance(module, nn.Conv2d):
            weights[name] = kernels.contiguous().numpy()
        elif index == 0:
            weights[name] = kernels.reshape(len(kernels), 3, *image_size).numpy()
    return weights


def _filters_plot(weights: NDArray[np.float32]) -> bytes:
    """Draw small filters enlarged and in few columns, pictures of the input closer together."""
    scale = max(2, 36 // weights.shape[-1])
    return drawing.filter_grid(weights, scale, columns=8 if len(weights) <= 64 else 16)


def _golden_images(what: Export) -> Images:
    held = load_heldout(what.checkpoint, what.source)
    split = held if len(held) >= GOLDEN_IMAGES else what.source.load_train()
    chosen = torch.linspace(0, len(split) - 1, GOLDEN_IMAGES).long()
    images: Images = split[chosen].images.numpy()
    return images


def _manifest(what: Export, folder: Path) -> Manifest:
    state = what.checkpoint.state
    height, width = data.IMAGE_SIZE
    train, heldout = data.split_holdout(
        what.source.load_train().labels, state.recipe.holdout, state.recipe.split_seed
    )
    description = describe(state.recipe.architecture, len(state.classes))
    outputs = [
        TensorSpec(name=name, dtype="float32", shape=("N", len(state.classes)))
        for name in ("logits", "probabilities")
    ]
    return Manifest(
        schema_version=1,
        name=what.name,
        version=what.version,
        architecture=state.recipe.architecture,
        classes=state.classes,
        input=TensorSpec(name="image", dtype="uint8", shape=("N", height, width, 3)),
        outputs=(outputs[0], outputs[1]),
        opset=OPSET,
        files={path.name: record_file(path) for path in sorted(folder.iterdir())},
        recipe=state.recipe.as_dict(),
        seed=state.recipe.seed,
        data=DataRecord(
            name=state.data_name,
            sha256=state.data_sha256,
            train=len(train),
            heldout=len(heldout),
            test=what.evaluation.images,
        ),
        libraries=state.libraries
        | {name: installed_version(name) for name in ("numpy", "onnx", "onnxruntime")},
        hardware=state.hardware,
        training_seconds=state.training_seconds,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        git_commit=_git_commit(),
        parameters=description.parameters,
        macs=description.macs * what.evaluation.views,
        views=what.evaluation.views,
        weights=what.evaluation.weights,
        test=what.evaluation.test,
        temperature=what.evaluation.temperature,
        golden_tolerance=GOLDEN_TOLERANCE,
    )


def _prove(artifact: Artifact, served: ServedNetwork, source: data.Source) -> None:
    """Raise unless both graphs give the eager network's answers, by the service's backends."""
    artifact.verify()
    threads = torch.get_num_threads()
    backends = {name: open_backend(artifact, name, threads) for name in PROVEN_BACKENDS}
    agreement = agreement_on_test(
        source, served.predict, {name: backend.predict for name, backend in backends.items()}
    )
    for name, part in agreement.items():
        if part < LEAST_AGREEMENT:
            raise ExportError(
                f"{name} gives the network's prediction for {part:.4%} of the test images; "
                f"the limit is {LEAST_AGREEMENT:.2%}"
            )


def _git_commit() -> str:
    """Return the commit of the code that exports, marked where files differ from it."""
    checkout = Path(__file__).parent.parent
    if not (checkout / ".git").exists():
        return "unknown"
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(  # noqa: S603 - a constant command
            command, cwd=checkout, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
