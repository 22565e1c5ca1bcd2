"""A small part of CIFAR-10, 24 + 8 images per class, in each layout that training reads."""

import pickle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SAMPLE = Path(__file__).parent / "sample.npz"

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


def read(split: str) -> Arrays:
    """Return the images uint8 `[N,32,32,3]` and labels of `train` or `test`, by class."""
    with np.load(SAMPLE) as archive:
        labels = archive[f"{split}_labels"].astype(np.int64)
        order = labels.argsort(kind="stable")
        return archive[f"{split}_images"][order], labels[order]


def class_names() -> list[str]:
    with np.load(SAMPLE) as archive:
        return [str(name) for name in archive["classes"]]


def write_image_folder(place: Path) -> Path:
    """Write the sample as `{train,test}/<class>/<number>.png`."""
    names = class_names()
    for split in ("train", "test"):
        for number, (image, label) in enumerate(zip(*read(split), strict=True)):
            path = place / split / names[label] / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return place


def binary_records(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> bytes:
    """Return the bytes of a file of CIFAR-10's binary layout."""
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.hstack([labels[:, None].astype(np.uint8), planes]).tobytes()


def pickled_batch(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> bytes:
    """Return the bytes of a file of CIFAR-10's python layout: keys and data as bytes."""
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(len(images), -1))
    content = {b"batch_label": b"sample", b"labels": labels.tolist(), b"data": planes}
    return pickle.dumps(content, protocol=3).replace(b"numpy._core", b"numpy.core")
