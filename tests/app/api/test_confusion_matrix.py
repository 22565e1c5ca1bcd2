import csv
import io

import httpx
import numpy as np
import pytest
from PIL import Image

from app.explore.confusion_matrix import draw_matrix
from tests.support.artifacts import CLASSES, COUNTS
from tests.support.problems import check

pytestmark = pytest.mark.anyio


async def test_json_has_labels_counts_accuracy_classes_and_confusions(
    client: httpx.AsyncClient,
) -> None:
    answer = (await client.get("/confusion-matrix")).json()
    assert answer["labels"] == list(CLASSES)
    assert answer["counts"] == [list(row) for row in COUNTS]
    assert answer["accuracy"] == pytest.approx(50 / 60)
    assert answer["images"] == 60
    assert [row["label"] for row in answer["per_class"]] == list(CLASSES)
    assert answer["top_confusions"] == [{"true": "yellow", "predicted": "red", "count": 3}]
    assert (answer["model"], answer["version"]) == ("colour", "2")
    assert "normalized" not in answer


@pytest.mark.parametrize(("normalize", "axis"), [("true", 1), ("pred", 0), ("all", None)])
async def test_normalized_matrix_sums_to_one_where_it_should(
    client: httpx.AsyncClient, normalize: str, axis: int | None
) -> None:
    answer = (await client.get(f"/confusion-matrix?normalize={normalize}")).json()
    assert answer["normalize"] == normalize
    assert answer["counts"] == [list(row) for row in COUNTS]
    np.testing.assert_allclose(np.sum(answer["normalized"], axis=axis), 1)


async def test_csv_has_a_header_row_and_column(client: httpx.AsyncClient) -> None:
    response = await client.get("/confusion-matrix", headers={"Accept": "text/csv"})
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    header, *rows = csv.reader(io.StringIO(response.text))
    assert header[1:] == list(CLASSES)
    assert [row[0] for row in rows] == list(CLASSES)
    assert [[int(cell) for cell in row[1:]] for row in rows] == [list(row) for row in COUNTS]


async def test_csv_holds_fractions_if_asked(client: httpx.AsyncClient) -> None:
    response = await client.get("/confusion-matrix?format=csv&normalize=true")
    assert response.text.splitlines()[1] == "red,0.7,0.1,0.0,0.0,0.2,0.0"


async def test_png_is_the_drawing(client: httpx.AsyncClient) -> None:
    response = await client.get("/confusion-matrix?format=png&normalize=pred")
    assert response.headers["content-type"] == "image/png"
    assert response.content == draw_matrix(np.array(COUNTS), CLASSES, "pred")
    Image.open(io.BytesIO(response.content)).load()


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("image/*", "image/png"),
        ("text/csv, application/json;q=0.9", "text/csv; charset=utf-8"),
        ("text/html, */*;q=0.1", "application/json"),
    ],
)
async def test_accept_chooses_the_form(
    client: httpx.AsyncClient, accept: str, expected: str
) -> None:
    response = await client.get("/confusion-matrix", headers={"Accept": accept})
    assert response.headers["content-type"] == expected


async def test_form_that_does_not_exist_is_not_acceptable(client: httpx.AsyncClient) -> None:
    response = await client.get("/confusion-matrix", headers={"Accept": "text/html"})
    assert "application/json, image/png, text/csv" in check(response, 406).detail


async def test_client_that_has_it_gets_304(client: httpx.AsyncClient) -> None:
    tags = set()
    for query in ("", "?normalize=true", "?format=csv", "?format=png", "?version=1", "?model=flat"):
        response = await client.get(f"/confusion-matrix{query}")
        tags.add(response.headers["etag"])
        again = await client.get(
            f"/confusion-matrix{query}", headers={"If-None-Match": response.headers["etag"]}
        )
        assert (again.status_code, again.content) == (304, b"")
    assert len(tags) == 6
