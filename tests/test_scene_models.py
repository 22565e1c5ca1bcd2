"""The committed detector and segmenter: sound, small, and as good as they say."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from skimage.measure import label
from skimage.segmentation import watershed

from app.artifact.directory import Artifact, read_artifact
from app.artifact.golden import read_golden
from app.artifact.tensors import DEPTH, PROBABILITIES
from app.inference.backends import open_backend
from app.tasks.segmentation import number_objects
from training.data.scenes import find_scenes
from training.evaluate_scenes import find_boxes, tally_masks
from training.recipes import Recipe, find_recipe
from training.tasks import detection_metrics
from training.tasks.segmentation_metrics import overlaps

STORE = Path(__file__).parents[1] / "models_store"
RECIPES = {"yolo-bccd/1": "yolo", "unet-nuclei/1": "unet"}
MOST_BYTES = 12_000_000

pytestmark = pytest.mark.slow  # each opens a model


@pytest.fixture(params=RECIPES)
def artifact(request: pytest.FixtureRequest) -> Artifact:
    return read_artifact(STORE / request.param)


def test_files_have_their_hashes_and_all_graphs_give_the_golden_answers(artifact: Artifact) -> None:
    artifact.verify()
    assert sum(record.bytes for record in artifact.manifest.files.values()) <= MOST_BYTES
    for backend in ("onnx-cpu", "torch-cpu"):
        open_backend(artifact, backend)
    open_backend(artifact, "onnx-cpu", precision="int8")


def test_the_recipe_is_the_named_one_with_seed_0(artifact: Artifact) -> None:
    written = Recipe.model_validate(artifact.manifest.recipe)
    named = find_recipe(RECIPES[artifact.ref])
    assert written == named.replace(seed=0, precision=written.precision)


def test_detector_is_as_good_as_it_says() -> None:
    manifest = read_artifact(STORE / "yolo-bccd" / "1").detector
    assert manifest.test.map50 > 0.88
    assert manifest.int8 is not None
    assert manifest.int8.heldout_map > manifest.int8.heldout_map_float32 - 0.01
    assert manifest.test.ece_calibrated < manifest.test.ece_raw


def test_segmenter_is_as_good_as_it_says() -> None:
    manifest = read_artifact(STORE / "unet-nuclei" / "1").segmenter
    assert manifest.test.iou > 0.8
    assert manifest.test.instance_f1 is not None
    assert manifest.test.instance_f1 > 0.85
    assert manifest.int8 is not None
    assert manifest.int8.heldout_iou > manifest.int8.heldout_iou_float32 - 0.01


def test_boxes_of_the_real_pictures_have_the_manifests_precision(
    real_scenes: Callable[[str], Path],
) -> None:
    artifact = read_artifact(STORE / "yolo-bccd" / "1")
    scenes = find_scenes(real_scenes("bccd")).test
    found = find_boxes(open_backend(artifact, "onnx-cpu").predict, scenes, (288, 384))
    precision = detection_metrics.measure(found, scenes, 3)
    assert precision.map == pytest.approx(artifact.detector.test.map, abs=2e-3)


def test_masks_of_the_real_pictures_have_the_manifests_overlap(
    real_scenes: Callable[[str], Path],
) -> None:
    artifact = read_artifact(STORE / "unet-nuclei" / "1")
    scenes = find_scenes(real_scenes("nuclei")).test
    predict = open_backend(artifact, "onnx-cpu").predict
    tally = tally_masks(predict, scenes, (256, 256), artifact.segmenter.instances, 1)
    assert overlaps(tally.pixels)[1] == pytest.approx(artifact.segmenter.test.iou, abs=2e-3)
    assert tally.f1 == pytest.approx(artifact.segmenter.test.instance_f1, abs=5e-3)


def test_objects_are_those_of_a_watershed_of_the_whole_image() -> None:
    artifact = read_artifact(STORE / "unet-nuclei" / "1")
    rule = artifact.segmenter.instances
    assert rule is not None
    rule = rule.model_copy(update={"least_area": 1})
    _, answers = read_golden(artifact)
    for probabilities, depth in zip(
        answers.arrays[PROBABILITIES], answers.arrays[DEPTH], strict=True
    ):
        inside = 1 - probabilities[0] >= rule.least_probability
        seeds = label(inside & (depth > rule.seed_depth), connectivity=1)
        flooded = watershed(-depth, seeds, connectivity=1, mask=inside)
        without = inside & (flooded == 0)
        flooded[without] = seeds.max() + label(without, connectivity=1)[without]
        found = number_objects(probabilities, depth, rule)
        assert found.max() > 1
        np.testing.assert_array_equal(found, flooded)
