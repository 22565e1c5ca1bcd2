"""A segmenter from an annotated folder to the answers of the service."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval.core import mask as reference
from PIL import Image

from app.artifact.directory import Artifact, read_artifact
from tests.conftest import Connect
from tests.support.made_once import made_once
from tests.support.scene_folders import write_scene_folder
from training.data.scenes import SceneSource, find_scenes
from training.errors import ExportError
from training.evaluate_scenes import evaluate_scenes
from training.export.export import check_exportable
from training.export.scenes import SceneExport, export_scenes
from training.recipes import find_recipe
from training.run.checkpoint import Checkpoint, open_run
from training.run.progress import SilentReporter
from training.run.train import train
from training.tasks.segmentation_metrics import Counts, count_objects, count_pixels, overlaps

pytestmark = pytest.mark.slow  # trains for some seconds

RECIPE = find_recipe("unet").replace(
    epochs=16, batch_size=4, height=64, width=96, learning_rate=4e-3, averaged=0.9
)


@pytest.fixture(scope="session")
def mask_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "masks", write_into)


def write_into(place: Path) -> None:
    write_scene_folder(place)


@pytest.fixture(scope="session")
def masks(mask_folder: Path) -> SceneSource:
    return find_scenes(mask_folder)


@pytest.fixture(scope="session")
def trained(masks: SceneSource, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    def make(run: Path) -> None:
        train(RECIPE, masks, run, SilentReporter(), device="cpu")

    return open_run(made_once(tmp_path_factory, "unet-run", make))


@pytest.fixture(scope="session")
def exported(
    trained: Checkpoint, masks: SceneSource, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    def make(store: Path) -> None:
        evaluated = evaluate_scenes(trained, masks)
        export_scenes(SceneExport(trained, evaluated, masks, "masks", "1", int8=True), store)

    return read_artifact(made_once(tmp_path_factory, "unet-store", make) / "masks" / "1")


def test_rectangles_are_learned(trained: Checkpoint, exported: Artifact) -> None:
    manifest = exported.segmenter
    assert trained.state.history[-1].heldout_accuracy is not None
    assert manifest.test.iou > 0.6
    assert manifest.test.instance_f1 is not None
    assert manifest.test.instance_f1 > 0.6
    assert manifest.int8 is not None
    assert manifest.int8.heldout_iou > manifest.int8.heldout_iou_float32 - 0.01


@pytest.mark.anyio
async def test_answers_of_the_service_evaluate_to_the_manifests_figures(
    connect: Connect, exported: Artifact, mask_folder: Path
) -> None:
    """By a client that knows COCO's format alone, for turned and non-square pictures too."""
    document = json.loads((mask_folder / "test.json").read_text())
    manifest = exported.segmenter
    labels = {key: index + 1 for index, key in enumerate(manifest.category_ids)}
    pixels = np.zeros((3, 3), np.int64)
    counts = [Counts(), Counts()]
    async with connect(store=exported.path.parents[1], default_model="masks") as client:
        for image in document["images"]:
            content = (mask_folder / "images" / image["file_name"]).read_bytes()
            answer = (await client.post("/segment", content=content)).json()
            assert answer["image"] == {"width": image["width"], "height": image["height"]}
            truth = np.zeros((image["height"], image["width"]), np.int64)
            found = np.zeros_like(truth)
            numbers = {label: (truth.copy(), truth.copy()) for label in labels.values()}
            for index, row in enumerate(document["annotations"]):
                if row["image_id"] == image["id"]:
                    mask = reference.decode(row["segmentation"]).astype(bool)
                    truth[mask] = labels[row["category_id"]]
                    numbers[labels[row["category_id"]]][0][mask] = index + 1
            for row in answer["classes"]:
                mask = reference.decode(row["segmentation"]).astype(bool)
                assert mask.sum() == row["area"]
                found[mask] = labels[row["category_id"]]
            for index, row in enumerate(answer["instances"]):
                mask = reference.decode(row["segmentation"]).astype(bool)
                numbers[labels[row["category_id"]]][1][mask] = index + 1
            pixels += count_pixels(truth, found, 3)
            for label, pair in numbers.items():
                counts[label - 1] += count_objects(*pair)
    assert overlaps(pixels)[1:].mean() == pytest.approx(manifest.test.iou, abs=1e-6)
    assert sum(counts, Counts()).f1 == pytest.approx(manifest.test.instance_f1, abs=1e-6)


async def _segment(connect: Connect, store: Path, content: bytes) -> dict[str, Any]:
    async with connect(store=store, default_model="regions") as client:
        answer: dict[str, Any] = (await client.post("/segment", content=content)).json()
        return answer


@pytest.mark.anyio
async def test_set_whose_masks_are_classes_gives_regions_and_no_objects(
    connect: Connect, mask_folder: Path, tmp_path: Path
) -> None:
    """Palette PNGs, without a split: no depth, no thresholds, no objects in the answer."""
    document = json.loads((mask_folder / "train.json").read_text())
    for name in ("images", "labels"):
        (tmp_path / "set" / name).mkdir(parents=True)
    for image in document["images"]:
        shutil.copy(mask_folder / "images" / image["file_name"], tmp_path / "set" / "images")
        classes = np.zeros((image["height"], image["width"]), np.uint8)
        for row in document["annotations"]:
            if row["image_id"] == image["id"]:
                mask = reference.decode(row["segmentation"]).astype(bool)
                classes[mask] = 1 if row["category_id"] == 4 else 2
        labels = Image.fromarray(classes, "P")
        labels.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
        labels.save(tmp_path / "set" / "labels" / image["file_name"])
    source = find_scenes(tmp_path / "set")
    assert not source.instances
    recipe = RECIPE.replace(epochs=1)
    run = train(recipe, source, tmp_path / "run", SilentReporter(), device="cpu")
    evaluated = evaluate_scenes(run, source)
    store = tmp_path / "store"
    made = export_scenes(SceneExport(run, evaluated, source, "regions", "1", int8=False), store)
    assert made.segmenter.instances is None
    assert made.segmenter.test.instance_f1 is None
    content = next((tmp_path / "set" / "images").iterdir()).read_bytes()
    answer = await _segment(connect, store, content)
    assert "instances" not in answer


def test_int8_needs_pictures_that_were_held_out(masks: SceneSource, tmp_path: Path) -> None:
    alone = replace(masks, val=())
    recipe = RECIPE.replace(epochs=1, holdout=0.0)
    run = train(recipe, alone, tmp_path / "run", SilentReporter(), device="cpu")
    with pytest.raises(ExportError, match="holdout is 0 and holds out nothing"):
        check_exportable(run, alone, tmp_path, "masks", "1", int8=True)
    check_exportable(run, alone, tmp_path, "masks", "1", int8=False)
    evaluate_scenes(run, alone)
