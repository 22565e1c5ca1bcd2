"""`convscope predict` with a segmenter."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from app.cli import main
from app.explore.palette import COLOURS
from app.images import rle
from tests.support.segmenters import HEIGHT, WIDTH, write_segmenter

DEEP = (255, 0, 255)
"""A pixel of a cell, deep within it."""

PLATELET = (0, 255, 255)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    store = tmp_path / "store"
    monkeypatch.setenv("CONVSCOPE_STORE", str(store))
    return store


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(item) for item in arguments])


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Two cells and a platelet, in a picture twice as large as the input."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[4:14, 6:16] = DEEP
    pixels[20:30, 6:26] = DEEP
    pixels[20:28, 40:50] = PLATELET
    path = tmp_path / "blood.png"
    Image.fromarray(pixels.repeat(2, 0).repeat(2, 1)).save(path)
    return path


def test_line_has_the_number_of_objects_of_each_class(store: Path, picture: Path) -> None:
    write_segmenter(store)
    result = run("predict", picture)
    assert result.exit_code == 0
    assert result.stdout == f"{picture}: 2 cell, 1 platelet\n"


def test_line_has_the_part_of_each_class_if_objects_are_not_told_apart(
    store: Path, picture: Path
) -> None:
    write_segmenter(store, depth=False)
    cells, platelets = 300 / (HEIGHT * WIDTH), 80 / (HEIGHT * WIDTH)
    expected = f"{picture}: cell {cells:.1%}, platelet {platelets:.1%}\n"
    assert run("predict", picture).stdout == expected


@pytest.mark.parametrize(
    ("depth", "said"), [(True, "no objects"), (False, "nothing but background")]
)
def test_picture_of_nothing_has_no_objects_or_areas(
    store: Path, tmp_path: Path, *, depth: bool, said: str
) -> None:
    write_segmenter(store, depth=depth)
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "empty.png")
    file = tmp_path / "empty.png"
    assert run("predict", file).stdout == f"{file}: {said}\n"
    assert json.loads(run("predict", file, "--json").stdout) == []


def test_area_that_is_too_small_for_an_object_is_none(store: Path, tmp_path: Path) -> None:
    write_segmenter(store)
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[4, 6] = DEEP
    Image.fromarray(pixels).save(tmp_path / "dust.png")
    assert run("predict", tmp_path / "dust.png").stdout.endswith(": no objects\n")


def test_json_has_cocos_masks_and_csv_their_places(store: Path, picture: Path) -> None:
    write_segmenter(store)
    results = json.loads(run("predict", picture, "--json").stdout)
    assert sorted(one["category_id"] for one in results) == [3, 3, 7]
    for one in results:
        assert one["segmentation"]["size"] == [2 * HEIGHT, 2 * WIDTH]
        mask = rle.decode(one["segmentation"]["counts"], 2 * HEIGHT, 2 * WIDTH)
        assert mask.sum() == one["area"]
    rows = list(csv.DictReader(io.StringIO(run("predict", picture, "--csv").stdout)))
    assert {(row["category"], row["x"], row["y"]) for row in rows} == {
        ("cell", "12", "8"),
        ("cell", "12", "40"),
        ("platelet", "80", "40"),
    }


def test_masks_are_drawn_over_the_picture(store: Path, picture: Path, tmp_path: Path) -> None:
    write_segmenter(store)
    result = run("predict", picture, "--draw", tmp_path / "drawn")
    drawing = tmp_path / "drawn" / "blood.png"
    assert str(drawing) in result.stdout
    colours = {tuple(colour) for colour in np.asarray(Image.open(drawing)).reshape(-1, 3).tolist()}
    assert tuple(COLOURS[0]) in colours


def test_score_that_is_higher_leaves_objects_out(store: Path, picture: Path) -> None:
    write_segmenter(store)
    assert run("predict", picture, "--threshold", "0.95").stdout.endswith(": no objects\n")


def test_csv_of_areas_has_their_sizes_alone(store: Path, picture: Path) -> None:
    write_segmenter(store, depth=False)
    rows = list(csv.DictReader(io.StringIO(run("predict", picture, "--csv").stdout)))
    assert [(row["category"], row["score"], row["x"], row["area"]) for row in rows] == [
        ("cell", "", "", "1200"),
        ("platelet", "", "", "320"),
    ]


def test_score_of_areas_is_wrong_usage(
    store: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_segmenter(store, "areas", depth=False)
    write_segmenter(store, "cells")
    monkeypatch.setenv("CONVSCOPE_DEFAULT_MODEL", "areas")
    result = run("predict", picture, "--threshold", "0.5")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].endswith(
        "--threshold is for models that tell objects apart, and areas/1 does not; --model names "
        "another: cells/1"
    )
    assert run("predict", picture, "--model", "cells", "--threshold", "0.5").exit_code == 0
