"""The whole line on real images: train, evaluate, export and compare by command, serve, ask."""

import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from app.artifact.directory import Artifact, read_artifact
from tests.support import sample
from tests.support.pictures import as_png
from tests.support.servers import started


def _training(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "training.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def artifact(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    place = tmp_path_factory.mktemp("line")
    run, store = place / "run", place / "store"
    options = ["--epochs", "6", "--batch-size", "16", "--learning-rate", "0.0005"]
    _training("train", "simple-cnn", "--data-dir", image_folder, "--out", run, *options)
    _training("evaluate", run)
    _training("export", run, "--store", store, "--name", "sampled")
    return read_artifact(store / "sampled" / "1")


@pytest.fixture(scope="module")
def client(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    command = [str(Path(sys.executable).with_name("convscope")), "serve"]
    store = artifact.path.parent.parent
    log = tmp_path_factory.mktemp("serve") / "log"
    with started(command, store, log, CONVSCOPE_DEFAULT_MODEL="") as server:
        with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as connected:
            yield connected
        assert server.stop() == 0


def test_the_service_gives_the_accuracy_that_was_measured(
    client: httpx.Client, artifact: Artifact
) -> None:
    images, labels = sample.read("test")
    right = 0
    for start in range(0, len(images), 40):
        parts = [("file", (f"{i}.png", as_png(images[i]))) for i in range(start, start + 40)]
        answer = client.post("/predict", files=parts, params={"top_k": 1}).raise_for_status()
        for prediction in answer.json()["predictions"]:
            right += prediction["class_id"] == labels[int(prediction["filename"][:-4])]
    assert right / len(images) == pytest.approx(artifact.classifier.test.accuracy)
    assert right / len(images) > 0.2


def test_one_image_is_answered_with_the_artifacts_probabilities(
    client: httpx.Client, artifact: Artifact
) -> None:
    golden = artifact.arrays("golden.npz")
    for image, expected in zip(golden["images"], golden["probabilities"], strict=True):
        answer = client.post("/predict", content=as_png(image), params={"top_k": 10})
        content = answer.raise_for_status().json()
        assert (content["model"], content["version"]) == ("sampled", "1")
        (prediction,) = content["predictions"]
        found = [prediction["probabilities"][label] for label in artifact.manifest.classes]
        assert found == pytest.approx(expected.tolist(), abs=1e-4)


def test_the_filters_are_the_first_layers_weights(client: httpx.Client, artifact: Artifact) -> None:
    weights = artifact.filters()["conv1"]
    content = client.get("/filters", params={"format": "json"}).raise_for_status().json()
    assert np.allclose(content["weights"], weights, atol=1e-6)
    picture = client.get("/filters/3", params={"scale": 1}).raise_for_status().content
    pixels = np.asarray(Image.open(io.BytesIO(picture)), float)
    kernel = weights[3].transpose(1, 2, 0)
    scaled = 255 * (kernel - kernel.min()) / (kernel.max() - kernel.min())
    assert np.abs(pixels - scaled).max() <= 1


def test_the_confusion_matrix_is_the_evaluations(client: httpx.Client, artifact: Artifact) -> None:
    expected = np.array(artifact.evaluation().confusion_matrix)
    text = client.get("/confusion-matrix", params={"format": "csv"}).raise_for_status().text
    header, *rows = csv.reader(io.StringIO(text))
    assert header[1:] == [row[0] for row in rows] == sample.class_names()
    assert np.array_equal([[int(cell) for cell in row[1:]] for row in rows], expected)


def test_compare_puts_the_store_side_by_side(artifact: Artifact, tmp_path: Path) -> None:
    out = tmp_path / "comparison"
    printed = _training("compare", "--store", artifact.path.parent.parent, "--out", out)
    assert "sampled/1" in printed
    (row,) = json.loads((out / "comparison.json").read_text())["models"]
    assert row["accuracy"] == artifact.classifier.test.accuracy
    assert row["latency_ms"] > 0
    assert "1,070,986" in (out / "comparison.md").read_text()
    assert {path.name for path in out.glob("*.png")} == {
        "accuracy_and_cost.png",
        "accuracy_by_class.png",
        "learning_curves.png",
    }
