import asyncio
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.api.schemas import Predictions
from app.errors import ArtifactError
from app.problems import Problem
from app.tasks.classification import class_scores
from bench.harness.requests import message
from tests.conftest import Connect, Picture
from tests.support.answers import read_answer
from tests.support.artifacts import CLASSES, amend, confidence, numpy_predict, write_artifact
from tests.support.fakes import BrightnessBackend
from tests.support.pictures import as_png
from tests.support.problems import check
from tests.support.servers import sockets

pytestmark = pytest.mark.anyio

LAC = (0.0,) * 85 + (0.9,) * 13 + (1.0,)
APS = (0.8,) * 99
BY_CLASS = tuple((float(place % 3 > 0),) * 99 for place in range(len(CLASSES)))
MIXED = np.full((32, 32, 3), (200, 160, 110), np.uint8)


@pytest.fixture(scope="module")
def sure_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """colour/1, exported without thresholds, and colour/2 with those above and others for int8."""
    store = tmp_path_factory.mktemp("sure")
    write_artifact(store, "colour", "1", int8=True)
    path = write_artifact(store, "colour", "2", int8=True).path
    amend(
        path,
        confidence={
            "float32": confidence(LAC, APS, 0.5, BY_CLASS),
            "int8": confidence((1.0,) * 99, APS, 0.9),
        },
    )
    return store


@pytest.fixture
async def sure(connect: Connect, sure_store: Path) -> Any:
    async with connect(store=sure_store) as client:
        yield client


async def _set(client: httpx.AsyncClient, query: str) -> Any:
    response = await client.post(f"/predict?{query}", content=as_png(MIXED))
    assert response.status_code == 200
    (prediction,) = response.json()["predictions"]
    return prediction["prediction_set"]


async def test_set_holds_every_class_that_is_likely_enough(sure: httpx.AsyncClient) -> None:
    (row,) = numpy_predict(MIXED[np.newaxis])
    expected = [name for name, value in zip(CLASSES, row, strict=True) if value >= 0.1]
    assert 1 < len(expected) < len(CLASSES)
    assert await _set(sure, "coverage=0.9&sets=lac") == expected
    assert await _set(sure, "coverage=0.99&sets=lac") == list(CLASSES)
    assert await _set(sure, "coverage=0.5&sets=lac") == []


@pytest.mark.parametrize(
    ("coverage", "empty"),
    [("0.01", True), ("0.849", True), ("0.85", True), ("0.8501", False), ("0.86", False)],
)
async def test_coverage_is_rounded_up_to_a_whole_percent(
    sure: httpx.AsyncClient, coverage: str, empty: bool
) -> None:
    assert (await _set(sure, f"coverage={coverage}&sets=lac") == []) is empty


@pytest.mark.parametrize("percent", [1, 7, 29, 57, 58, 99])  # 0.07 * 100 is above 7
async def test_every_percent_has_its_own_threshold(
    connect: Connect, tmp_path: Path, percent: int
) -> None:
    thresholds = tuple(float(place == percent) for place in range(1, 100))
    path = write_artifact(tmp_path, "colour", "1").path
    amend(path, confidence={"float32": confidence(thresholds, APS, 0.5)})
    async with connect(store=tmp_path) as client:
        assert await _set(client, f"coverage={percent / 100}&sets=lac") == list(CLASSES)


async def test_aps_has_thresholds_of_its_own(sure: httpx.AsyncClient) -> None:
    images = MIXED[np.newaxis]
    (scores,) = class_scores(numpy_predict(images), images, "aps")
    expected = [name for name, score in zip(CLASSES, scores, strict=True) if score <= 0.8]
    assert expected
    assert await _set(sure, "coverage=0.5&sets=aps") == expected
    assert await _set(sure, "coverage=0.5") == expected
    assert await _set(sure, "coverage=0.5&sets=lac") == []


async def test_every_class_may_have_a_threshold_of_its_own(sure: httpx.AsyncClient) -> None:
    expected = [name for place, name in enumerate(CLASSES) if place % 3]
    assert await _set(sure, "coverage=0.9&sets=class-conditional") == expected


async def test_int8_has_thresholds_of_its_own(connect: Connect, sure_store: Path) -> None:
    async with connect(store=sure_store, precision="int8") as client:
        assert await _set(client, "coverage=0.5&sets=lac") == list(CLASSES)


async def test_every_image_has_its_own_set_beside_its_name(
    sure: httpx.AsyncClient, picture: Picture
) -> None:
    parts = [
        ("file", (f"{name}.png", picture(name), "image/png")) for name in ("red", "blue", "cyan")
    ]
    response = await sure.post("/predict?coverage=0.9&top_k=1", files=parts)
    answer = Predictions.model_validate_json(response.content, strict=True)
    assert [item.prediction_set for item in answer.predictions] == [["red"], ["blue"], ["cyan"]]
    assert [item.filename for item in answer.predictions] == ["red.png", "blue.png", "cyan.png"]
    assert answer.model_dump(exclude_none=True) == response.json()


async def test_there_is_no_set_unless_it_is_asked_for(
    sure: httpx.AsyncClient, picture: Picture
) -> None:
    for query in ("", "?sets=aps"):
        (prediction,) = (await sure.post(f"/predict{query}", content=picture("red"))).json()[
            "predictions"
        ]
        assert "prediction_set" not in prediction


@pytest.mark.parametrize("method", ["lac", "class-conditional"])
async def test_method_of_sets_without_coverage_is_refused_on_both_ways(
    sure: httpx.AsyncClient, picture: Picture, method: str
) -> None:
    detail = f"sets={method} needs coverage, for example coverage=0.9"
    routed = await sure.post(f"/predict?sets={method}", content=picture("red"))
    assert check(routed, 422).detail == detail
    async with sockets(sure) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(message(f"POST /predict?sets={method}", picture("red")))
        answer = await read_answer(reader)
        writer.close()
    assert answer.status == 422
    assert Problem.model_validate_json(answer.body).detail == detail


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("coverage=1", "coverage=1: Input should be less than or equal to 0.99"),
        ("coverage=0", "coverage=0: Input should be greater than or equal to 0.01"),
        ("coverage=0.991", "coverage=0.991: Input should be less than or equal to 0.99"),
        ("coverage=-0.5", "coverage=-0.5: Input should be greater than or equal to 0.01"),
        ("coverage=nan", "coverage=nan: Input should be"),
        ("coverage=inf", "coverage=inf: Input should be less than or equal to 0.99"),
        ("coverage=most", "coverage=most: Input should be a valid number"),
        (
            "coverage=0.9&sets=raps",
            "sets=raps: Input should be 'lac', 'aps' or 'class-conditional'",
        ),
    ],
)
async def test_value_that_is_not_allowed_is_named_with_its_limit(
    sure: httpx.AsyncClient, picture: Picture, query: str, detail: str
) -> None:
    response = await sure.post(f"/predict?{query}", content=picture("red"))
    assert check(response, 422).detail.startswith(detail)


async def test_model_without_thresholds_says_so_and_classifies(
    sure: httpx.AsyncClient, picture: Picture
) -> None:
    response = await sure.post("/predict?version=1&coverage=0.9", content=picture("red"))
    problem = check(response, 404)
    assert problem.type == "urn:convscope:problem:nothing-to-see"
    assert problem.detail == (
        "coverage=0.9, sets=aps: colour/1 was exported without the thresholds of these sets; "
        "`convscope-train export` adds them today"
    )
    assert (await sure.post("/predict?version=1", content=picture("red"))).status_code == 200


async def test_image_above_the_threshold_is_said_to_be_foreign(
    connect: Connect, sure_store: Path
) -> None:
    pictures = [as_png(np.full((32, 32, 3), level, np.uint8)) for level in (51, 204)]
    parts = [("file", ("a.png", content, "image/png")) for content in pictures]
    for precision, foreign in (("float32", [False, True]), ("int8", [False, False])):
        async with connect(BrightnessBackend(), store=sure_store, precision=precision) as client:
            answer = (await client.post("/predict?coverage=0.9", files=parts)).json()
        found = answer["predictions"]
        assert [item["ood_score"] for item in found] == pytest.approx([0.2, 0.8], rel=1e-5)
        assert [item["out_of_distribution"] for item in found] == foreign


async def test_score_without_a_threshold_is_kept_to_oneself(
    connect: Connect, sure_store: Path, picture: Picture
) -> None:
    async with connect(BrightnessBackend(), store=sure_store) as client:
        response = await client.post("/predict?version=1", content=picture("red"))
    (prediction,) = response.json()["predictions"]
    assert not {"ood_score", "out_of_distribution"} & prediction.keys()


async def test_graph_without_a_score_has_none_in_its_answer(
    sure: httpx.AsyncClient, picture: Picture
) -> None:
    (prediction,) = (await sure.post("/predict", content=picture("red"))).json()["predictions"]
    assert not {"ood_score", "out_of_distribution"} & prediction.keys()


async def test_manifest_has_what_the_thresholds_are_of(sure: httpx.AsyncClient) -> None:
    manifest = (await sure.get("/models/colour/versions/2")).json()
    assert manifest["confidence"]["float32"] == confidence(LAC, APS, 0.5) | {
        "conformal": {
            "lac": list(LAC),
            "aps": list(APS),
            "class_conditional": [list(thresholds) for thresholds in BY_CLASS],
            "measured": [],
        }
    }
    assert "confidence" not in (await sure.get("/models/colour/versions/1")).json()


async def test_manifest_that_lacks_thresholds_of_a_class_is_refused(tmp_path: Path) -> None:
    path = write_artifact(tmp_path, "colour", "1").path
    said = r"class_conditional has thresholds of 2 classes; there are 6"
    with pytest.raises(ArtifactError, match=said):
        amend(path, confidence={"float32": confidence(LAC, APS, 0.5, BY_CLASS[:2])})


async def test_documentation_has_the_parameters_and_what_they_give(
    sure: httpx.AsyncClient,
) -> None:
    schema = (await sure.get("/openapi.json")).json()
    parameters = {item["name"]: item for item in schema["paths"]["/predict"]["post"]["parameters"]}
    assert {"coverage", "sets"} <= parameters.keys()
    assert parameters["sets"]["schema"]["default"] == "aps"
    fields = schema["components"]["schemas"]["Prediction"]["properties"]
    assert {"prediction_set", "ood_score", "out_of_distribution"} <= fields.keys()
