"""A small detector: it finds the white rectangle in a picture, once more beside it, and so on.

Its answers are known, so that places and thresholds can be checked to the pixel.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from app.artifact.directory import Artifact, read_artifact, record_file
from app.artifact.tensors import Images

CLASSES = ("cell", "platelet")
CATEGORY_IDS = (3, 7)
HEIGHT, WIDTH = 48, 64
SHIFT = 2
SCORES = (0.9, 0.6, 0.3, 0.0)
LABELS = (0, 0, 1, 0)
"""The rectangle; the same a little further right and down; the same as another class; nothing."""


def numpy_detect(images: Images) -> dict[str, NDArray[Any]]:
    """The graph's answers, computed without onnxruntime."""
    boxes = np.zeros((len(images), 4, 4), np.float32)
    scores = np.zeros((len(images), 4), np.float32)
    for index, image in enumerate(images):
        rows, columns = np.nonzero(image.min(axis=2) > 127)
        if not len(rows):
            left, upper, right, lower = 0, 0, WIDTH, HEIGHT  # as ArgMax has it for zeros
        else:
            left, upper = columns.min(), rows.min()
            right, lower = columns.max() + 1, rows.max() + 1
            scores[index] = SCORES
        box = np.array([left, upper, right, lower], np.float32)
        boxes[index] = np.stack([box, box + SHIFT, box, box])
    labels = np.tile(np.array(LABELS, np.int64), (len(images), 1))
    return {"boxes": boxes, "scores": scores, "labels": labels}


def graph() -> bytes:
    constants: dict[str, NDArray[Any]] = {
        "colour": np.array([3], np.int64),
        "rows": np.array([1], np.int64),
        "columns": np.array([2], np.int64),
        "both": np.array([1, 2], np.int64),
        "half": np.array(127.5, np.float32),
        "one": np.array(1, np.int64),
        "shifts": np.array([[[0], [SHIFT], [0], [0]]], np.float32).repeat(4, axis=2),
        "odds": np.array([SCORES], np.float32),
        "kinds": np.array([LABELS], np.int64),
        "four": np.array([4], np.int64),
        "batch_at": np.array([0], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMin", ["floats", "colour"], ["darkest"], keepdims=0),
        helper.make_node("Greater", ["darkest", "half"], ["is_white"]),
        helper.make_node("Cast", ["is_white"], ["white"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["white", "rows"], ["across"], keepdims=0),
        helper.make_node("ReduceMax", ["white", "columns"], ["down"], keepdims=0),
        helper.make_node("ReduceMax", ["white", "both"], ["any"], keepdims=0),
    ]
    for axis, first, last in (("across", "left", "right"), ("down", "upper", "lower")):
        nodes += [
            helper.make_node("ArgMax", [axis], [first], axis=1, keepdims=1),
            helper.make_node(
                "ArgMax", [axis], [f"{last}_in"], axis=1, keepdims=1, select_last_index=1
            ),
            helper.make_node("Add", [f"{last}_in", "one"], [last]),
        ]
    nodes += [
        helper.make_node("Concat", ["left", "upper", "right", "lower"], ["edges"], axis=1),
        helper.make_node("Cast", ["edges"], ["edge_floats"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["edge_floats", "rows"], ["box"]),
        helper.make_node("Add", ["box", "shifts"], ["boxes"]),
        helper.make_node("Unsqueeze", ["any", "rows"], ["any_column"]),
        helper.make_node("Mul", ["any_column", "odds"], ["scores"]),
        helper.make_node("Shape", ["image"], ["shape"]),
        helper.make_node("Gather", ["shape", "batch_at"], ["batch"]),
        helper.make_node("Concat", ["batch", "four"], ["table"], axis=0),
        helper.make_node("Expand", ["kinds", "table"], ["labels"]),
    ]
    outputs = [
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["N", 4, 4]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 4]),
        helper.make_tensor_value_info("labels", TensorProto.INT64, ["N", 4]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", HEIGHT, WIDTH, 3])
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "white",
            [image],
            outputs,
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def golden_images() -> Images:
    images = np.zeros((3, HEIGHT, WIDTH, 3), np.uint8)
    images[0, 10:20, 5:25] = 255
    images[1, 0:30, 40:64] = 255
    return images


def write_detector(
    store: Path, name: str = "finder", version: str = "1", **changes: Any
) -> Artifact:
    """Write a sound artifact of a detector."""
    path = store / name / version
    path.mkdir(parents=True)
    (path / "model.onnx").write_bytes(graph())
    (path / "model.ts").write_bytes(b"not used on the processor")
    golden: dict[str, Any] = {"images": golden_images(), **numpy_detect(golden_images())}
    np.savez(path / "golden.npz", **golden)
    (path / "evaluation.json").write_text(json.dumps(evaluation()))
    files = {file.name: record_file(file).model_dump() for file in sorted(path.iterdir())}
    manifest = {
        "schema_version": 1,
        "task": "detection",
        "name": name,
        "version": version,
        "architecture": "white-rectangle",
        "classes": CLASSES,
        "category_ids": CATEGORY_IDS,
        "input": {"name": "image", "dtype": "uint8", "shape": ["N", HEIGHT, WIDTH, 3]},
        "resize": {"policy": "letterbox", "interpolation": "bilinear", "fill": [0, 0, 0]},
        "outputs": [
            {"name": "boxes", "dtype": "float32", "shape": ["N", 4, 4]},
            {"name": "scores", "dtype": "float32", "shape": ["N", 4]},
            {"name": "labels", "dtype": "int64", "shape": ["N", 4]},
        ],
        "opset": 20,
        "files": files,
        "recipe": {"epochs": 0},
        "seed": 0,
        "data": {"name": "white", "sha256": "0" * 64, "train": 1, "heldout": 0, "test": 20},
        "libraries": {"onnx": onnx.__version__},
        "hardware": "none",
        "training_seconds": 0.0,
        "created": "2026-01-01T00:00:00Z",
        "git_commit": "0" * 40,
        "parameters": 0,
        "macs": 1000,
        "suppression": {"iou": 0.95, "least_score": 0.01},
        "score_threshold": 0.25,
        "test": evaluation()["test"],
        "golden_tolerance": {"onnx-cpu": 1e-4},
    }
    (path / "manifest.json").write_text(json.dumps(manifest | changes, indent=2))
    return read_artifact(path)


def evaluation() -> dict[str, Any]:
    curve = np.linspace(1, 0.5, 101).tolist()
    return {
        "task": "detection",
        "classes": CLASSES,
        "images": 20,
        "objects": 60,
        "test": {"map": 0.6, "map50": 0.9, "ece_raw": 0.1, "ece_calibrated": 0.02},
        "score_threshold": 0.25,
        "per_class": [
            {"label": "cell", "ap": 0.7, "ap50": 0.95, "objects": 40, "precision": curve},
            {"label": "platelet", "ap": 0.5, "ap50": 0.85, "objects": 20, "precision": curve},
        ],
        "confusion_matrix": [[36, 1, 3], [2, 16, 2], [5, 4, 0]],
    }
