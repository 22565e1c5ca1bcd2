"""`convscope predict` with a detector, and with a store of several tasks."""

import csv
import io
import json
import os
import pty
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from app import cli
from app.api.queries import DetectQuery
from app.artifact.store import read_store
from app.cli import main
from app.explore.palette import COLOURS
from app.settings import read_settings
from app.tasks import detection
from app.tasks.segmentation import DEFAULT_INSTANCES
from tests.support.artifacts import write_artifact
from tests.support.detectors import HEIGHT, WIDTH, write_detector

BOX = (20, 12, 16, 10)
"""Of the white rectangle: x, y, width, height."""


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store"
    write_detector(store)
    write_artifact(store, "colour", "1")
    monkeypatch.setenv("CONVSCOPE_STORE", str(store))
    monkeypatch.setenv("CONVSCOPE_DEFAULT_MODEL", "finder")


def run(*arguments: str | Path, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(main, [str(item) for item in arguments], input=io.BytesIO(stdin))


def scene(place: Path, scale: int = 1, box: Sequence[int] = BOX) -> Path:
    """Write a black picture with a white rectangle."""
    pixels = np.zeros((scale * HEIGHT, scale * WIDTH, 3), np.uint8)
    x, y, width, height = (scale * part for part in box)
    pixels[y : y + height, x : x + width] = 255
    Image.fromarray(pixels).save(place)
    return place


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of a picture with an object, one without, and a text."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    scene(folder / "a.png")
    scene(folder / "empty.png", box=(0, 0, 0, 0))
    (folder / "notes.txt").write_text("hello")
    return folder


def rows_of(result: Result) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(result.stdout)))


def test_each_picture_has_a_line_with_its_objects(pictures: Path) -> None:
    result = run("predict", pictures)
    assert result.exit_code == 1
    found, nothing, text = result.stdout.splitlines()
    assert found == f"{pictures}/a.png: 2 cell (60.0% to 90.0%), 1 platelet (30.0%)"
    assert nothing == f"{pictures}/empty.png: no objects"
    assert text.startswith(f"{pictures}/notes.txt: error: not an image")
    assert run("predict", pictures / "a.png", pictures / "empty.png").exit_code == 0


def test_csv_has_a_row_for_each_object_in_pixels_of_the_file(tmp_path: Path) -> None:
    file = scene(tmp_path / "large.png", scale=3)
    best, again, other = rows_of(run("predict", file, "--csv"))
    assert {**best, "score": float(best["score"])} == {
        "file": str(file),
        "category": "cell",
        "score": pytest.approx(0.9),
        "x": "60.0",
        "y": "36.0",
        "width": "48.0",
        "height": "30.0",
        "drawing": "",
        "warning": "",
        "error": "",
    }
    assert (again["category"], again["x"]) == ("cell", "66.0")
    assert other["category"] == "platelet"


def test_csv_has_a_row_for_pictures_without_objects_and_files_that_are_none(
    pictures: Path,
) -> None:
    result = run("predict", pictures, "--csv")
    assert result.exit_code == 1
    found = [(Path(row["file"]).name, row["category"]) for row in rows_of(result)]
    assert found == [
        ("a.png", "cell"),
        ("a.png", "cell"),
        ("a.png", "platelet"),
        ("empty.png", ""),
        ("notes.txt", ""),
    ]
    errors = [row["error"][:12] for row in rows_of(result)]
    assert errors == ["", "", "", "", "not an image"]


def test_json_is_a_list_of_results_as_coco_has_them(pictures: Path) -> None:
    last = scene(pictures / "z größe.png")
    result = run("predict", pictures, "--json", "--threshold", "0.9")
    assert result.exit_code == 1
    first, failure, second = json.loads(result.stdout)
    assert first == {
        "image_id": 1,
        "file_name": f"{pictures}/a.png",
        "category_id": 3,
        "category": "cell",
        "bbox": list(BOX),
        "score": pytest.approx(0.9),
    }
    assert (failure["image_id"], failure["file_name"]) == (3, f"{pictures}/notes.txt")
    assert failure["error"].startswith("not an image")
    assert (second["image_id"], second["file_name"]) == (4, str(last))
    assert str(last) in result.stdout  # as it is, not escaped


def test_json_of_no_objects_is_an_empty_list(pictures: Path) -> None:
    assert json.loads(run("predict", pictures / "empty.png", "--json").stdout) == []


@pytest.mark.parametrize(
    ("threshold", "said"),
    [
        ("0.95", "no objects"),
        ("0.5", "2 cell (60.0% to 90.0%)"),
        ("0", "2 cell (60.0% to 90.0%), 1 platelet (30.0%)"),
    ],
)
def test_threshold_is_the_least_score_of_an_object(
    pictures: Path, threshold: str, said: str
) -> None:
    file = pictures / "a.png"
    assert run("predict", file, "--threshold", threshold).stdout == f"{file}: {said}\n"


def test_as_many_objects_are_told_as_the_service_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model has few; a lower limit of the service shows that the command has the same."""
    most = DetectQuery.model_fields["max_detections"].default
    said = " ".join(run("predict", "--help").stdout.split())
    assert f"at most the {most} best objects of a picture" in said
    assert f"a segmenter the {DEFAULT_INSTANCES} best" in said
    monkeypatch.setattr(detection, "DEFAULT_DETECTIONS", 2)
    rows = rows_of(run("predict", scene(tmp_path / "a.png"), "--csv"))
    assert [row["category"] for row in rows] == ["cell", "cell"]


@pytest.mark.parametrize("option", ["threshold", "draw", "json"])
def test_help_of_options_that_segmenters_take_names_them(option: str) -> None:
    said = run("predict", "--help").stdout
    help_of = re.split(r"\n  --", said)
    (text,) = [text for text in help_of if text.startswith(f"{option} ")]
    assert "segmenter" in text


def test_standard_input_and_patterns_are_read(pictures: Path) -> None:
    data = (pictures / "a.png").read_bytes()
    first, second = run("predict", "-", f"{pictures}/a*", stdin=data).stdout.splitlines()
    assert first.startswith("-: 2 cell")
    assert second.startswith(f"{pictures}/a.png: 2 cell")


def test_fault_of_a_file_that_was_read_is_told(tmp_path: Path) -> None:
    cut = tmp_path / "cut.jpg"
    with Image.open(scene(tmp_path / "sound.png")) as picture:
        picture.save(cut, quality=95)
    cut.write_bytes(cut.read_bytes()[:-2])
    fault = "the JPEG has no end marker; its pixels are all there"
    assert run("predict", cut).stdout.endswith(f"; {fault}\n")
    assert {row["warning"] for row in rows_of(run("predict", cut, "--csv"))} == {fault}
    assert {row["warning"] for row in json.loads(run("predict", cut, "--json").stdout)} == {fault}


def test_drawings_show_the_boxes_and_are_named_in_the_rows(pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "drawn"
    result = run("predict", pictures / "a.png", "--draw", folder, "--threshold", "0.9")
    assert result.exit_code == 0
    assert result.stdout.endswith(f"1 cell (90.0%); drawn in {folder}/a.png\n")
    with Image.open(folder / "a.png") as drawing:
        pixels = np.asarray(drawing.convert("RGB"))
    scale = pixels.shape[1] // WIDTH
    assert pixels.shape == (scale * HEIGHT, scale * WIDTH, 3)
    on_the_edge = pixels[scale * (BOX[1] + BOX[3] // 2), scale * BOX[0]]
    assert tuple(on_the_edge) == COLOURS[0]
    rows = rows_of(run("predict", pictures / "empty.png", "--csv", "--draw", folder))
    assert [row["drawing"] for row in rows] == [f"{folder}/empty.png"]


def test_drawings_overwrite_neither_pictures_nor_each_other(pictures: Path) -> None:
    (pictures / "more").mkdir()
    same = scene(pictures / "more" / "a.png", box=(1, 2, 3, 4))
    before = {path: path.read_bytes() for path in pictures.rglob("*.png")}
    result = run("predict", pictures / "a.png", same, "-", "--draw", pictures, stdin=before[same])
    assert result.exit_code == 0
    made = [line.rpartition(" ")[2] for line in result.stdout.splitlines()]
    assert made == [f"{pictures}/{name}.png" for name in ("a-2", "a-3", "standard-input")]
    assert {path: path.read_bytes() for path in before} == before
    assert Path(made[1]).read_bytes() == Path(made[2]).read_bytes() != Path(made[0]).read_bytes()


def test_drawings_below_a_folder_are_not_read_as_its_pictures(pictures: Path) -> None:
    for _ in range(2):
        rows = rows_of(run("predict", pictures, "--csv", "--draw", pictures / "drawn"))
        assert {Path(row["file"]).name for row in rows} == {"a.png", "empty.png", "notes.txt"}
    names = sorted(path.name for path in (pictures / "drawn").iterdir())
    assert names == ["a-2.png", "a.png", "empty-2.png", "empty.png"]


def test_folder_for_drawings_that_is_a_file_is_refused(pictures: Path) -> None:
    result = run("predict", pictures / "a.png", "--draw", pictures / "notes.txt")
    assert result.exit_code == 2
    assert "is a file" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--top-k", "2"],
            "--top-k is for classification, and finder/1 for detection; --model names another: "
            "colour/1",
        ),
        (["--coverage", "0.9"], "--coverage is for classification, and finder/1 for detection"),
        (
            ["--model", "colour", "--threshold", "0"],
            "--threshold is for detection and segmentation, and colour/1 for classification; "
            "--model names another: finder/1",
        ),
        (
            ["--model", "colour", "--draw", "x"],
            "--draw is for detection and segmentation, and colour/1",
        ),
        (["--threshold", "nan"], "nan is not a number"),
        (["--threshold", "1.1"], "'--threshold'"),
    ],
)
def test_options_of_another_task_are_refused_in_words(
    arguments: Sequence[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("predict", "x.png", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr.splitlines()[-1]
    assert not (tmp_path / "x").exists()


def test_store_of_detectors_alone_needs_no_model_named(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_detector(tmp_path / "alone", "only")
    monkeypatch.setenv("CONVSCOPE_STORE", str(tmp_path / "alone"))
    monkeypatch.delenv("CONVSCOPE_DEFAULT_MODEL")
    assert run("predict", pictures / "a.png").stdout.endswith("1 platelet (30.0%)\n")


def _read_to_the_end(terminal: int) -> str:
    said = b""
    with suppress(OSError):  # the other end is closed
        while part := os.read(terminal, 1 << 16):
            said += part
    os.close(terminal)
    return said.decode()


@pytest.mark.parametrize(
    ("models", "routes"),
    [
        ("finder,colour", ["/predict", "/detect"]),
        ("finder", ["/detect"]),
    ],
)
def test_greeting_names_the_routes_of_the_tasks_that_are_served(
    models: str, routes: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVSCOPE_MODELS", models)
    settings = read_settings()
    store = read_store(settings.store, settings.models, settings.default_model)
    outer, inner = pty.openpty()
    with os.fdopen(inner, "w") as terminal:
        monkeypatch.setattr("sys.stdout", terminal)
        cli._greet("127.0.0.1", 8000, store, settings)
    said = _read_to_the_end(outer)
    asked = [word.partition(":8000")[2] for word in said.split() if ":8000/" in word]
    assert asked == ["/docs,", *routes]
