"""A detector from an annotated folder to the answers of the service."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval import COCO, COCOeval_faster

from app.artifact.directory import Artifact, read_artifact
from tests.conftest import Connect
from tests.support.made_once import made_once
from tests.support.scene_folders import write_scene_folder
from tests.support.training_fixtures import InterruptAfterFirst, Interrupted
from training.data.scenes import SceneSource, find_scenes
from training.errors import DataError, RecipeError, RunError
from training.evaluate_scenes import evaluate_scenes
from training.export.scenes import SceneExport, export_scenes
from training.recipes import find_recipe
from training.run.checkpoint import Checkpoint, open_run
from training.run.progress import SilentReporter
from training.run.train import train

pytestmark = pytest.mark.slow  # trains for some seconds

RECIPE = find_recipe("yolo").replace(
    epochs=16, batch_size=4, height=64, width=96, head_learning_rate=5e-3, averaged=0.9
)


@pytest.fixture(scope="session")
def scene_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "scenes", write_into)


def write_into(place: Path) -> None:
    write_scene_folder(place)


@pytest.fixture(scope="session")
def scenes(scene_folder: Path) -> SceneSource:
    return find_scenes(scene_folder)


def train_detector(scenes: SceneSource, run: Path, **changes: Any) -> Checkpoint:
    recipe = RECIPE.replace(**changes)
    return train(recipe, scenes, run, SilentReporter(), device="cpu")


@pytest.fixture(scope="session")
def trained(scenes: SceneSource, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    def make(run: Path) -> None:
        train_detector(scenes, run)

    return open_run(made_once(tmp_path_factory, "yolo-run", make))


@pytest.fixture(scope="session")
def exported(
    trained: Checkpoint, scenes: SceneSource, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    def make(store: Path) -> None:
        evaluated = evaluate_scenes(trained, scenes)
        export_scenes(SceneExport(trained, evaluated, scenes, "boxes", "1", int8=True), store)

    return read_artifact(made_once(tmp_path_factory, "yolo-store", make) / "boxes" / "1")


def test_rectangles_are_learned(trained: Checkpoint, exported: Artifact) -> None:
    first, last = trained.state.history[0], trained.state.history[-1]
    assert last.loss < first.loss
    assert last.train_accuracy is None
    assert last.heldout_accuracy is not None
    assert last.heldout_accuracy > 0.5
    assert exported.detector.test.map50 > 0.5


def test_manifest_has_the_folders_category_ids_and_int8(exported: Artifact) -> None:
    manifest = exported.detector
    ids = dict(zip(manifest.classes, manifest.category_ids, strict=True))
    assert ids == {"red": 4, "blue": 9}
    assert manifest.resize.policy == "letterbox"
    assert manifest.int8 is not None
    assert manifest.int8.heldout_map > manifest.int8.heldout_map_float32 - 0.01
    assert manifest.data.heldout == 4


@pytest.mark.anyio
async def test_answers_of_the_service_evaluate_to_the_manifests_map(
    connect: Connect, exported: Artifact, scene_folder: Path
) -> None:
    """By a client that knows COCO's format alone, for turned and non-square pictures too."""
    document = json.loads((scene_folder / "test.json").read_text())
    rows = []
    async with connect(store=exported.path.parents[1], default_model="boxes") as client:
        for image in document["images"]:
            content = (scene_folder / "images" / image["file_name"]).read_bytes()
            answer = (
                await client.post("/detect", content=content, params={"score_threshold": 0})
            ).json()
            assert answer["image"] == {"width": image["width"], "height": image["height"]}
            rows += [{"image_id": image["id"], **row} for row in answer["detections"]]
    truth = COCO(document)
    evaluation = COCOeval_faster(truth, truth.loadRes(rows), "bbox", print_function=lambda *_: None)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    found = exported.detector.test
    assert evaluation.stats[:2].tolist() == pytest.approx([found.map, found.map50], abs=1e-6)


def test_first_yolo_is_trained_and_exported_like_todays(
    scenes: SceneSource, tmp_path: Path
) -> None:
    """The export compares both graphs with the network, box by box and by their mAP."""
    recipe = find_recipe("yolo-v1").replace(
        architecture="yolo-v1-4", epochs=3, batch_size=4, height=64, width=96, averaged=0.9
    )
    last = train(recipe, scenes, tmp_path / "run", SilentReporter(), device="cpu")
    assert last.state.history[-1].loss < last.state.history[0].loss
    what = SceneExport(last, evaluate_scenes(last, scenes), scenes, "first", "1")
    manifest = export_scenes(what, tmp_path / "store").detector
    assert manifest.architecture == "yolo-v1-4"
    assert manifest.layers[-1].shape == (4 * 4 * (2 * 5 + 2),)


def test_run_that_was_interrupted_goes_on_as_if_it_were_not(
    scenes: SceneSource, tmp_path: Path
) -> None:
    recipe = RECIPE.replace(epochs=2, mosaic=0.5)
    whole = train(recipe, scenes, tmp_path / "whole", SilentReporter(), device="cpu")
    with pytest.raises(Interrupted):
        train(recipe, scenes, tmp_path / "parts", InterruptAfterFirst(), device="cpu")
    parts = train(recipe, scenes, tmp_path / "parts", SilentReporter(), device="cpu", resume=True)
    for name, tensor in whole.read("network.safetensors").items():
        assert np.array_equal(tensor.numpy(), parts.read("network.safetensors")[name].numpy()), name


def test_fields_of_the_other_task_are_refused(scenes: SceneSource, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cutout is 8; yolo learns detection, which does not"):
        train_detector(scenes, tmp_path, cutout=8)
    with pytest.raises(RecipeError, match=r"height is 50; yolo takes multiples of 16"):
        train_detector(scenes, tmp_path, height=50)
    with pytest.raises(DataError, match=r"annotated for detection and segmentation; fc learns"):
        train(find_recipe("fc"), scenes, tmp_path, SilentReporter(), device="cpu")


def test_other_data_is_refused(trained: Checkpoint, tmp_path: Path) -> None:
    write_scene_folder(tmp_path / "other", train=5)
    other = find_scenes(tmp_path / "other")
    with pytest.raises(DataError, match="was trained on"):
        evaluate_scenes(trained, other)
    with pytest.raises(RunError, match="holds a run already"):
        train(trained.state.recipe, other, trained.path.parent, SilentReporter(), device="cpu")
