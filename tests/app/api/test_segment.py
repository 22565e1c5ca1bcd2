"""POST /segment: masks in the pixels of the picture that was sent."""

import io
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from app.api.routes import segment as segment_route
from app.artifact.directory import read_artifact
from app.errors import ArtifactError, SettingsError
from app.images import rle
from app.images.placement import Policy, place
from app.main import open_application
from app.tasks import segmentation
from tests.conftest import Connect, MakeSettings
from tests.support.artifacts import write_artifact
from tests.support.detectors import write_detector
from tests.support.pictures import as_file, as_png, read_png, stored, turned
from tests.support.segmenters import HEIGHT, WIDTH, write_segmenter

pytestmark = pytest.mark.anyio

Box = tuple[int, int, int, int]
CELL, PLATELET = (255, 0, 255), (0, 255, 255)
SHALLOW = (255, 0, 60)
POLICIES: tuple[Policy, ...] = ("crop", "letterbox", "stretch")


def painted(height: int, width: int, *boxes: tuple[Box, tuple[int, int, int]]) -> NDArray[np.uint8]:
    """A black picture with rectangles: x, y, width, height, and a colour."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for (x, y, across, down), colour in boxes:
        pixels[y : y + down, x : x + across] = colour
    return pixels


def mask_of(region: dict[str, Any]) -> NDArray[np.bool_]:
    height, width = region["segmentation"]["size"]
    return rle.decode(region["segmentation"]["counts"], height, width)


def overlap(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    return float((first & second).sum() / (first | second).sum())


@pytest.fixture
def segmenters(tmp_path: Path) -> Path:
    """cells/1 tells objects apart, grounds/1 does not; finder/1 detects and colour/1 classifies."""
    write_segmenter(tmp_path)
    write_segmenter(tmp_path, "grounds", depth=False)
    write_detector(tmp_path)
    write_artifact(tmp_path, "colour", "1")
    return tmp_path


@pytest.fixture
async def client(connect: Connect, segmenters: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(store=segmenters) as client:
        yield client


async def segment(client: httpx.AsyncClient, content: bytes, **parameters: Any) -> httpx.Response:
    return await client.post("/segment", content=content, params=parameters)


async def test_object_is_answered_in_cocos_terms(client: httpx.AsyncClient) -> None:
    picture = painted(HEIGHT, WIDTH, ((20, 5, 4, 8), CELL), ((50, 30, 6, 2), PLATELET))
    response = await segment(client, as_png(picture))
    assert response.status_code == 200
    answer = response.json()
    assert (answer["model"], answer["version"]) == ("cells", "1")
    assert answer["image"] == {"width": WIDTH, "height": HEIGHT}
    cell, platelet = answer["instances"]
    assert {name: value for name, value in cell.items() if name != "segmentation"} == {
        "category": "cell",
        "category_id": 3,
        "score": pytest.approx(0.9),
        "bbox": [20, 5, 4, 8],
        "area": 32,
    }
    assert (mask_of(cell) == (picture[..., 0] > 0)).all()
    assert (platelet["category"], platelet["bbox"]) == ("platelet", [50, 30, 6, 2])
    assert [region["category_id"] for region in answer["classes"]] == [3, 7]
    assert [region["area"] for region in answer["classes"]] == [32, 12]
    assert answer["classes"][1].keys() == {"category", "category_id", "area", "segmentation"}
    assert (mask_of(answer["classes"][1]) == (picture[..., 1] > 0)).all()
    for stage in ("decode", "inference", "masks"):
        assert f"{stage};dur=" in response.headers["server-timing"]


async def test_counts_are_those_of_cocos_tools(client: httpx.AsyncClient) -> None:
    reference = pytest.importorskip("faster_coco_eval.core.mask", reason="only training needs it")
    picture = painted(90, 170, ((20, 30, 41, 8), CELL), ((100, 5, 60, 52), PLATELET))
    answer = (await segment(client, as_png(picture))).json()
    for each in answer["instances"]:
        theirs = reference.decode(each["segmentation"])
        assert (theirs == mask_of(each)).all()
        assert int(reference.area(each["segmentation"])) == each["area"] > 300
        assert reference.toBbox(each["segmentation"]).tolist() == each["bbox"]
        again = reference.encode(np.asfortranarray(theirs))["counts"]
        assert again in {each["segmentation"]["counts"], each["segmentation"]["counts"].encode()}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("size", [(96, 128), (128, 96), (240, 71), (300, 481)])
async def test_mask_is_in_pixels_of_the_upright_picture(
    connect: Connect, tmp_path: Path, policy: Policy, size: tuple[int, int]
) -> None:
    write_segmenter(tmp_path, policy=policy)
    height, width = size
    box = width // 3, height // 3, width // 2, height // 4
    upright = painted(height, width, (box, CELL))
    left, upper, right, lower = place((width, height), (WIDTH, HEIGHT), policy).box
    rows, columns = np.mgrid[:height, :width] + 0.5
    seen = (left <= columns) & (columns <= right) & (upper <= rows) & (rows <= lower)
    expected = (upright[..., 0] > 0) & seen
    pixel = max((right - left) / WIDTH, (lower - upper) / HEIGHT)
    async with connect(store=tmp_path, default_model=None) as client:
        for orientation in range(1, 9):
            content = as_file(stored(upright, orientation), "PNG", exif=turned(orientation))
            answer = (await segment(client, content)).json()
            assert answer["image"] == {"width": width, "height": height}
            (found,) = answer["instances"]
            mask = mask_of(found)
            assert overlap(mask, expected) > 0.85, orientation
            ys, xs = np.nonzero(expected)
            edges = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            assert found["bbox"] == pytest.approx(edges, abs=pixel + 1)
            assert overlap(mask_of(answer["classes"][0]), mask) > 0.9  # ties between pixels
            assert not mask[~seen].any()


async def test_margins_are_cut_off(connect: Connect, tmp_path: Path) -> None:
    """The margins of this model are of a class."""
    resize = {"policy": "letterbox", "interpolation": "bilinear", "fill": [255, 0, 255]}
    write_segmenter(tmp_path, resize=resize)
    async with connect(store=tmp_path, default_model=None) as client:
        nothing = (await segment(client, as_png(painted(40, 200)))).json()
        assert (nothing["classes"], nothing["instances"]) == ([], [])
        whole = painted(40, 200, ((0, 0, 200, 40), PLATELET))
        answer = (await segment(client, as_png(whole))).json()
        assert [region["area"] for region in answer["classes"]] == [200 * 40]


async def test_outside_of_a_crop_is_background(connect: Connect, tmp_path: Path) -> None:
    write_segmenter(tmp_path, policy="crop")
    everywhere = painted(96, 400, ((0, 0, 400, 96), CELL))
    async with connect(store=tmp_path, default_model=None) as client:
        answer = (await segment(client, as_png(everywhere))).json()
        narrow = await segment(client, as_png(painted(1000, 1, ((0, 0, 1, 1000), CELL))))
    (found,) = answer["instances"]
    assert found["bbox"] == [136, 0, 128, 96]
    assert found["area"] == answer["classes"][0]["area"] == 128 * 96
    assert narrow.status_code == 200


async def test_objects_that_touch_are_told_apart(client: httpx.AsyncClient) -> None:
    boxes = [((10, 10, 20, 16), CELL), ((34, 10, 20, 16), CELL), ((30, 10, 4, 16), SHALLOW)]
    picture = painted(HEIGHT, WIDTH, *boxes)
    answer = (await segment(client, as_png(picture))).json()
    assert len(answer["classes"]) == 1
    first, second = (mask_of(each) for each in answer["instances"])
    assert not (first & second).any()
    assert (first | second == (picture[..., 0] > 0)).all()
    middle = sorted(each["bbox"][0] for each in answer["instances"])[1]
    assert 30 <= middle <= 34


async def test_model_without_depth_gives_classes_alone(client: httpx.AsyncClient) -> None:
    picture = painted(HEIGHT, WIDTH, ((5, 5, 9, 9), CELL), ((30, 30, 9, 9), CELL))
    answer = (await segment(client, as_png(picture), model="grounds")).json()
    assert "instances" not in answer
    assert [region["area"] for region in answer["classes"]] == [162]


async def test_picture_with_nothing_in_it_has_empty_lists(client: httpx.AsyncClient) -> None:
    response = await segment(client, as_png(painted(96, 128)))
    assert response.status_code == 200
    answer = response.json()
    assert (answer["classes"], answer["instances"]) == ([], [])


@pytest.mark.parametrize(
    ("parameters", "areas"),
    [
        ({}, [100, 40]),
        ({"score_threshold": 0.95}, []),
        ({"score_threshold": 0.5, "max_instances": 1}, [100]),
    ],
)
async def test_parameters_leave_out_objects(
    client: httpx.AsyncClient, parameters: dict[str, float], areas: list[int]
) -> None:
    boxes = [((5, 5, 10, 10), CELL), ((30, 30, 10, 4), CELL), ((60, 40, 1, 3), CELL)]
    answer = (await segment(client, as_png(painted(HEIGHT, WIDTH, *boxes)), **parameters)).json()
    assert [found["area"] for found in answer["instances"]] == areas
    assert answer["classes"][0]["area"] == 143  # the smallest is below the model's least area


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"score_threshold": 1.5}, "less than or equal to 1"),
        ({"max_instances": 0}, "greater than or equal to 1"),
        ({"max_instances": 10_001}, "less than or equal to 10000"),
        ({"top_k": 3}, "unknown query parameter"),
        ({"model": "grounds", "score_threshold": 0.5}, "score_threshold=0.5: grounds/1 gives"),
        ({"model": "grounds", "max_instances": 5}, "max_instances=5: grounds/1 gives"),
        ({"format": "png", "max_instances": 5}, "max_instances=5: a PNG of classes has no objects"),
    ],
)
async def test_wrong_parameter_is_refused(
    client: httpx.AsyncClient, parameters: dict[str, Any], words: str
) -> None:
    response = await segment(client, b"never read", **parameters)
    assert response.status_code == 422
    assert words in response.json()["detail"]


async def test_several_pictures_are_answered_in_their_order(client: httpx.AsyncClient) -> None:
    files = [
        ("file", (f"{width}.png", as_png(painted(HEIGHT, width, ((5, 5, 20, 20), CELL)))))
        for width in (WIDTH, 100, 32)
    ]
    pictures = (await client.post("/segment", files=files)).json()["pictures"]
    assert [picture["image"]["width"] for picture in pictures] == [WIDTH, 100, 32]
    assert [picture["filename"] for picture in pictures] == ["64.png", "100.png", "32.png"]
    assert pictures[0]["instances"][0]["bbox"] == [5, 5, 20, 20]


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (333, 200)])
async def test_png_has_the_number_of_each_pixels_class(
    client: httpx.AsyncClient, size: tuple[int, int]
) -> None:
    boxes = [((5, 5, 25, 20), CELL), ((40, 30, 15, 12), PLATELET)]
    picture = as_png(painted(*size, *boxes))
    response = await client.post("/segment", content=picture, headers={"accept": "image/png"})
    assert response.headers["content-type"] == "image/png"
    regions = (await segment(client, picture)).json()["classes"]
    with Image.open(io.BytesIO(response.content)) as opened:
        assert opened.mode == "P"
        indices = np.asarray(opened)
        assert opened.convert("RGB").getpixel((0, 0)) == (0, 0, 0)
    expected = np.zeros(size, np.uint8)
    for number, region in enumerate(regions, 1):
        expected[mask_of(region)] = number
    assert (indices == expected).all()
    assert set(np.unique(indices)) == {0, 1, 2}


@pytest.mark.parametrize("model", ["cells", "grounds"])
async def test_overlay_is_the_picture_with_its_objects(
    client: httpx.AsyncClient, model: str
) -> None:
    picture = painted(960, 2560, ((400, 400, 400, 200), CELL))
    picture[..., 2] = np.maximum(picture[..., 2], 40)
    response = await segment(client, as_png(picture), format="overlay", model=model)
    assert response.headers["content-type"] == "image/png"
    drawn = read_png(response.content)
    assert drawn.shape == (480, 1280, 3)
    assert (drawn[10, 10] == (0, 0, 40)).all()
    inside = drawn[240, 300].astype(int)
    assert inside[1] > 40  # the fill has green, which the picture lacks
    assert (drawn[200:300, 200:400].max(axis=2) == 0).any()  # the outline


async def test_png_shows_one_picture(client: httpx.AsyncClient) -> None:
    picture = as_png(painted(HEIGHT, WIDTH))
    files = [("file", ("a.png", picture)), ("file", ("b.png", picture))]
    for kind in ("png", "overlay"):
        response = await client.post(f"/segment?format={kind}", files=files)
        assert response.status_code == 413
        words = f"; the limit is 1, because format={kind} asks for image/png, which shows one"
        assert response.json()["detail"].endswith(words)


async def test_memory_of_maps_limits_the_number_of_pictures(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_route, "MAX_OUTPUT_BYTES", 2 * 4 * 4 * HEIGHT * WIDTH)
    files = [("file", as_png(painted(HEIGHT, WIDTH)))] * 3
    assert (await client.post("/segment", files=files[:2])).status_code == 200
    response = await client.post("/segment", files=files)
    assert response.status_code == 413
    assert response.json()["detail"] == (
        "request has more than 2 images; the limit is 2, because each has 4 maps of "
        f"{WIDTH}x{HEIGHT} in memory"
    )


async def test_model_of_another_task_is_refused_with_those_that_fit(
    client: httpx.AsyncClient,
) -> None:
    picture = as_png(painted(HEIGHT, WIDTH))
    for path, model, words, others in (
        ("/segment", "colour", "classification: POST /predict", "are: cells, grounds"),
        ("/segment", "finder", "detection: POST /detect", "are: cells, grounds"),
        ("/predict", "cells", "segmentation: POST /segment", "are: colour"),
        ("/detect", "cells", "segmentation: POST /segment", "are: finder"),
        ("/explain", "cells", "segmentation: POST /segment", "are: colour"),
    ):
        response = await client.post(path, content=picture, params={"model": model})
        assert response.status_code == 409
        assert words in response.json()["detail"]
        assert others in response.json()["detail"]


async def test_models_tell_of_segmenters(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/models")).json()["models"]
    found = {each["name"]: each for each in listed}
    assert (found["cells"]["task"], found["cells"]["default"]) == ("segmentation", True)
    assert (found["cells"]["test_iou"], found["cells"]["test_instance_f1"]) == (0.8, 0.75)
    assert "test_instance_f1" not in found["grounds"]
    manifest = (await client.get("/models/cells/versions/1")).json()
    assert manifest["instances"]["seed_depth"] == 0.5
    assert "instances" not in (await client.get("/models/grounds/versions/1")).json()


async def test_layer_of_a_segmenter_is_shown(client: httpx.AsyncClient) -> None:
    picture = as_png(painted(96, 128, ((5, 5, 25, 20), CELL)))
    response = await client.post("/activations?layer=pixels&model=cells", content=picture)
    assert min(read_png(response.content).shape[:2]) > 20
    response = await client.get("/filters?model=cells")
    assert response.status_code == 404  # it has no convolution


async def test_confusion_matrix_is_of_pixels(client: httpx.AsyncClient) -> None:
    matrix = (await client.get("/confusion-matrix?model=cells")).json()
    assert matrix["labels"] == ["cell", "platelet", "background"]
    assert matrix["counts"][2] == [500, 400, 90_000]
    text = (await client.get("/confusion-matrix?model=cells&format=csv")).text
    assert text.splitlines()[-1] == "background,500,400,90000"
    for normalize in ("", "&normalize=true"):
        picture = await client.get(f"/confusion-matrix?model=cells&format=png{normalize}")
        assert min(read_png(picture.content).shape[:2]) > 100
    response = await client.get("/confusion-matrix/cell/platelet?model=cells")
    assert response.status_code == 404


async def test_evaluation_has_bars(client: httpx.AsyncClient) -> None:
    figures = (await client.get("/evaluation?model=cells")).json()
    assert (figures["iou"], figures["instance_f1"], figures["images"]) == (0.8, 0.75, 20)
    assert [each["iou"] for each in figures["per_class"]] == [0.9, 0.7]
    assert "instance_f1" not in (await client.get("/evaluation?model=grounds")).json()
    picture = await client.get("/evaluation?model=cells", headers={"accept": "image/png"})
    assert read_png(picture.content).shape[1] > 400
    assert (await client.get("/evaluation")).json()["model"] == "finder"


async def test_store_of_segmenters_alone_is_served(connect: Connect, tmp_path: Path) -> None:
    write_segmenter(tmp_path)
    async with connect(store=tmp_path, default_model=None) as client:
        assert (await segment(client, as_png(painted(HEIGHT, WIDTH)))).status_code == 200
        assert (await client.get("/evaluation")).json()["model"] == "cells"
        assert (await client.get("/health/ready")).status_code == 200


async def test_store_without_segmenters_says_so(connect: Connect) -> None:
    async with connect() as client:
        response = await segment(client, b"never read")
        figures = await client.get("/evaluation")
    assert response.status_code == figures.status_code == 404
    assert "no model here is for segmentation" in response.json()["detail"]
    assert figures.json()["detail"] == "no model here is for detection or segmentation"


async def test_figures_and_matrix_are_of_the_same_default(
    connect: Connect, segmenters: Path
) -> None:
    async with connect(store=segmenters, default_model="cells") as client:
        for path in ("/evaluation", "/confusion-matrix"):
            assert (await client.get(path)).json()["model"] == "cells"
    async with connect(store=segmenters, default_model="colour") as client:
        assert (await client.get("/evaluation")).json()["model"] == "finder"


async def test_cells_of_a_matrix_of_pixels_have_no_pictures(client: httpx.AsyncClient) -> None:
    for cell in ("cell/background", "cell/platelet"):
        response = await client.get(f"/confusion-matrix/{cell}?model=cells")
        assert response.status_code == 404
        assert "cells/1 was exported without" in response.json()["detail"]


@pytest.mark.parametrize(
    "content", [b"", b"GIF89a", b"no picture at all", as_png(painted(2000, 2000))[:-40]]
)
async def test_bad_picture_is_refused_as_by_predict(
    client: httpx.AsyncClient, content: bytes
) -> None:
    segmented = await segment(client, content)
    predicted = await client.post("/predict", content=content)
    assert segmented.status_code == predicted.status_code >= 400
    assert segmented.json()["type"] == predicted.json()["type"]


async def test_huge_picture_is_refused_before_it_is_decoded(client: httpx.AsyncClient) -> None:
    buffer = io.BytesIO()
    Image.new("L", (8000, 8000)).save(buffer, "JPEG")
    response = await segment(client, buffer.getvalue())
    assert response.status_code == 413
    assert "8000x8000 pixels" in response.json()["detail"]


async def test_picture_with_more_pixels_than_a_mask_is_refused(
    connect: Connect, segmenters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service's own limit may be set higher."""
    monkeypatch.setattr(rle, "MAX_PIXELS", 10_000)
    async with connect(store=segmenters) as client:
        response = await segment(client, as_png(painted(101, 100)))
    assert response.status_code == 413
    assert "100x101 pixels; the limit for masks is 0.01 megapixels" in response.json()["detail"]


@pytest.mark.parametrize("size", [(1, 65_536), (65_536, 1)])
async def test_picture_with_a_longer_side_than_a_mask_is_refused(
    client: httpx.AsyncClient, size: tuple[int, int]
) -> None:
    response = await segment(client, as_png(painted(*size)))
    assert response.status_code == 413
    words = f"{size[1]}x{size[0]} pixels; the limit of a side for masks is 65535"
    assert words in response.json()["detail"]


async def test_large_picture_has_smooth_masks(client: httpx.AsyncClient) -> None:
    picture = painted(1500, 2000, ((500, 500, 1000, 500), CELL), ((0, 0, 300, 300), PLATELET))
    answer = (await segment(client, as_file(picture, "JPEG"))).json()
    cell = next(each for each in answer["instances"] if each["category"] == "cell")
    assert cell["bbox"] == pytest.approx([500, 500, 1000, 500], abs=32)
    assert overlap(mask_of(cell), picture[..., 0] > 127) > 0.95


async def test_late_masks_are_a_504(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*arguments: Any) -> segmentation.Objects:
        time.sleep(0.5)
        return number_objects(*arguments)

    number_objects = segmentation.number_objects
    monkeypatch.setattr(segmentation, "number_objects", late)
    headers = {"x-request-timeout-ms": "200"}
    picture = as_png(painted(HEIGHT, WIDTH))
    response = await client.post("/segment", content=picture, headers=headers)
    assert response.status_code == 504
    assert response.json()["detail"] == "no answer within 0.2 s"


async def test_objects_are_counted_by_class(client: httpx.AsyncClient) -> None:
    boxes = [((5, 5, 9, 9), CELL), ((30, 30, 9, 9), CELL), ((30, 5, 9, 9), PLATELET)]
    picture = as_png(painted(HEIGHT, WIDTH, *boxes))
    for parameters in ({}, {"format": "png"}, {"format": "overlay"}, {"model": "grounds"}):
        await segment(client, picture, **parameters)
    counted = (await client.get("/metrics")).text
    lines = [line for line in counted.splitlines() if line.startswith("convscope_objects")]
    found = {
        (model, label): next(
            line.split()[-1]
            for line in lines
            if f'label="{label}"' in line and f'model="{model}"' in line
        )
        for model in ("cells", "grounds")
        for label in ("cell", "platelet")
    }
    assert found["cells", "cell"] == "4.0"  # a PNG of classes has no objects
    assert found["cells", "platelet"] == "2.0"
    assert 'convscope_masks_seconds_count{model="cells",version="1"} 3.0' in counted
    assert "convscope_predictions_total{" not in counted
    assert found["grounds", "cell"] == "1.0"


def test_store_that_needs_mahotas_names_the_extra(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mahotas", None)
    write_segmenter(tmp_path, "grounds", depth=False)
    settings = make_settings(store=tmp_path, default_model=None)
    open_application(settings)
    write_segmenter(tmp_path)
    with pytest.raises(SettingsError, match=r"^cells/1 tells .*convscope\[segmentation\]") as error:
        open_application(settings)
    assert "\n" not in str(error.value)


def test_damaged_segmenter_is_not_served(tmp_path: Path) -> None:
    write_segmenter(tmp_path)
    path = tmp_path / "cells" / "1" / "manifest.json"
    manifest = json.loads(path.read_text())
    probabilities, depth = manifest["outputs"]
    flat = {"name": "depth", "dtype": "float32", "shape": ["N", 4]}
    for changes, words in (
        ({"category_ids": [3]}, "category_ids"),
        ({"category_ids": [3, 3]}, "category_ids"),
        ({"category_ids": [3, 7, 7]}, "category_ids"),
        ({"outputs": [depth]}, "probabilities is missing"),
        ({"outputs": [probabilities]}, "no output depth"),
        ({"outputs": [probabilities, flat]}, "depth is float32"),
        ({"instances": None}, "an output depth"),
        ({"classes": ["cell"], "category_ids": [3]}, "must be float32"),
        ({"classes": [str(each) for each in range(300)]}, "300"),
    ):
        path.write_text(json.dumps(manifest | changes))
        with pytest.raises(ArtifactError, match=words):
            read_artifact(path.parent)


@pytest.mark.parametrize(
    ("name", "words"), [("probabilities", "probabilities by"), ("depth", "depth by")]
)
def test_segmenter_that_answers_differently_is_not_served(
    make_settings: MakeSettings, tmp_path: Path, name: str, words: str
) -> None:
    from app.artifact.directory import record_file

    artifact = write_segmenter(tmp_path)
    golden = artifact.arrays("golden.npz")
    golden[name][0, ..., 30, 30] += 0.01
    np.savez(artifact.path / "golden.npz", **golden)  # type: ignore[arg-type]
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    manifest["files"]["golden.npz"] = record_file(artifact.path / "golden.npz").model_dump()
    (artifact.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=words):
        open_application(make_settings(store=tmp_path, default_model=None))
