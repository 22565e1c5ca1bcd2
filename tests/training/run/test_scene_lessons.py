"""What detectors and segmenters learn of a folder."""

import json
import os
import subprocess
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from app.images import rle
from tests.support.scene_folders import write_scene_folder
from tests.training.run.test_distributed import IMPORTABLE, TORCHRUN
from training.cli import main
from training.data import cifar_scenes
from training.data.augmentation import Epoch
from training.data.cifar_scenes import scenes_of
from training.data.dataset import Source
from training.data.scenes import SceneSource, find_scenes
from training.errors import DataError, RecipeError
from training.recipes import find_recipe
from training.run import scene_lessons
from training.run.checkpoint import open_run
from training.run.progress import SilentReporter
from training.run.scene_lessons import classes_of, load_scenes, numbers_of, split
from training.run.sources import check_lessons
from training.run.train import train
from training.tasks.segmentation import IGNORED

CPU = torch.device("cpu")
YOLO = find_recipe("yolo").replace(epochs=1, batch_size=4, height=32, width=48)
UNET = find_recipe("unet").replace(epochs=1, batch_size=4, height=32, width=48)
_SEEN = "holdout 0.1 and split_seed 0 would hold out for scenes to choose with"


@pytest.fixture
def scenes(tmp_path: Path) -> SceneSource:
    write_scene_folder(tmp_path / "set", train=6, val=2, test=2)
    return find_scenes(tmp_path / "set")


def test_val_is_held_out_and_otherwise_a_part_of_train(tmp_path: Path, scenes: SceneSource) -> None:
    train_part, heldout = split(YOLO, scenes)
    assert (len(train_part), len(heldout)) == (6, 2)
    write_scene_folder(tmp_path / "other", train=10, test=2)
    (tmp_path / "other" / "val.json").unlink()
    other = find_scenes(tmp_path / "other")
    kept, held = split(YOLO.replace(holdout=0.2), other)
    assert (len(kept), len(held)) == (8, 2)
    assert not {scene.file for scene in kept} & {scene.file for scene in held}
    again = split(YOLO.replace(holdout=0.2), other)[1]
    assert [scene.file for scene in held] == [scene.file for scene in again]
    another = split(YOLO.replace(holdout=0.2, split_seed=5), other)[1]
    assert {scene.file for scene in held} != {scene.file for scene in another}


def test_picture_is_drawn_the_same_whatever_share_it_is_in(scenes: SceneSource) -> None:
    lessons = load_scenes(YOLO.replace(mosaic=0.5), scenes, CPU)
    [draft] = lessons.drafts(Epoch(1, 0), 6)
    whole = lessons.prepare(draft)
    share = lessons.prepare(draft[torch.tensor([4, 1])])
    assert torch.equal(share.images, whole.images[torch.tensor([4, 1])])
    [next_draft] = lessons.drafts(Epoch(2, 0), 6)
    assert not torch.equal(lessons.prepare(next_draft).images, whole.images)


def test_pictures_beyond_the_room_in_memory_are_decoded_when_they_are_drawn(
    scenes: SceneSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = UNET.replace(mosaic=0.5)
    kept = load_scenes(recipe, scenes, CPU)
    monkeypatch.setattr(scene_lessons, "KEPT_BYTES", 40_000)  # of two pictures
    decoded = load_scenes(recipe, scenes, CPU)
    assert (decoded.mean, decoded.deviation) == (kept.mean, kept.deviation)
    [draft] = kept.drafts(Epoch(1, 0), 6)
    expected = kept.prepare(draft)
    found = decoded.prepare(draft)
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.targets.classes, expected.targets.classes)
    for scene in scenes.train:
        (scenes.place / scene.file).unlink()
    kept.prepare(draft)
    with pytest.raises(DataError, match="has changed since it was found"):
        decoded.prepare(draft)


def test_masks_and_boxes_of_a_drawn_picture_agree(scenes: SceneSource) -> None:
    lessons = load_scenes(UNET.replace(turn=True, largest=1.2, mosaic=0.3), scenes, CPU)
    for number in range(1, 4):
        [draft] = lessons.drafts(Epoch(number, 0), 6)
        maps = lessons.prepare(draft).targets
        assert maps.depth is not None
        assert ((maps.depth > 0) == (maps.classes > 0)).all()
        assert maps.classes.max() <= 2


def test_crowds_and_what_is_ignored_count_for_nothing(tmp_path: Path) -> None:
    write_scene_folder(tmp_path / "set", train=3, val=2, test=2)
    path = tmp_path / "set" / "train.json"
    document = json.loads(path.read_text())
    document["annotations"][0]["iscrowd"] = 1
    path.write_text(json.dumps(document))
    scene = find_scenes(tmp_path / "set").train[0]
    crowd = rle.decode(document["annotations"][0]["segmentation"]["counts"], 60, 80)
    numbers = numbers_of(scene)
    assert (numbers[crowd & (numbers < 1)] == -1).all()
    assert (numbers == -1).any()
    assert 1 not in numbers
    assert 2 in numbers
    classes = classes_of(numbers.astype(np.int64), scene.objects.labels)
    assert ((classes == IGNORED) == (numbers == -1)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 0}, "height is not given; it is a multiple of 16"),
        ({"width": 50}, "width is 50; yolo takes multiples of 16"),
        (
            {"optimizer": "muon", "bias_learning_rate": 0.1},
            "optimizer is muon; yolo has no fully connected last layer",
        ),
        ({"flip": "alternating"}, "flip is alternating; yolo takes off or random"),
        ({"noise": 3.0}, "noise is 3.0; yolo learns detection, which does not use it"),
    ],
)
def test_recipe_that_a_detector_cannot_follow_is_refused(
    scenes: SceneSource, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        check_lessons(YOLO.replace(**changes), scenes)


def test_picture_that_has_changed_meanwhile_is_named(scenes: SceneSource) -> None:
    (scenes.place / scenes.train[0].file).write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"train-0\.png: has changed since it was found"):
        load_scenes(YOLO, scenes, CPU)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolo", "unet"])
def test_run_begins_with_a_network_of_other_classes(
    tmp_path: Path, scenes: SceneSource, name: str
) -> None:
    recipe = {"yolo": YOLO, "unet": UNET}[name]
    train(recipe, scenes, tmp_path / "first", SilentReporter(), device="cpu")
    write_scene_folder(tmp_path / "other", train=6, val=2, test=2)
    for path in (tmp_path / "other").glob("*.json"):
        document = json.loads(path.read_text())
        for annotation in document["annotations"]:
            annotation["category_id"] = 4
        path.write_text(json.dumps(document))
    other = find_scenes(tmp_path / "other")
    assert other.classes == ("red",)
    begun = recipe.replace(start=str(tmp_path / "first"), learning_rate=1e-9)
    if name == "yolo":
        begun = begun.replace(head_learning_rate=1e-9)
    last = train(begun, other, tmp_path / "second", SilentReporter(), device="cpu")
    before, after = open_run(tmp_path / "first").read, last.read
    layer = {"yolo": "head8.box.1.weight", "unet": "merge.0.conv1.weight"}[name]
    first, second = (read("network.safetensors")[layer] for read in (before, after))
    assert torch.allclose(first, second * (first.norm() / second.norm()), atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, nullcontext()),
        ({"holdout": 0.05}, pytest.raises(RecipeError, match=f"{_SEEN}; it held out 0.05")),
        ({"split_seed": 1}, pytest.raises(RecipeError, match=f"{_SEEN}; .* by split_seed 1")),
    ],
)
def test_scenes_to_choose_with_are_made_of_images_that_the_backbone_has_not_seen(
    source: Source,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    said: AbstractContextManager[object],
) -> None:
    monkeypatch.setattr(cifar_scenes, "SCENES", {"train": 2, "val": 2, "test": 2})
    backbone = find_recipe("yolo-backbone").replace(epochs=1, **changes)
    train(backbone, source, tmp_path / "backbone", SilentReporter(), device="cpu")
    recipe = YOLO.replace(start=str(tmp_path / "backbone"))
    with said:
        train(recipe, scenes_of(source), tmp_path / "run", SilentReporter(), device="cpu")


@pytest.mark.slow
def test_two_processes_train_a_detector(tmp_path: Path, scenes: SceneSource) -> None:
    options = ["--epochs", "2", "--batch-size", "2", "--height", "32", "--width", "48"]
    places = ["--data-dir", str(scenes.place), "--out", str(tmp_path / "run"), "--device", "cpu"]
    done = subprocess.run(
        [*TORCHRUN, "-m", "--", "training.cli", "train", "yolo", *options, *places],
        check=False,
        capture_output=True,
        text=True,
        env=IMPORTABLE | {"OMP_NUM_THREADS": "1"} | {"PATH": os.environ["PATH"]},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    state = open_run(tmp_path / "run").state
    assert state.epoch == 2
    assert state.hardware.startswith("2 × ")
    assert state.history[-1].heldout_accuracy is not None


@pytest.mark.slow
def test_scenes_of_a_data_set_for_classifiers_are_learned_from_by_the_same_commands(
    tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar_scenes, "SCENES", {"train": 8, "val": 4, "test": 4})
    run, store = str(tmp_path / "run"), str(tmp_path / "store")
    sizes = ["--height", "64", "--width", "64", "--epochs", "1", "--batch-size", "4"]
    for arguments in (
        ["train", "unet", "--no-skips", "--data-dir", str(image_folder), "--out", run, *sizes],
        ["evaluate", run],
        ["export", run, "--store", store, "--name", "scenes"],
    ):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
    assert open_run(Path(run)).state.recipe.architecture == "unet-no-skips"
    assert (Path(store) / "scenes" / "1" / "manifest.json").is_file()
    refused = CliRunner().invoke(main, ["export", run, "--store", store, "--views", "2"])
    assert refused.exit_code == 2
    assert "--views 2: only a classifier averages views" in refused.output
