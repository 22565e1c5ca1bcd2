import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from app.artifact.tensors import Images
from training.data.foreign import foreign_images

KINDS = {
    "digits",
    "noise",
    "colours",
    "textures",
    "pages",
    "words",
    "faces",
    "photographs",
    "microscopy",
}
WITHOUT_NETWORK = """
import hashlib, socket

def refuse(*_args, **_more):
    raise OSError("nothing may be downloaded")

socket.socket.connect = refuse
socket.getaddrinfo = refuse
from training.data.foreign import foreign_images
for kind, images in foreign_images().items():
    print(kind, hashlib.sha256(images.tobytes()).hexdigest())
"""


@pytest.fixture(scope="module")
def foreign() -> dict[str, Images]:
    return foreign_images()


def test_every_kind_has_many_different_images_of_the_size_that_networks_take(
    foreign: dict[str, Images],
) -> None:
    assert foreign.keys() == KINDS
    for kind, images in foreign.items():
        assert images.dtype == np.uint8
        assert images.shape == (100 if kind == "faces" else 1000, 32, 32, 3)
        assert len({image.tobytes() for image in images}) > 0.95 * len(images), kind


@pytest.mark.slow
def test_another_process_draws_the_same_images_without_a_network(
    foreign: dict[str, Images], tmp_path: Path
) -> None:
    places = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PYTHONHASHSEED": "3"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NETWORK],
        env=os.environ | places,
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    expected = {kind: hashlib.sha256(images.tobytes()) for kind, images in foreign.items()}
    found = dict(line.split() for line in done.stdout.splitlines())
    assert found == {kind: digest.hexdigest() for kind, digest in expected.items()}, done.stderr


def test_digits_and_faces_are_grey_and_other_kinds_are_not(foreign: dict[str, Images]) -> None:
    grey = {kind for kind, images in foreign.items() if (images == images[..., :1]).all(axis=None)}
    assert {"digits", "faces"} <= grey
    assert not grey & {"noise", "colours", "words", "photographs", "microscopy"}


def test_digits_are_bright_on_black(foreign: dict[str, Images]) -> None:
    digits = foreign["digits"]
    assert digits[:, :, 0].mean() < 40
    assert (digits.max(axis=(1, 2, 3)) > 200).all()


def test_half_of_the_colours_are_one_colour_and_half_a_smooth_blend(
    foreign: dict[str, Images],
) -> None:
    spread = foreign["colours"].std(axis=(1, 2)).max(axis=1)
    assert (spread[::2] == 0).all()
    assert (spread[1::2] > 0).mean() > 0.99
    steps = np.abs(np.diff(foreign["colours"].astype(int), axis=1))
    assert steps.max() < 30


def test_a_third_of_the_noise_is_of_single_pixels(foreign: dict[str, Images]) -> None:
    steps = np.abs(np.diff(foreign["noise"].astype(int), axis=1)).mean(axis=(1, 2, 3))
    assert steps[2::3].min() > 50
    assert steps[0::3].max() < 50


def test_words_have_two_colours_far_apart(foreign: dict[str, Images]) -> None:
    light = foreign["words"].mean(axis=3)
    contrast = light.max(axis=(1, 2)) - light.min(axis=(1, 2))
    assert np.median(contrast) > 80
