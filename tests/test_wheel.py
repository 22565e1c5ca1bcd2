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


def _install_alone(wheel: Path, place: Path) -> None:
    """Make an environment with the wheel and without its dependencies."""
    venv.create(place)
    _pip(f"--python={place / 'bin' / 'python'}", "install", "--no-deps", "--no-index", wheel)


@pytest.fixture(scope="module")
def convscope(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of an environment with the wheel, which finds the dependencies in this one."""
    place = tmp_path_factory.mktemp("environment")
    _install_alone(wheel, place)
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


def test_commands_in_an_empty_folder_use_the_model_of_the_wheel(
    convscope: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    def run(*arguments: str | Path) -> tuple[str, str]:
        done = subprocess.run(
            [convscope, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            check=True,
        )
        return done.stdout, done.stderr

    predicted, said = run("predict", CAT)
    assert predicted.startswith(f"{CAT}: cat ")
    assert said == ""
    _, said = run("models")
    assert "CONVSCOPE_STORE names a folder of more" in said


def test_training_without_its_packages_names_the_wheel_that_installs_them(
    wheel: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    _install_alone(wheel, tmp_path)
    done = subprocess.run(
        [tmp_path / "bin" / "convscope-train", "--help"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert "click is not installed" in done.stderr
    assert f"`pip install '{wheel.name}[train]'`" in done.stderr


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
