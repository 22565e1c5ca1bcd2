"""POST /detect: objects in the pixels of the picture that was sent."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import Connect
from tests.support.artifacts import write_artifact
from tests.support.detectors import write_detector
from tests.support.pictures import as_file, as_png, read_png, stored, turned

pytestmark = pytest.mark.anyio


def with_rectangle(height: int, width: int, box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """A black picture with a white rectangle: x, y, width, height."""
    x, y, across, down = box
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y : y + down, x : x + across] = 255
    return pixels


@pytest.fixture
def detectors(tmp_path: Path) -> Path:
    """finder/1, a detector, and colour/1 and colour/2, classifiers; colour is the default."""
    write_detector(tmp_path)
    write_artifact(tmp_path, "colour", "1")
    write_artifact(tmp_path, "colour", "2")
    return tmp_path


@pytest.fixture
async def client(connect: Connect, detectors: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(store=detectors) as client:
        yield client


async def detect(client: httpx.AsyncClient, content: bytes, **parameters: Any) -> httpx.Response:
    return await client.post("/detect", content=content, params=parameters)


async def test_object_is_answered_in_cocos_terms(client: httpx.AsyncClient) -> None:
    picture = with_rectangle(96, 128, (20, 30, 40, 20))
    response = await detect(client, as_png(picture))
    assert response.status_code == 200
    answer = response.json()
    assert answer["image"] == {"width": 128, "height": 96}
    first, second, third = answer["detections"]
    assert first == {
        "bbox": [20, 30, 40, 20],
        "category": "cell",
        "category_id": 3,
        "score": pytest.approx(0.9),
    }
    assert second["bbox"] == [24, 34, 40, 20]
    assert (third["category"], third["category_id"]) == ("platelet", 7)
    assert (answer["model"], answer["version"]) == ("finder", "1")
    assert "decode;dur=" in response.headers["server-timing"]


@pytest.mark.parametrize("size", [(96, 128), (128, 96), (50, 300), (300, 50), (480, 640)])
@pytest.mark.parametrize("orientation", range(1, 9))
async def test_box_is_in_pixels_of_the_upright_picture(
    client: httpx.AsyncClient, size: tuple[int, int], orientation: int
) -> None:
    height, width = size
    box = width // 4, height // 5, width // 2, height // 2
    upright = with_rectangle(height, width, box)
    content = as_file(stored(upright, orientation), "PNG", exif=turned(orientation))
    response = await detect(client, content)
    answer = response.json()
    assert answer["image"] == {"width": width, "height": height}
    pixel = max(width / 64, height / 48)
    assert answer["detections"][0]["bbox"] == pytest.approx(box, abs=1.01 * pixel)


async def test_picture_with_nothing_in_it_has_an_empty_list(client: httpx.AsyncClient) -> None:
    response = await detect(client, as_png(np.zeros((96, 128, 3), np.uint8)))
    assert response.status_code == 200
    assert response.json()["detections"] == []


@pytest.mark.parametrize(
    ("parameters", "scores"),
    [
        ({"score_threshold": 0.5}, [0.9, 0.6]),
        ({"score_threshold": 0.95}, []),
        ({"score_threshold": 0}, [0.9, 0.6, 0.3]),
        ({"max_detections": 1}, [0.9]),
        ({"iou_threshold": 0.5}, [0.9, 0.3]),  # the third is of another class
        ({"iou_threshold": 0.5, "max_detections": 2}, [0.9, 0.3]),
    ],
)
async def test_parameters_leave_out_objects(
    client: httpx.AsyncClient, parameters: dict[str, float], scores: list[float]
) -> None:
    picture = as_png(with_rectangle(96, 128, (20, 30, 60, 50)))
    answer = (await detect(client, picture, **parameters)).json()
    assert [found["score"] for found in answer["detections"]] == pytest.approx(scores)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"iou_threshold": 0.97}, "iou_threshold=0.97: the limit is the model's own, 0.95"),
        ({"iou_threshold": 0}, "greater than 0"),
        ({"score_threshold": 1.5}, "less than or equal to 1"),
        ({"max_detections": 0}, "greater than or equal to 1"),
        ({"top_k": 3}, "unknown query parameter"),
    ],
)
async def test_wrong_parameter_is_refused(
    client: httpx.AsyncClient, parameters: dict[str, float], words: str
) -> None:
    response = await detect(client, b"never read", **parameters)
    assert response.status_code == 422
    assert words in response.json()["detail"]


async def test_several_pictures_are_answered_in_their_order(client: httpx.AsyncClient) -> None:
    files = [
        ("file", (f"{width}.png", as_png(with_rectangle(48, width, (5, 5, 20, 20)))))
        for width in (64, 100, 32)
    ]
    response = await client.post("/detect", files=files)
    pictures = response.json()["pictures"]
    assert [picture["image"]["width"] for picture in pictures] == [64, 100, 32]
    assert [picture["filename"] for picture in pictures] == ["64.png", "100.png", "32.png"]
    assert pictures[0]["detections"][0]["bbox"] == [5, 5, 20, 20]


async def test_png_has_boxes_where_the_objects_are(client: httpx.AsyncClient) -> None:
    picture = as_png(with_rectangle(480, 640, (200, 200, 120, 100)))
    response = await client.post("/detect", content=picture, headers={"accept": "image/png"})
    assert response.headers["content-type"] == "image/png"
    drawn = read_png(response.content)
    assert drawn.shape == (480, 640, 3)
    coloured = (drawn.max(axis=2).astype(int) - drawn.min(axis=2)) > 40
    rows, columns = np.nonzero(coloured)
    assert abs(int(columns.min()) - 200) < 12
    assert abs(int(rows.max()) - 320) < 25


@pytest.mark.parametrize(
    ("accept", "path", "asking"),
    [("image/png", "/detect", "Accept"), ("*/*", "/detect?format=png", "format=png")],
)
async def test_png_shows_one_picture(
    client: httpx.AsyncClient, accept: str, path: str, asking: str
) -> None:
    picture = as_png(with_rectangle(48, 64, (5, 5, 20, 20)))
    files = [("file", ("a.png", picture)), ("file", ("b.png", picture))]
    response = await client.post(path, files=files, headers={"Accept": accept})
    assert response.status_code == 413
    assert response.json()["detail"] == (
        f"request has more than 1 images; the limit is 1, because {asking} asks for image/png, "
        "which shows one"
    )


async def test_classifier_does_not_detect_and_a_detector_does_not_classify(
    client: httpx.AsyncClient,
) -> None:
    picture = as_png(with_rectangle(48, 64, (5, 5, 20, 20)))
    for path, model, task, other in (
        ("/detect", "colour", "classification: POST /predict", "detection there are: finder"),
        ("/predict", "finder", "detection: POST /detect", "classification there are: colour"),
        ("/explain", "finder", "detection: POST /detect", "classification there are: colour"),
    ):
        response = await client.post(path, content=picture, params={"model": model})
        assert response.status_code == 409
        problem = response.json()
        assert problem["type"].endswith(":wrong-task")
        assert task in problem["detail"]
        assert other in problem["detail"]


async def test_each_task_has_a_default(client: httpx.AsyncClient) -> None:
    picture = as_png(with_rectangle(48, 64, (5, 5, 20, 20)))
    assert (await client.post("/predict", content=picture)).json()["model"] == "colour"
    assert (await client.post("/detect", content=picture)).json()["model"] == "finder"
    listed = (await client.get("/models")).json()["models"]
    found = {f"{each['name']}/{each['version']}": each for each in listed}
    assert {ref: each["task"] for ref, each in found.items()} == {
        "colour/1": "classification",
        "colour/2": "classification",
        "finder/1": "detection",
    }
    assert [ref for ref, each in found.items() if each["default"]] == ["colour/2", "finder/1"]
    assert found["finder/1"]["test_map50"] == 0.9
    assert "test_accuracy" not in found["finder/1"]


async def test_store_without_detectors_says_so(connect: Connect) -> None:
    async with connect() as client:
        response = await client.post("/detect", content=b"never read")
    assert response.status_code == 404
    said = (
        "no model here is for detection; there are: colour (classification), flat (classification)"
    )
    assert response.json()["detail"] == said


async def test_store_of_detectors_alone_is_served(connect: Connect, tmp_path: Path) -> None:
    write_detector(tmp_path)
    picture = as_png(with_rectangle(48, 64, (5, 5, 20, 20)))
    async with connect(store=tmp_path, default_model=None) as client:
        assert (await client.post("/detect", content=picture)).status_code == 200
        assert (await client.post("/predict", content=picture)).status_code == 404
        assert (await client.get("/health/ready")).status_code == 200


async def test_manifest_is_served_whole(client: httpx.AsyncClient) -> None:
    manifest = (await client.get("/models/finder/versions/1")).json()
    assert manifest["task"] == "detection"
    assert manifest["category_ids"] == [3, 7]
    assert manifest["resize"]["policy"] == "letterbox"


async def test_confusion_matrix_has_a_background(client: httpx.AsyncClient) -> None:
    matrix = (await client.get("/confusion-matrix?model=finder")).json()
    assert matrix["labels"] == ["cell", "platelet", "background"]
    assert matrix["counts"][0] == [36, 1, 3]
    assert (matrix["objects"], matrix["score_threshold"]) == (60, 0.25)
    text = (await client.get("/confusion-matrix?model=finder&format=csv")).text
    assert text.splitlines()[-1] == "background,5,4,0"
    picture = await client.get("/confusion-matrix?model=finder&format=png")
    assert min(read_png(picture.content).shape[:2]) > 100
    shares = (await client.get("/confusion-matrix?model=finder&normalize=true")).json()
    assert shares["normalized"][0] == [0.9, 0.025, 0.075]


async def test_evaluation_has_curves(client: httpx.AsyncClient) -> None:
    figures = (await client.get("/evaluation")).json()
    assert (figures["model"], figures["map"], figures["map50"]) == ("finder", 0.6, 0.9)
    assert [each["label"] for each in figures["per_class"]] == ["cell", "platelet"]
    assert len(figures["per_class"][0]["precision"]) == 101
    picture = await client.get("/evaluation", headers={"accept": "image/png"})
    assert read_png(picture.content).shape[0] > 400
    etag = picture.headers["etag"]
    again = await client.get("/evaluation", headers={"accept": "image/png", "if-none-match": etag})
    assert again.status_code == 304


async def test_classifier_has_no_curves(client: httpx.AsyncClient) -> None:
    response = await client.get("/evaluation?model=colour")
    assert response.status_code == 409
    assert "/confusion-matrix" in response.json()["detail"]


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"no picture at all"])
async def test_bad_picture_is_refused_as_by_predict(
    client: httpx.AsyncClient, content: bytes
) -> None:
    detected = await client.post("/detect", content=content)
    predicted = await client.post("/predict", content=content)
    assert detected.status_code == predicted.status_code >= 400
    assert detected.json()["type"] == predicted.json()["type"]


async def test_objects_are_counted_by_class(client: httpx.AsyncClient) -> None:
    await detect(client, as_png(with_rectangle(48, 64, (5, 5, 20, 20))))
    counted = (await client.get("/metrics")).text
    lines = [line for line in counted.splitlines() if line.startswith("convscope_objects")]
    assert any('label="platelet"' in line and line.endswith(" 1.0") for line in lines)


def test_damaged_detector_is_not_served(tmp_path: Path) -> None:
    from app.artifact.directory import read_artifact
    from app.errors import ArtifactError

    write_detector(tmp_path)
    path = tmp_path / "finder" / "1" / "manifest.json"
    manifest = json.loads(path.read_text())
    for changes, words in (
        ({"category_ids": [3]}, "category_ids"),
        ({"category_ids": [3, 3]}, "category_ids"),
        ({"outputs": manifest["outputs"][:2]}, "labels is missing"),
        ({"task": "dreaming"}, "task"),
    ):
        path.write_text(json.dumps(manifest | changes))
        with pytest.raises(ArtifactError, match=words):
            read_artifact(path.parent)
