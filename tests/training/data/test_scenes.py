from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.scene_folders import masks_of
from training.data.scenes import find_scenes
from training.errors import DataError


def test_blood_cells_are_found_whole(real_scenes: Callable[[str], Path]) -> None:
    source = find_scenes(real_scenes("bccd"))
    assert source.tasks == ("detection",)
    assert source.classes == ("RBC", "WBC", "Platelets")
    assert source.findings.pictures == {"train": 205, "val": 51, "test": 72}
    totals = {name: sum(counts) for name, counts in source.findings.objects.items()}
    assert totals == {"train": 2805, "val": 631, "test": 945}
    assert source.findings.repeated == 0
    assert source.findings.left_out == ()
    assert source.test[0].pixels().shape == (480, 640, 3)


def test_nuclei_are_found_whole(real_scenes: Callable[[str], Path]) -> None:
    source = find_scenes(real_scenes("nuclei"))
    assert source.tasks == ("detection", "segmentation")
    assert source.classes == ("object",)
    assert source.findings.pictures == {"train": 234, "val": 0, "test": 50}
    assert source.findings.objects == {"train": (6755,), "val": (0,), "test": (1144,)}
    assert source.findings.left_out == ()
    scene = source.train[0]
    assert masks_of(scene).shape == (len(scene.objects), 256, 256)


def test_a_folder_without_annotated_pictures_is_told_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r": no such folder$"):
        find_scenes(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"/file: is not a folder$"):
        find_scenes(tmp_path / "file")
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "1.txt").write_text("0 0.5 0.5 0.1 0.1")
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match=r": holds no annotated pictures; needed are train\.json"):
        find_scenes(tmp_path)
