"""Image files to send: real CIFAR-10 pictures and one large photograph.

A payload is a list of requests, each of one or more image files. `bench.serving.servers` wraps them
as each server wants them (raw body, form, JSON). All files are made from `tests/support/sample.npz`
and are the same on every machine with the same Pillow.
"""

import io
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench import ROOT

DISTINCT = 16
"""Most distinct requests of a payload; they are sent in turn."""

USUAL = 32
"""Connections of a closed loop that is measured with one number of connections only."""

IMAGES_A_FORM = 64
PHOTO_SIZE = 4000, 3000
PHOTO_QUALITY = 90

Body = Literal["file", "form", "json"]


@dataclass(frozen=True)
class Payload:
    """One kind of request.

    Attributes:
        name: name in the results.
        title: name in the report.
        requests: image files of each distinct request.
        body: a raw file, or a multipart form or JSON even if a raw body would do.
        exact: whether all servers decode the files to the same pixels, so that probabilities are
            compared, else only labels are.
        connections: connections of a closed loop that is measured with one number only. A large
            photograph takes so long that few of 32 in flight would be answered within a cell.
        lasts: duration of the payload's cell, as a multiple of other cells', for the same reason.
    """

    name: str
    title: str
    requests: tuple[tuple[bytes, ...], ...]
    body: Body = "file"
    exact: bool = True
    connections: int = USUAL
    lasts: int = 1

    @property
    def images(self) -> int:
        """Number of images in one request."""
        return len(self.requests[0])


def pictures(count: int) -> NDArray[np.uint8]:
    """Return real test images, uint8 `[count,32,32,3]`, one class after the other in turn."""
    with np.load(ROOT / "tests" / "support" / "sample.npz") as archive:
        labels = archive["test_labels"]
        images: NDArray[np.uint8] = archive["test_images"]
    in_class = np.empty(len(labels), int)
    for label in np.unique(labels):
        in_class[labels == label] = np.arange((labels == label).sum())
    order = np.lexsort((labels, in_class))
    return images[order[np.arange(count) % len(order)]]


def encode(pixels: NDArray[np.uint8], kind: str, **options: int) -> bytes:
    """Return the image file of pixels, uint8 `[H,W,3]`, in Pillow's format `kind`."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def photo(seed: int) -> bytes:
    """Return a JPEG of 4000x3000 pixels, quality 90, 4:2:0, about 3 MB.

    A CIFAR-10 picture fills the central square, so a model still recognises it at 32x32 pixels; its
    left and right border are repeated outwards. Grain makes the file as hard to decode as a
    camera's.
    """
    width, height = PHOTO_SIZE
    margin = 16 * (width - height) // (2 * height) + 1
    wide = np.pad(pictures(DISTINCT)[seed], ((0, 0), (2 * margin, 2 * margin), (0, 0)), "edge")
    scale = height / 32
    left = 2 * margin - (width - height) / 2 / scale
    box = (left, 0, left + width / scale, 32)
    image = Image.fromarray(wide).resize(PHOTO_SIZE, Image.Resampling.BICUBIC, box=box)
    random = np.random.default_rng(seed)
    grain = random.normal(0, 6, (height, width, 1)).astype(np.float32)
    pixels = np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8)
    return encode(pixels, "JPEG", quality=PHOTO_QUALITY, subsampling=2)


@cache
def payloads() -> dict[str, Payload]:
    """Return every payload by name."""
    pngs = tuple(encode(image, "PNG") for image in pictures(IMAGES_A_FORM))
    jpegs = tuple(encode(image, "JPEG", quality=95) for image in pictures(DISTINCT))
    some = tuple((png,) for png in pngs[:DISTINCT])
    # Each form starts with a different picture.
    forms = tuple(pngs[at:] + pngs[:at] for at in range(0, IMAGES_A_FORM, IMAGES_A_FORM // 4))
    made = (
        Payload("png", "PNG 32x32", some),
        Payload("jpeg", "JPEG 32x32", tuple((jpeg,) for jpeg in jpegs)),
        Payload("form", "PNG in a form", some, body="form"),
        Payload("json", "PNG in JSON", some, body="json"),
        # A worker does not let more images wait than it can serve in a twentieth of a second.
        Payload("form64", "64 PNGs in a form", forms, body="form", connections=4),
        Payload(
            "photo",
            "JPEG 4000x3000",
            ((photo(7),), (photo(9),)),
            exact=False,
            connections=8,
            lasts=2,
        ),
    )
    return {payload.name: payload for payload in made}
