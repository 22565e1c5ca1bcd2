from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.artifact.directory import Artifact
from app.artifact.tensors import Images
from tests.support import sample
from training.compare.corruptions import (
    CLEAN,
    CORRUPTIONS,
    Answers,
    corrupted_tests,
    mean_accuracy,
    measure,
    measure_all,
)
from training.data import dataset
from training.errors import RunError


@pytest.fixture(scope="module")
def clean() -> Images:
    images, _ = sample.read("test")
    return images


def _grey(images: Images, level: int = 128) -> Images:
    return np.full_like(images, level)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_gives_as_many_images_and_the_same_at_every_call(
    name: str, clean: Images
) -> None:
    before = clean.copy()
    found = CORRUPTIONS[name](clean)
    assert found.shape == clean.shape
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, CORRUPTIONS[name](clean))
    np.testing.assert_array_equal(clean, before)
    assert np.array_equal(found, clean) == (name == CLEAN)


@pytest.mark.parametrize("deviation", [7, 20])
def test_gaussian_noise_has_the_deviation_that_it_is_named_for(
    deviation: int, clean: Images
) -> None:
    noise = CORRUPTIONS[f"Gaussian noise {deviation}"](_grey(clean)).astype(float) - 128
    assert noise.std() == pytest.approx(deviation, rel=0.01)
    assert abs(noise.mean()) < 0.2


def test_impulses_are_black_and_white_alike(clean: Images) -> None:
    found = CORRUPTIONS["impulse noise"](_grey(clean))
    assert np.mean(found == 0) == pytest.approx(0.015, rel=0.1)
    assert np.mean(found == 255) == pytest.approx(0.015, rel=0.1)


def test_shot_noise_has_the_deviation_of_a_hundred_photons(clean: Images) -> None:
    for level in (26, 102):
        found = CORRUPTIONS["shot noise"](_grey(clean, level))
        assert found.std() == pytest.approx((level / 255 / 100) ** 0.5 * 255, rel=0.02)


def test_motion_goes_along_a_row_and_blur_both_ways() -> None:
    point = np.zeros((1, 32, 32, 3), np.uint8)
    point[0, 16, 16] = 255
    moved = CORRUPTIONS["motion blur"](point)[0, :, :, 0]
    assert np.argwhere(moved).tolist() == [[16, column] for column in range(14, 19)]
    assert (moved[16, 14:19] == 51).all()
    blurred = CORRUPTIONS["blur"](point)[0, :, :, 0]
    np.testing.assert_array_equal(blurred, blurred.T)
    assert blurred[16, 16] == round(255 / (2 * np.pi))
    assert blurred[16, 17] == pytest.approx(255 / (2 * np.pi) * np.exp(-0.5), abs=0.6)


def test_fog_takes_half_of_the_light_on_average(clean: Images) -> None:
    assert (CORRUPTIONS["fog"](clean) >= clean).all()
    black = CORRUPTIONS["fog"](_grey(clean, 0))
    assert black.mean() == pytest.approx(127.5, rel=0.1)
    assert (black.min((1, 2, 3)) == 0).all()
    assert (black.max((1, 2, 3)) == 255).all()


def test_brightness_is_added_up_to_white(clean: Images) -> None:
    expected = np.minimum(clean.astype(int) + 51, 255)
    np.testing.assert_array_equal(CORRUPTIONS["brightness"](clean), expected)


def test_contrast_leaves_the_mean_of_a_picture(clean: Images) -> None:
    flat = CORRUPTIONS["contrast"](clean).astype(float)
    np.testing.assert_allclose(flat.std((1, 2)), 0.4 * clean.std((1, 2)), atol=0.5)
    np.testing.assert_allclose(flat.mean((1, 2)), clean.mean((1, 2)), atol=0.5)


def test_pixels_are_24_a_side(clean: Images) -> None:
    found = CORRUPTIONS["pixelate"](clean)
    for same in (
        (found[:, 1:] == found[:, :-1]).all((0, 2, 3)),
        (found[:, :, 1:] == found[:, :, :-1]).all((0, 1, 3)),
    ):
        assert same.sum() == 8


def test_jpeg_changes_more_the_lower_its_quality(clean: Images) -> None:
    away = [
        np.abs(CORRUPTIONS[f"JPEG {quality}"](clean).astype(float) - clean).mean()
        for quality in (75, 50, 30)
    ]
    assert 3 < away[0] < away[1] < away[2] < 15


def test_a_model_is_asked_about_every_corruption(
    exported: Artifact, source: dataset.Source
) -> None:
    found = measure(exported, corrupted_tests(source))
    assert found.keys() == CORRUPTIONS.keys()
    assert found[CLEAN].accuracy == pytest.approx(exported.classifier.test.accuracy, abs=1e-4)
    confidence = exported.classifier.confidence["float32"].out_of_distribution
    assert found[CLEAN].marked == pytest.approx(confidence.test_false_alarms, abs=0.02)
    assert len({str(answers) for answers in found.values()}) > 3


def test_the_mean_is_of_what_is_corrupted() -> None:
    found = dict.fromkeys(CORRUPTIONS, Answers(0.5, None)) | {CLEAN: Answers(0.9, 0.04)}
    assert mean_accuracy(found) == 0.5
    assert (str(found[CLEAN]), str(found["fog"])) == ("90%, 4%", "50%")


def test_a_model_of_other_data_or_none_is_an_error_that_names_it(
    exported: Artifact, source: dataset.Source, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=f"{tmp_path / 'none'}.*manifest.json"):
        measure_all([tmp_path / "none"], source, {}, print)
    other = replace(source, sha256="0" * 64)
    with pytest.raises(RunError) as caught:
        measure_all([exported.path], other, {}, print)
    assert str(caught.value) == (
        f"{exported.path}: was trained on other data than that in {source.place}; --data-dir names "
        "the folder of its images"
    )
