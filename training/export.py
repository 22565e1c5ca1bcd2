"""A trained network to an artifact directory that carries its own proof.

The graph takes pixels as they are decoded: cast, scaling, mean and deviation, layout, temperature
and softmax are inside it. Before the directory gets its name, ONNX and TorchScript are run by the
service's own backends and compared with the eager network, on the golden images and on the whole
test split. Training and measuring happen elsewhere.
"""

import io
import logging
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from app import drawing
from app.backends import BackendName, open_backend
from app.contract import (
    EVALUATION,
    FILTERS,
    GOLDEN,
    MANIFEST,
    ONNX_GRAPH,
    TORCHSCRIPT_GRAPH,
    Artifact,
    DataRecord,
    Evaluation,
    Images,
    Manifest,
    Probabilities,
    TensorSpec,
    read_artifact,
    record_file,
)
from app.errors import ArtifactError
from training import checkpoint, data, durable
from training.checkpoint import Checkpoint
from training.describe import describe
from training.errors import ExportError
from training.evaluate import check_source, load_heldout, load_network, test_agreement
from training.report import LEARNING_CURVE

OPSET = 20
GOLDEN_IMAGES = 16
LEAST_AGREEMENT = 0.9999
GOLDEN_TOLERANCE = {"onnx-cpu": 1e-4, "torch-cpu": 1e-4, "torch-cuda": 5e-3}
"""Largest difference of a probability. A GPU multiplies in TF32, whose mantissa has 10 bits."""

PROVEN_BACKENDS: tuple[BackendName, ...] = ("onnx-cpu", "torch-cpu")
CONFUSION_MATRIX_PLOT = "confusion_matrix.png"
FILTERS_PLOT = "filters.png"


class ServedNetwork(nn.Module):
    """A network as it is served: uint8 `[N,H,W,3]` to calibrated logits and probabilities.

    Both outputs are float32 `[N,classes]`; the logits are divided by the temperature, so their
    softmax is the probabilities.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, network: nn.Module, mean: list[float], deviation: list[float], temperature: float
    ) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature
        self.register_buffer("scale", 1 / (255 * torch.tensor(deviation)))
        self.register_buffer("shift", torch.tensor(mean) / torch.tensor(deviation))

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


@dataclass(frozen=True)
class Export:
    """What an artifact is made of."""

    checkpoint: Checkpoint
    evaluation: Evaluation
    source: data.Source
    name: str
    version: str


def export(what: Export, store: Path) -> Artifact:
    """Write the artifact `<store>/<name>/<version>`.

    Raises:
        ExportError: the place is taken or cannot be written, the name or version is not allowed,
            or the exported graphs do not agree with the network; the store stands as it was.
        DataError: `source` is not the data set that the run was trained on.
    """
    place = store / what.name / what.version
    if place.exists():
        raise ExportError(f"{place}: exists already; choose another --version")
    check_source(what.checkpoint, what.source)
    state = what.checkpoint.state
    network = load_network(what.checkpoint)
    served = ServedNetwork(network, state.mean, state.deviation, what.evaluation.temperature)
    served.eval()
    try:
        with durable.new_directory(place) as folder:
            _write_files(what, network, served, folder)
            manifest = _manifest(what, folder)
            (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1))
            _prove(Artifact(folder, manifest), served, what.source)
    except (OSError, ValueError, ArtifactError) as exc:
        raise ExportError(f"{place}: not exported: {exc}") from exc
    return read_artifact(place)


def next_version(store: Path, name: str) -> str:
    """Return the number after the highest version of a model in the store."""
    versions = [int(path.name) for path in (store / name).glob("*") if path.name.isdecimal()]
    return str(max(versions, default=0) + 1)


def _write_files(what: Export, network: nn.Module, served: ServedNetwork, folder: Path) -> None:
    images = _golden_images(what)
    (folder / ONNX_GRAPH).write_bytes(_onnx_graph(served, images))
    (folder / TORCHSCRIPT_GRAPH).write_bytes(_torchscript_graph(served, images))
    np.savez_compressed(folder / GOLDEN, images=images, probabilities=served.predict(images))
    weights = first_filters_and_kernels(network, data.IMAGE_SIZE)
    np.savez_compressed(folder / FILTERS, allow_pickle=False, **weights)
    _, first = next(iter(weights.items()))
    (folder / FILTERS_PLOT).write_bytes(_filters_plot(first))
    (folder / EVALUATION).write_text(what.evaluation.model_dump_json(indent=1))
    (folder / CONFUSION_MATRIX_PLOT).write_bytes(
        drawing.confusion_matrix(
            np.array(what.evaluation.confusion_matrix), what.evaluation.classes, None
        )
    )
    run = what.checkpoint.path.parent
    for name in (checkpoint.HISTORY, LEARNING_CURVE):
        shutil.copyfile(run / name, folder / name)


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


def _onnx_graph(served: ServedNetwork, images: Images) -> bytes:
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


def _torchscript_graph(served: ServedNetwork, images: Images) -> bytes:
    buffer = io.BytesIO()
    with _quiet_exporters(), torch.no_grad():
        traced = torch.jit.trace(served, torch.from_numpy(images), check_trace=False)
        torch.jit.save(torch.jit.freeze(traced), buffer)
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
        macs=description.macs,
        test=what.evaluation.test,
        temperature=what.evaluation.temperature,
        golden_tolerance=GOLDEN_TOLERANCE,
    )


def _prove(artifact: Artifact, served: ServedNetwork, source: data.Source) -> None:
    """Raise unless both graphs give the eager network's answers, by the service's backends."""
    artifact.verify()
    threads = torch.get_num_threads()
    backends = {name: open_backend(artifact, name, threads) for name in PROVEN_BACKENDS}
    agreement = test_agreement(
        source, served.predict, {name: backend.predict for name, backend in backends.items()}
    )
    for name, part in agreement.items():
        if part < LEAST_AGREEMENT:
            raise ExportError(
                f"{name} gives the network's prediction for {part:.4%} of the test images; "
                f"the limit is {LEAST_AGREEMENT:.2%}"
            )


def _git_commit() -> str:
    try:
        done: subprocess.CompletedProcess[Any] = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607 - git is where the user has it
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return str(done.stdout).strip()
