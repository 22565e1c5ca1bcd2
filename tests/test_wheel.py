"""The wheel is enough: installed into an empty environment, it predicts and serves anywhere."""

import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from bench import ROOT
from bench.harness.processes import ServerProcess, free_port
from tests.support.servers import HOST, START_SECONDS, is_ready, post

pytestmark = pytest.mark.slow

MOST_BYTES = 8_000_000
CAT = ROOT / "docs" / "images" / "cat.png"


def _pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, *map(str, arguments)], check=True, timeout=START_SECONDS)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", place, ROOT)
    (path,) = place.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def convscope(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of an environment with the wheel, which finds the dependencies in this one."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place)
    _pip(f"--python={place / 'bin' / 'python'}", "install", "--no-deps", "--no-index", wheel)
    (packages,) = place.glob("lib/python*/site-packages")
    # A `.pth` file there, such as that of the checkout, is not followed.
    dependencies = (path for path in sys.path if path.endswith("site-packages"))
    (packages / "dependencies.pth").write_text("\n".join(dependencies))
    return place / "bin" / "convscope"


@pytest.fixture
def environment() -> dict[str, str]:
    ours = re.compile("CONVSCOPE_|PYTHONPATH|PROMETHEUS_")
    return {name: value for name, value in os.environ.items() if not ours.match(name)}


def test_wheel_carries_one_model_and_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size <= MOST_BYTES
    names = zipfile.ZipFile(wheel).namelist()
    models = {name.rpartition("/")[0] for name in names if name.startswith("models_store/")}
    assert len(models) == 1


def test_predict_in_an_empty_folder_uses_the_model_of_the_wheel(
    convscope: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [convscope, "predict", CAT],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    assert done.stdout.startswith(f"{CAT}: cat ")
    assert "CONVSCOPE_STORE names a folder of more" in done.stderr
    assert done.returncode == 0


def test_serve_in_an_empty_folder_uses_the_model_of_the_wheel(
    convscope: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    port, log, empty = free_port(), tmp_path / "log", tmp_path / "empty"
    empty.mkdir()
    command = [str(convscope), "serve", "--workers", "1", "--port", str(port)]
    with ServerProcess(command, directory=empty, environment=environment, log=log) as process:
        process.wait_until(lambda: is_ready(port), START_SECONDS)
        answer = post(f"http://{HOST}:{port}/predict", content=CAT.read_bytes()).json()
    assert answer["predictions"][0]["label"] == "cat"
    assert "CONVSCOPE_STORE names a folder of more" in log.read_text()
