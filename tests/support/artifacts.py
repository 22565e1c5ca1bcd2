"""Small artifacts made without torch, whose answers are plain to predict.

The class is decided by the mean colour: a red image is "red". `numpy_predict` computes the same
probabilities, so that the golden file does not come from the runtime that it checks.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from app.artifact.directory import Artifact, read_artifact, record_file
from app.artifact.files import MANIFEST
from app.artifact.tensors import Images, Probabilities

CLASSES = ("red", "green", "blue", "cyan", "magenta", "yellow")
COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "cyan": (0, 255, 255),
    "magenta": (255, 0, 255),
    "yellow": (255, 255, 0),
}
SHARPNESS = 6.0
INT8_STEP = np.float32(1 / 127)
INT8_WEIGHT_STEP = np.float32(2.5)
COUNTS = (
    (7, 1, 0, 0, 2, 0),
    (0, 9, 0, 1, 0, 0),
    (0, 0, 10, 0, 0, 0),
    (0, 0, 2, 8, 0, 0),
    (1, 0, 0, 0, 9, 0),
    (3, 0, 0, 0, 0, 7),
)


def directions() -> NDArray[np.float32]:
    """Unit vectors from mid-grey to each colour, `[3,classes]`."""
    colours = np.array([COLOURS[name] for name in CLASSES], np.float32) / 255 * 2 - 1
    return np.ascontiguousarray((colours / np.linalg.norm(colours, axis=1, keepdims=True)).T)


def numpy_predict(images: Images) -> Probabilities:
    """Return the graph's probabilities, computed without onnxruntime."""
    mean = images.astype(np.float32).mean(axis=(1, 2)) / 255 * 2 - 1
    logits = mean @ (directions() * SHARPNESS)
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Probabilities = (exp / exp.sum(axis=1, keepdims=True)).astype(np.float32)
    return probabilities


def _int8_weights() -> NDArray[np.int8]:
    """The weights in steps so coarse that the graph's answers are unlike float32's."""
    weights: NDArray[np.int8] = np.rint(directions() * SHARPNESS / INT8_WEIGHT_STEP).astype(np.int8)
    return weights


def numpy_predict_int8(images: Images) -> Probabilities:
    """Return the int8 graph's probabilities, computed without onnxruntime."""
    mean = images.astype(np.float32).mean(axis=(1, 2)) / 255 * 2 - 1
    logits = np.rint(mean / INT8_STEP) * INT8_STEP @ (_int8_weights() * INT8_WEIGHT_STEP)
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Probabilities = (exp / exp.sum(axis=1, keepdims=True)).astype(np.float32)
    return probabilities


def weights() -> dict[str, NDArray[np.float32]]:
    """The weights of the small artifacts' convolutions, by layer."""
    random = np.random.default_rng(0)
    return {
        "conv1": random.normal(size=(8, 3, 3, 3)).astype(np.float32),
        "conv2": random.normal(size=(16, 8, 3, 3)).astype(np.float32),
    }


def write_graph(path: Path, layers: dict[str, NDArray[np.float32]]) -> Artifact:
    """Write the graph of an artifact anew, with layers of other weights to look at."""
    (path / "model.onnx").write_bytes(_graph(layers=layers))
    _write_manifest(path, path.parent.name, path.name, layers=_records(layers))
    return read_artifact(path)


def _graph(*, int8: bool = False, layers: dict[str, NDArray[np.float32]] | None = None) -> bytes:
    """Return a graph; the layers to look at, one after the other, lead to none of its outputs."""
    layers = layers or {}
    constants = [
        numpy_helper.from_array(np.array([2, 3], np.int64), "axes"),
        numpy_helper.from_array(np.array(2 / 255, np.float32), "scale"),
        numpy_helper.from_array(np.array(1, np.float32), "one"),
    ]
    if int8:
        constants += [
            numpy_helper.from_array(np.array(INT8_STEP), "step"),
            numpy_helper.from_array(np.array(0, np.int8), "zero"),
            numpy_helper.from_array(_int8_weights(), "weights"),
            numpy_helper.from_array(np.array(INT8_WEIGHT_STEP), "weights_step"),
        ]
        layer = [
            helper.make_node("QuantizeLinear", ["centred", "step", "zero"], ["bytes"]),
            helper.make_node("DequantizeLinear", ["bytes", "step", "zero"], ["steps"]),
            helper.make_node("DequantizeLinear", ["weights", "weights_step", "zero"], ["whole"]),
            helper.make_node("MatMul", ["steps", "whole"], ["logits"]),
        ]
    else:
        constants += [numpy_helper.from_array(directions() * np.float32(SHARPNESS), "weights")]
        layer = [helper.make_node("MatMul", ["centred", "weights"], ["logits"])]
    constants += [numpy_helper.from_array(layers[name], f"{name}.weight") for name in layers]
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("ReduceMean", ["planes", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "one"], ["centred"]),
        *layer,
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
        *_layer_nodes(layers),
    ]
    graph = helper.make_graph(
        nodes,
        "colour",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 32, 32, 3])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", len(CLASSES)])
            for name in ("logits", "probabilities")
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _layer_nodes(layers: dict[str, NDArray[np.float32]]) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of layers, the first of which sees one pixel of the mean colour."""
    yield helper.make_node("Unsqueeze", ["mean", "axes"], ["pixel"])
    source = "pixel"
    for name, kernels in layers.items():
        output = f"layer.{name}"
        if kernels.ndim == 4:
            pads = 4 * [kernels.shape[-1] // 2]
            yield helper.make_node("Conv", [source, f"{name}.weight"], [output], pads=pads)
        else:
            yield helper.make_node("Flatten", ["planes"], [f"{name}.flat"])
            yield helper.make_node("Gemm", [f"{name}.flat", f"{name}.weight"], [output], transB=1)
        source = output


def solid(label: str) -> Images:
    """One image of a class's colour, `[1,32,32,3]`."""
    return np.full((1, 32, 32, 3), COLOURS[label], np.uint8)


def write_artifact(
    store: Path, name: str, version: str, *, convolutions: bool = True, int8: bool = False
) -> Artifact:
    """Write a sound artifact, with two convolutions to look at or with none."""
    path = store / name / version
    path.mkdir(parents=True)
    layers = weights() if convolutions else {}
    (path / "model.onnx").write_bytes(_graph(layers=layers))
    (path / "model.ts").write_bytes(b"not used on the processor")
    images = np.concatenate([solid(label) for label in CLASSES])
    golden = {"images": images, "probabilities": numpy_predict(images)}
    if int8:
        (path / "model.int8.onnx").write_bytes(_graph(int8=True))
        golden["probabilities_int8"] = numpy_predict_int8(images)
    np.savez(path / "golden.npz", **golden)  # type: ignore[arg-type]
    (path / "evaluation.json").write_text(json.dumps(_evaluation()))
    _write_manifest(path, name, version, layers=_records(layers))
    return read_artifact(path)


def write_older_artifact(store: Path, name: str, version: str) -> Artifact:
    """Write an artifact as they were at first: a file of weights, and no word of layers."""
    path = write_artifact(store, name, version, convolutions=False).path
    np.savez(path / "filters.npz", **weights())  # type: ignore[arg-type]
    rehash(path)
    return read_artifact(path)


def rehash(path: Path, tolerances: dict[str, float] | None = None) -> None:
    """Write the manifest anew, so that a file that was changed agrees with its record."""
    layers = json.loads((path / "manifest.json").read_text())["layers"]
    _write_manifest(path, path.parent.name, path.name, tolerances, layers)


def amend(path: Path, **changes: Any) -> Artifact:
    """Change an artifact's manifest, and record its files as they are now."""
    manifest = json.loads((path / MANIFEST).read_text())
    names = {file.name for file in path.iterdir()} - {MANIFEST}
    files = {name: record_file(path / name).model_dump() for name in sorted(names)}
    (path / MANIFEST).write_text(json.dumps(manifest | {"files": files} | changes))
    return read_artifact(path)


def copy_store(store: Path, target: Path) -> Path:
    """Copy a store, to damage it."""
    return Path(shutil.copytree(store, target))


def confidence(
    lac: tuple[float, ...],
    aps: tuple[float, ...],
    foreign: float,
    class_conditional: tuple[tuple[float, ...], ...] = (),
) -> dict[str, Any]:
    """Return what a manifest says of a graph: thresholds of sets, and of what is foreign."""
    by_class = {"class_conditional": class_conditional} if class_conditional else {}
    return {
        "heldout_images": 1000,
        "conformal": {"lac": lac, "aps": aps, **by_class, "measured": []},
        "out_of_distribution": {
            "threshold": foreign,
            "heldout_false_alarms": 0.05,
            "test_false_alarms": 0.05,
            "auroc": {},
            "detected": {},
        },
    }


def _figures() -> dict[str, float]:
    return {
        "accuracy": 50 / 60,
        "cross_entropy_raw": 0.9,
        "cross_entropy_calibrated": 0.8,
        "ece_raw": 0.1,
        "ece_calibrated": 0.02,
    }


def _evaluation() -> dict[str, Any]:
    return {
        "classes": CLASSES,
        "images": 60,
        "temperature": 1.0,
        "test": _figures(),
        "confusion_matrix": COUNTS,
        "per_class": [
            {"label": label, "precision": 0.8, "recall": 0.7, "f1": 0.75, "support": 10}
            for label in CLASSES
        ],
        "top_confusions": [{"true": "yellow", "predicted": "red", "count": 3}],
        "confident_mistakes": [
            {"index": 3, "true": "yellow", "predicted": "red", "confidence": 0.9}
        ],
    }


def _records(layers: dict[str, NDArray[np.float32]]) -> list[dict[str, Any]]:
    """Return what a manifest says of layers that keep the size of their input."""
    records = []
    for name, kernels in layers.items():
        side = kernels.shape[-1] if kernels.ndim == 4 else 0
        window = {"kernel": side, "stride": 1, "padding": side // 2, "groups": 1}
        records.append(
            {
                "name": name,
                "kind": "Conv2d" if side else "Linear",
                "source": None,
                "shape": [len(kernels), 1, 1] if side else [len(kernels)],
                "parameters": kernels.size,
                "macs": 0,
                "receptive_field": None,
                "effective_stride": 1,
                "effective_padding": 0,
                **({"window": window} if side else {}),
            }
        )
    return records


def _write_manifest(
    path: Path,
    name: str,
    version: str,
    tolerances: dict[str, float] | None = None,
    layers: list[dict[str, Any]] = [],  # noqa: B006 - is not changed
) -> None:
    files = {
        file.name: record_file(file).model_dump()
        for file in sorted(path.iterdir())
        if file.name != "manifest.json"
    }
    output = {"dtype": "float32", "shape": ["N", len(CLASSES)]}
    manifest = {
        "schema_version": 1,
        "name": name,
        "version": version,
        "architecture": "mean-colour",
        "classes": CLASSES,
        "input": {"name": "image", "dtype": "uint8", "shape": ["N", 32, 32, 3]},
        "outputs": [{"name": "logits", **output}, {"name": "probabilities", **output}],
        "opset": 20,
        "files": files,
        "recipe": {"epochs": 0},
        "seed": 0,
        "data": {"name": "colours", "sha256": "0" * 64, "train": 1, "heldout": 0, "test": 60},
        "libraries": {"onnx": onnx.__version__},
        "hardware": "none",
        "training_seconds": 0.0,
        "created": "2026-01-01T00:00:00Z",
        "git_commit": "0" * 40,
        "parameters": 18,
        "macs": 18,
        "layers": layers,
        "test": _figures(),
        "temperature": 1.0,
        "golden_tolerance": tolerances or {"onnx-cpu": 1e-4},
    }
    if "model.int8.onnx" in files:
        manifest["int8"] = {
            "file": "model.int8.onnx",
            "calibration_images": 1,
            "heldout_accuracy_float32": 0.8,
            "heldout_accuracy": 0.8,
            "test_accuracy": 0.82,
            "test_cross_entropy": 0.85,
            "test_ece": 0.03,
            "golden_tolerance": 0.01,
        }
    (path / "manifest.json").write_text(json.dumps(manifest, indent=2))
