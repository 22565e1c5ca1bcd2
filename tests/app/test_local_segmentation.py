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


def test_picture_of_nothing_has_nothing_but_background(store: Path, tmp_path: Path) -> None:
    write_segmenter(store)
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "empty.png")
    assert "nothing but background" in run("predict", tmp_path / "empty.png").stdout
    assert json.loads(run("predict", tmp_path / "empty.png", "--json").stdout) == []


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
    assert "nothing but background" in run("predict", picture, "--threshold", "0.95").stdout
