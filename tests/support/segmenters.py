"""A small segmenter: the class of a pixel is its red or green, the depth its blue.

Its answers are known, so that masks can be checked to the pixel.
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
SURE, UNSURE = 0.9, 0.05
"""The probability of a pixel's class, and that of each other one."""

INSTANCES = {"least_probability": 0.5, "seed_depth": 0.5, "least_area": 4}


def numpy_segment(images: Images, *, depth: bool = True) -> dict[str, NDArray[Any]]:
    """The graph's answers, computed without onnxruntime."""
    red, green = images[..., 0] > 127, images[..., 1] > 127
    kinds = np.stack([~red & ~green, red, green & ~red], axis=1)
    answers = {"probabilities": np.where(kinds, SURE, UNSURE).astype(np.float32)}
    if depth:
        answers["depth"] = (images[..., 2] / 255).astype(np.float32)
    return answers


def graph(*, depth: bool = True) -> bytes:
    constants: dict[str, NDArray[Any]] = {
        "half": np.array(127.5, np.float32),
        "full": np.array(255, np.float32),
        "last": np.array([3], np.int64),
        "second": np.array([1], np.int64),
        "range": np.array(SURE - UNSURE, np.float32),
        "least": np.array(UNSURE, np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Split", ["floats"], ["red", "green", "blue"], axis=3, num_outputs=3),
        helper.make_node("Greater", ["red", "half"], ["is_red"]),
        helper.make_node("Greater", ["green", "half"], ["is_green"]),
        helper.make_node("Not", ["is_red"], ["no_red"]),
        helper.make_node("And", ["is_green", "no_red"], ["is_second"]),
        helper.make_node("Or", ["is_red", "is_green"], ["is_any"]),
        helper.make_node("Not", ["is_any"], ["is_ground"]),
        helper.make_node("Concat", ["is_ground", "is_red", "is_second"], ["kinds"], axis=3),
        helper.make_node("Cast", ["kinds"], ["ones"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["ones", "range"], ["higher"]),
        helper.make_node("Add", ["higher", "least"], ["last_channels"]),
        helper.make_node("Transpose", ["last_channels"], ["probabilities"], perm=[0, 3, 1, 2]),
    ]
    shapes: dict[str, list[str | int | None]] = {
        "probabilities": ["N", len(CLASSES) + 1, HEIGHT, WIDTH]
    }
    if depth:
        nodes += [
            helper.make_node("Squeeze", ["blue", "last"], ["blue_map"]),
            helper.make_node("Div", ["blue_map", "full"], ["depth"]),
        ]
        shapes["depth"] = ["N", HEIGHT, WIDTH]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", HEIGHT, WIDTH, 3])
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "colours",
            [image],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                for name, shape in shapes.items()
            ],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def golden_images() -> Images:
    images = np.zeros((3, HEIGHT, WIDTH, 3), np.uint8)
    images[0, 10:20, 5:25] = (255, 0, 200)
    images[1, 0:30, 40:64] = (0, 255, 90)
    return images


def write_segmenter(
    store: Path,
    name: str = "cells",
    version: str = "1",
    *,
    depth: bool = True,
    policy: str = "letterbox",
    **changes: Any,
) -> Artifact:
    """Write a sound artifact of a segmenter; with `depth`, of one that tells objects apart."""
    path = store / name / version
    path.mkdir(parents=True)
    (path / "model.onnx").write_bytes(graph(depth=depth))
    (path / "model.ts").write_bytes(b"not used on the processor")
    golden: dict[str, Any] = {
        "images": golden_images(),
        **numpy_segment(golden_images(), depth=depth),
    }
    np.savez(path / "golden.npz", **golden)
    (path / "evaluation.json").write_text(json.dumps(evaluation(depth=depth)))
    files = {file.name: record_file(file).model_dump() for file in sorted(path.iterdir())}
    outputs = [
        {
            "name": "probabilities",
            "dtype": "float32",
            "shape": ["N", len(CLASSES) + 1, HEIGHT, WIDTH],
        }
    ]
    more: dict[str, Any] = {}
    if depth:
        outputs.append({"name": "depth", "dtype": "float32", "shape": ["N", HEIGHT, WIDTH]})
        more["instances"] = INSTANCES
    manifest = {
        "schema_version": 1,
        "task": "segmentation",
        "name": name,
        "version": version,
        "architecture": "colours",
        "classes": CLASSES,
        "category_ids": CATEGORY_IDS,
        "input": {"name": "image", "dtype": "uint8", "shape": ["N", HEIGHT, WIDTH, 3]},
        "resize": {"policy": policy, "interpolation": "bilinear", "fill": [0, 0, 0]},
        "outputs": outputs,
        "opset": 20,
        "files": files,
        "recipe": {"epochs": 0},
        "seed": 0,
        "data": {"name": "colours", "sha256": "0" * 64, "train": 1, "heldout": 0, "test": 20},
        "libraries": {"onnx": onnx.__version__},
        "hardware": "none",
        "training_seconds": 0.0,
        "created": "2026-01-01T00:00:00Z",
        "git_commit": "0" * 40,
        "parameters": 0,
        "macs": 1000,
        "test": evaluation(depth=depth)["test"],
        "golden_tolerance": {"onnx-cpu": 1e-4},
    }
    (path / "manifest.json").write_text(json.dumps(manifest | more | changes, indent=2))
    return read_artifact(path)


def evaluation(*, depth: bool = True) -> dict[str, Any]:
    found = {"instance_f1": 0.75} if depth else {}
    figures = {"iou": 0.8, "boundary_f1": 0.7, "ece_raw": 0.05, "ece_calibrated": 0.01}
    return {
        "task": "segmentation",
        "classes": CLASSES,
        "images": 20,
        "objects": 60,
        "test": figures | found,
        "per_class": [
            {"label": "cell", "iou": 0.9, "boundary_f1": 0.8, "objects": 40} | found,
            {"label": "platelet", "iou": 0.7, "boundary_f1": 0.6, "objects": 20} | found,
        ],
        "confusion_matrix": [[3600, 100, 300], [200, 1600, 200], [500, 400, 90_000]],
    }
