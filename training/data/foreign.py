"""Foreign images: pictures that show no class of CIFAR-10, by kind.

Handwritten digits and two photographs come from scikit-learn; textures, printed pages, faces and
the other photographs from scikit-image; noise, plain colours and words are drawn here. All are
32×32 pixels and the same at every call.
"""

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from skimage import data as samples

from app.artifact.tensors import Images

SIDE = 32
IMAGES = 1000
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

Draw = Callable[[np.random.Generator], Iterator[Image.Image]]


@cache
def foreign_images() -> dict[str, Images]:
    """Return uint8 `[N,32,32,3]` by kind."""
    kinds: dict[str, Draw] = {
        "digits": _digits,
        "noise": _noise,
        "colours": _colours,
        "textures": _textures,
        "pages": _pages,
        "words": _words,
        "faces": _faces,
        "photographs": _photographs,
        "microscopy": _microscopy,
    }
    return {
        kind: np.stack([_small(picture) for picture in draw(np.random.default_rng(index))])
        for index, (kind, draw) in enumerate(kinds.items())
    }


def _small(picture: Image.Image) -> NDArray[np.uint8]:
    resized = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def _digits(rng: np.random.Generator) -> Iterator[Image.Image]:
    from sklearn.datasets import load_digits  # a second to import, for exports alone

    digits = load_digits().images  # 0 to 16
    for index in rng.permutation(len(digits))[:IMAGES]:
        yield Image.fromarray(np.rint(digits[index] * (255 / 16)).astype(np.uint8))


def _noise(rng: np.random.Generator) -> Iterator[Image.Image]:
    """Draw uniform and normal noise, of single pixels and of smooth blobs."""
    for index in range(IMAGES):
        side = (4, 8, SIDE)[index % 3]
        even = rng.integers(0, 256, (side, side, 3))
        normal = np.clip(rng.normal(125, 64, (side, side, 3)), 0, 255)
        yield Image.fromarray((even if index % 2 else normal).astype(np.uint8))


def _colours(rng: np.random.Generator) -> Iterator[Image.Image]:
    """Draw one colour, or a blend of several."""
    for index in range(IMAGES):
        corners = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
        yield Image.fromarray(corners if index % 2 else corners[:1, :1])


def _words(rng: np.random.Generator) -> Iterator[Image.Image]:
    for _ in range(IMAGES):
        paper, ink = rng.integers(170, 256, 3), rng.integers(0, 100, 3)
        if rng.random() < 0.5:
            paper, ink = ink, paper
        picture = Image.new("RGB", (SIDE, SIDE), tuple(paper.tolist()))
        font = ImageFont.load_default(int(rng.integers(9, 20)))
        place = int(rng.integers(-2, 6)), int(rng.integers(0, 12))
        text = "".join(rng.choice(list(_LETTERS), 4))
        ImageDraw.Draw(picture).text(place, text, tuple(ink.tolist()), font)
        yield picture


def _faces(_rng: np.random.Generator) -> Iterator[Image.Image]:
    """Yield faces, 25×25 in grey: half of 200 parts of photographs (Labeled Faces in the Wild)."""
    for face in samples.lfw_subset()[:100]:
        yield Image.fromarray(np.rint(face * 255).astype(np.uint8))


def _textures(rng: np.random.Generator) -> Iterator[Image.Image]:
    yield from _cut(rng, [samples.brick(), samples.grass(), samples.gravel()], 64, 256)


def _pages(rng: np.random.Generator) -> Iterator[Image.Image]:
    yield from _cut(rng, [samples.page(), samples.text()], 48, 128)


def _microscopy(rng: np.random.Generator) -> Iterator[Image.Image]:
    pictures = [samples.immunohistochemistry(), samples.cell(), samples.retina()]
    yield from _cut(rng, pictures, 64, 256)


def _photographs(rng: np.random.Generator) -> Iterator[Image.Image]:
    from sklearn.datasets import load_sample_images

    pictures = [
        samples.coffee(),
        samples.rocket(),
        samples.hubble_deep_field(),
        samples.astronaut(),
        samples.coins(),
        *load_sample_images().images,  # a temple and a flower
    ]
    yield from _cut(rng, pictures, 96, 400)


def _cut(
    rng: np.random.Generator, pictures: list[NDArray[np.uint8]], smallest: int, largest: int
) -> Iterator[Image.Image]:
    """Cut random squares of `smallest` to `largest` pixels a side out of pictures."""
    for index in range(IMAGES):
        picture = pictures[index % len(pictures)]
        side = int(rng.integers(smallest, min(largest, *picture.shape[:2]) + 1))
        upper, left = (int(rng.integers(0, whole - side + 1)) for whole in picture.shape[:2])
        yield Image.fromarray(picture[upper : upper + side, left : left + side])
