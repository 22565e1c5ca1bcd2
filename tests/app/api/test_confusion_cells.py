import base64
import io
import json
import unicodedata
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from app.api.schemas import ConfusionCell
from app.artifact.files import EVALUATION, EXAMPLES
from tests.conftest import Connect
from tests.support.artifacts import CLASSES, amend, copy_store, solid
from tests.support.inside_artifacts import CELLS, measured_images
from tests.support.pictures import as_png, shown
from tests.support.problems import check

pytestmark = pytest.mark.anyio


@pytest.fixture
async def inside(connect: Connect, inside_store: Path) -> Any:
    async with connect(store=inside_store, default_model="averaging") as client:
        yield client


def _surest(true: str, predicted: str) -> tuple[list[int], list[float]]:
    """Return which images a cell has and how surely they were predicted, the surest first."""
    _, labels, probabilities = measured_images()
    wanted = CLASSES.index(true), CLASSES.index(predicted)
    cell = np.flatnonzero((labels == wanted[0]) & (probabilities.argmax(1) == wanted[1]))
    order = cell[np.argsort(-probabilities[cell].max(1))]
    return order.tolist(), probabilities[order].max(1).tolist()


def _pixels(url: str) -> NDArray[np.uint8]:
    kind, data = url.split(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        return np.asarray(picture)


@pytest.mark.parametrize(("true", "predicted"), CELLS)
async def test_json_has_the_surest_24_images_of_the_cell_and_how_many_there_are(
    inside: httpx.AsyncClient, true: str, predicted: str
) -> None:
    response = await inside.get(f"/confusion-matrix/{true}/{predicted}")
    cell = ConfusionCell.model_validate_json(response.content, strict=True)
    assert (cell.model, cell.version) == ("averaging", "1")
    assert (cell.true, cell.predicted) == (true, predicted)
    assert cell.count == CELLS[true, predicted]
    assert len(cell.images) == min(cell.count, 24)
    index, sure = _surest(true, predicted)
    assert [item.index for item in cell.images] == index[:24]
    assert [item.confidence for item in cell.images] == pytest.approx(sure[:24], abs=1e-6)
    images, _, _ = measured_images()
    for item in cell.images:
        assert (_pixels(item.png) == images[item.index]).all()


async def test_png_shows_them_six_in_a_row(inside: httpx.AsyncClient) -> None:
    images, (index, _) = measured_images()[0], _surest("red", "red")
    pixels = shown(await inside.get("/confusion-matrix/red/red?format=png&scale=1"))
    assert pixels.shape == (4 * 33 + 1, 6 * 33 + 1, 3)
    for place in (0, 5, 6, 23):
        top, left = (33 * number + 1 for number in divmod(place, 6))
        assert (pixels[top : top + 32, left : left + 32] == images[index[place]]).all()
    assert shown(await inside.get("/confusion-matrix/red/green?format=png")).shape == (
        34 * 3,
        (3 * 33 + 1) * 3,
        3,
    )


async def test_empty_cell_has_no_images_and_a_small_picture(inside: httpx.AsyncClient) -> None:
    answer = (await inside.get("/confusion-matrix/cyan/yellow")).json()
    assert (answer["count"], answer["images"]) == (0, [])
    pixels = shown(await inside.get("/confusion-matrix/cyan/yellow?format=png&scale=1"))
    assert pixels.shape == (10, 10, 3)


async def test_accept_chooses_the_form(inside: httpx.AsyncClient) -> None:
    for accept, expected in (("image/*", "image/png"), ("*/*", "application/json")):
        response = await inside.get("/confusion-matrix/red/red", headers={"Accept": accept})
        assert response.headers["content-type"] == expected
        assert response.headers["vary"] == "Accept"
    response = await inside.get("/confusion-matrix/red/red", headers={"Accept": "text/csv"})
    assert "application/json, image/png" in check(response, 406).detail


async def test_client_that_has_it_gets_304_and_every_picture_has_its_own_tag(
    inside: httpx.AsyncClient,
) -> None:
    tags = set()
    for path in ("red/red", "red/green", "green/red", "red/red?format=png", "red/red?scale=4"):
        tag = (await inside.get(f"/confusion-matrix/{path}")).headers["etag"]
        tags.add(tag)
        again = await inside.get(f"/confusion-matrix/{path}", headers={"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b"")
    assert len(tags) == 5


@pytest.mark.parametrize("path", ["violet/red", "red/violet"])
async def test_unknown_class_is_named_beside_what_there_is(
    inside: httpx.AsyncClient, path: str
) -> None:
    response = await inside.get(f"/confusion-matrix/{path}", headers={"If-None-Match": "*"})
    problem = check(response, 404)
    assert problem.type == "urn:convscope:problem:unknown-class"
    assert problem.detail == f"no class 'violet'; there are: {', '.join(CLASSES)}"


@pytest.mark.parametrize("query", ["scale=0", "scale=17", "normalize=true", "format=csv"])
async def test_wrong_parameter_is_refused(inside: httpx.AsyncClient, query: str) -> None:
    check(await inside.get(f"/confusion-matrix/red/red?{query}"), 422)


@pytest.mark.parametrize("form", ["json", "png"])
async def test_model_without_the_pictures_says_so(inside: httpx.AsyncClient, form: str) -> None:
    response = await inside.get(
        f"/confusion-matrix/red/red?model=colour&format={form}", headers={"If-None-Match": "*"}
    )
    problem = check(response, 404)
    assert problem.type == "urn:convscope:problem:nothing-to-see"
    assert problem.detail == (
        "colour/1 was exported without the pictures behind its confusion matrix; "
        "`convscope-train export` adds them today"
    )


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("asked", ["NFC", "NFD"])
async def test_class_is_found_in_either_spelling_of_its_letters(
    connect: Connect,
    inside_store: Path,
    tmp_path: Path,
    stored: Literal["NFC", "NFD"],
    asked: Literal["NFC", "NFD"],
) -> None:
    store = copy_store(inside_store, tmp_path / "store")
    path = store / "averaging" / "1"
    names = [unicodedata.normalize(stored, f"{label} ü ạ̈ 각") for label in CLASSES]
    text = (path / EVALUATION).read_text()
    for label, name in zip(CLASSES, names, strict=True):
        text = text.replace(f'"{label}"', json.dumps(name))
    (path / EVALUATION).write_text(text)
    amend(path, classes=names)
    async with connect(store=store, default_model="averaging") as client:
        label = quote(unicodedata.normalize(asked, names[1]))
        cell = (await client.get(f"/confusion-matrix/{label}/{label}")).json()
        matrix = (await client.get("/confusion-matrix")).json()
        image = as_png(solid("red")[0])
        heat = (await client.post(f"/explain?class={label}&method=cam", content=image)).json()
        (prediction,) = (await client.post("/predict", content=image)).json()["predictions"]
    composed = [unicodedata.normalize("NFC", name) for name in names]
    assert cell["true"] == cell["predicted"] == heat["label"] == composed[1]
    assert set(prediction["probabilities"]) == set(matrix["labels"]) == set(composed)
    confused = matrix["top_confusions"][0]
    assert {confused["true"], confused["predicted"]} <= set(composed)


@pytest.mark.parametrize("name", ["x" * 257, "a" + "\u0301\u0323" * 128])
async def test_long_class_is_refused(inside: httpx.AsyncClient, name: str) -> None:
    for path in (f"{quote(name)}/red", f"red/{quote(name)}"):
        response = await inside.get(f"/confusion-matrix/{path}")
        assert response.status_code == 422
        assert "at most 256 characters" in response.json()["detail"]


async def test_sheet_that_is_no_picture_is_the_services_fault(
    connect: Connect,
    inside_store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = copy_store(inside_store, tmp_path / "store")
    path = store / "averaging" / "1"
    with np.load(path / EXAMPLES) as archive:
        arrays = dict(archive)
    np.savez(path / EXAMPLES, **arrays | {"sheet": np.zeros(100, np.uint8)})
    amend(path)
    async with connect(store=store, default_model="averaging") as client:
        response = await client.get("/confusion-matrix/red/red")
        check(response, 500)
        assert "picture" not in response.json()["detail"]
    assert "examples.npz: holds no picture" in capsys.readouterr().err


async def test_documentation_has_the_cell_in_both_forms(inside: httpx.AsyncClient) -> None:
    schema = (await inside.get("/openapi.json")).json()
    operation = schema["paths"]["/confusion-matrix/{true}/{predicted}"]["get"]
    assert set(operation["responses"]["200"]["content"]) == {"image/png", "application/json"}
    assert {"304", "404", "406", "422"} <= set(operation["responses"])
    names = {parameter["name"] for parameter in operation["parameters"]}
    assert names == {"true", "predicted", "model", "version", "scale", "format"}
