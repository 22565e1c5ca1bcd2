"""`CONVSCOPE_PRECISION` from the environment to the answer."""

import json
from pathlib import Path

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

from app.cli import main
from app.errors import SettingsError
from app.settings import PREFIX, read_settings
from tests.conftest import Connect, Picture
from tests.support.artifacts import numpy_predict_int8, solid, write_artifact
from tests.support.servers import CONVSCOPE, failed


@pytest.fixture
def int8_store(tmp_path: Path) -> Path:
    """One model, `small/1`, that can be served in both precisions."""
    store = tmp_path / "store"
    write_artifact(store, "small", "1", int8=True)
    return store


def _red() -> float:
    return float(numpy_predict_int8(solid("red"))[0, 0])


@pytest.mark.anyio
async def test_service_answers_by_the_int8_graph(
    connect: Connect, int8_store: Path, picture: Picture
) -> None:
    async with connect(store=int8_store, default_model="small", precision="int8") as client:
        found: httpx.Response = await client.post(
            "/predict", content=picture("red"), headers={"Content-Type": "image/png"}
        )
        (prediction,) = found.json()["predictions"]
        assert prediction["confidence"] == pytest.approx(_red(), abs=1e-5)
        (model,) = (await client.get("/models")).json()["models"]
        assert model["precisions"] == ["float32", "int8"]


def test_predict_answers_by_the_int8_graph(
    int8_store: Path, picture: Picture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVSCOPE_STORE", str(int8_store))
    monkeypatch.setenv("CONVSCOPE_DEFAULT_MODEL", "small")
    (tmp_path / "red.png").write_bytes(picture("red"))
    confidences = []
    for precision in ("float32", "int8"):
        monkeypatch.setenv("CONVSCOPE_PRECISION", precision)
        result = CliRunner().invoke(main, ["predict", "--json", str(tmp_path / "red.png")])
        assert result.exit_code == 0, result.output
        confidences.append(json.loads(result.stdout)["predictions"][0]["confidence"])
    assert confidences[1] == pytest.approx(_red(), abs=1e-5)
    assert np.abs(confidences[0] - confidences[1]) > 1e-3


def test_predict_with_a_model_without_int8_ends_with_one_line(
    store_path: Path, picture: Picture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVSCOPE_STORE", str(store_path))
    monkeypatch.setenv("CONVSCOPE_DEFAULT_MODEL", "colour")
    monkeypatch.setenv("CONVSCOPE_PRECISION", "int8")
    (tmp_path / "red.png").write_bytes(picture("red"))
    result = CliRunner().invoke(main, ["predict", str(tmp_path / "red.png")])
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    assert line.startswith(f"Error: {store_path}/colour/2: holds no int8 graph")


def test_serve_with_a_model_without_int8_ends_with_one_line(store_path: Path) -> None:
    changes = {"CONVSCOPE_PRECISION": "int8", "CONVSCOPE_LOG_FORMAT": "text"}
    done = failed([*CONVSCOPE, "serve", "--workers", "1"], store_path, **changes)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: {store_path}/colour/1: holds no int8 graph")


@pytest.mark.parametrize("backend", ["torch-cuda", "torch-cpu"])
def test_int8_with_another_backend_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setenv(PREFIX + "PRECISION", "int8")
    monkeypatch.setenv(PREFIX + "BACKEND", backend)
    with pytest.raises(SettingsError) as caught:
        read_settings()
    expected = f"CONVSCOPE_PRECISION=int8: needs CONVSCOPE_BACKEND=onnx-cpu; it is {backend}"
    assert str(caught.value) == expected


def test_precision_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PREFIX + "PRECISION", "int4")
    with pytest.raises(SettingsError, match=r"PRECISION=int4: .*'float32' or 'int8'"):
        read_settings()
