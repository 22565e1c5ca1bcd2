import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from app.cli import main
from tests.conftest import Picture
from tests.support.artifacts import CLASSES, copy_store


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, store_path: Path) -> None:
    monkeypatch.setenv("CONVSCOPE_STORE", str(store_path))
    monkeypatch.setenv("CONVSCOPE_DEFAULT_MODEL", "colour")


def run(*arguments: str | Path, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(main, [str(item) for item in arguments], input=io.BytesIO(stdin))


@pytest.fixture
def images(tmp_path: Path, picture: Picture) -> Sequence[Path]:
    paths = [tmp_path / "red.png", tmp_path / "blue.png"]
    for path in paths:
        path.write_bytes(picture(path.stem))
    return paths


def test_predict_prints_a_line_for_each_image(images: Sequence[Path]) -> None:
    result = run("predict", *images, "--top-k", "2")
    assert result.exit_code == 0
    first, second = result.stdout.splitlines()
    assert first == f"{images[0]}: red 99.8%, magenta 0.1%"
    assert second.startswith(f"{images[1]}: blue 99.8%")


def test_predict_prints_the_answer_of_the_service_as_json(images: Sequence[Path]) -> None:
    result = run("predict", images[0], "--json", "--model", "flat", "--version", "1")
    answer = json.loads(result.stdout)
    assert (answer["model"], answer["version"]) == ("flat", "1")
    (prediction,) = answer["predictions"]
    assert prediction["label"] == "red"
    assert prediction["filename"] == str(images[0])
    assert set(prediction["probabilities"]) == set(CLASSES)


def test_predict_reads_standard_input(picture: Picture) -> None:
    result = run("predict", "-", stdin=picture("green"))
    assert result.stdout.startswith("-: green")


def test_predict_says_a_line_for_each_bad_file_and_goes_on(
    images: Sequence[Path], tmp_path: Path
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    result = run("predict", tmp_path / "none.png", images[0], text, tmp_path)
    assert result.exit_code == 1
    assert result.stdout.startswith(f"{images[0]}: red")
    missing, no_image, directory = result.stderr.splitlines()
    assert missing == f"{tmp_path / 'none.png'}: No such file or directory"
    assert no_image.startswith(f"{text}: not an image")
    assert directory == f"{tmp_path}: Is a directory"


def test_predict_computes_many_images_in_batches(
    images: Sequence[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVSCOPE_MAX_BATCH", "2")
    result = run("predict", *images, *images, images[0])
    labels = [line.partition(": ")[2].split()[0] for line in result.stdout.splitlines()]
    assert labels == ["red", "blue", "red", "blue", "red"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["predict", "x.png", "--model", "vgg"], 1, "no model 'vgg'; there are: colour, flat"),
        (["predict", "x.png", "--model", "colour/2"], 1, "no model 'colour/2'; there are: colour"),
        (["predict", "x.png", "--top-k", "9"], 1, "top_k=9: the limit is the model's 6 classes"),
        (["predict", "x.png", "--top-k", "0"], 2, "'--top-k'"),
        (["predict"], 2, "Missing argument"),
        (["serve", "--port", "0"], 2, "'--port'"),
        (["serve", "--workers", "0"], 2, "'--workers'"),
        (["bake"], 2, "No such command"),
    ],
)
def test_wrong_usage_is_said_without_a_traceback(
    arguments: list[str], status: int, message: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == status
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_models_are_listed_with_the_default() -> None:
    result = run("models")
    header, *rows = [line.split() for line in result.stdout.splitlines()]
    assert header[:2] == ["MODEL", "ARCHITECTURE"]
    assert rows == [
        ["colour/1", "mean-colour", "18", "83.33%"],
        ["colour/2", "mean-colour", "18", "83.33%", "default"],
        ["flat/1", "mean-colour", "18", "83.33%"],
    ]


def test_models_are_listed_as_json() -> None:
    models = json.loads(run("models", "--json").stdout)["models"]
    assert [(model["name"], model["default"]) for model in models] == [
        ("colour", False),
        ("colour", True),
        ("flat", False),
    ]


def test_wrong_setting_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVSCOPE_THREADS", "0")
    for command in (["models"], ["serve"], ["predict", "x"]):
        result = run(*command)
        assert result.exit_code == 1
        (line,) = result.stderr.splitlines()
        assert line.startswith("Error: CONVSCOPE_THREADS=0: ")


def test_damaged_model_is_one_line(
    images: Sequence[Path], store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = copy_store(store_path, tmp_path / "store")
    (store / "colour" / "2" / "model.onnx").write_bytes(b"x")
    monkeypatch.setenv("CONVSCOPE_STORE", str(store))
    result = run("predict", images[0])
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "model.onnx: holds 1 bytes; manifest.json says" in line
