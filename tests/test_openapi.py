"""OpenAPI says what the service does: schemathesis tries every operation, with all its checks."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import ROOT
from tests.support.servers import CONVSCOPE, Server, started

pytestmark = pytest.mark.slow

SCHEMATHESIS = str(Path(sys.executable).with_name("schemathesis"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("described") / "log"
    served = {"CONVSCOPE_MODELS": "simple-cnn,resnet20", "CONVSCOPE_DEFAULT_MODEL": "simple-cnn"}
    command = [*CONVSCOPE, "serve", "--workers", "1"]
    with started(command, ROOT / "models_store", log, **served) as running:
        yield running


def test_schemathesis_finds_no_difference(server: Server, tmp_path: Path) -> None:
    options = ["--config-file", str(ROOT / "schemathesis.toml"), "--no-color"]
    command = [SCHEMATHESIS, *options, "run", "--checks", "all", f"{server.url}/openapi.json"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
