"""The comparison of servers: its peers answer, and a server without figures is an error."""

import dataclasses
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.harness.payloads import payloads
from bench.harness.processes import ServerProcess, free_port
from bench.harness.requests import ask
from bench.serving import comparison, report
from bench.serving.answers import check
from bench.serving.results import Run
from bench.serving.servers import SERVERS
from tests.support.servers import HOST, START_SECONDS

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (cc)")


@pytest.fixture
def _own_sigterm() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.slow
def test_the_tutorials_service_gives_the_models_answers(tmp_path: Path) -> None:
    server, png, port = SERVERS["tutorial"], payloads()["png"], free_port()
    first = server.wrap(png, png.requests[0])
    assert first is not None
    with ServerProcess(
        [sys.executable, *server.command(port)[1:]],
        directory=server.directory,
        environment={**os.environ, **server.environment},
        log=tmp_path / "log",
    ) as process:
        process.wait_until(lambda: ask((HOST, port), first)[0] == 200, START_SECONDS)
        check(server, (HOST, port), png, 16)


@needs_cc
@pytest.mark.usefixtures("_own_sigterm")
def test_a_run_without_a_servers_figures_ends_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no model')"]
    broken = dataclasses.replace(SERVERS["ours"], command=lambda _: command, directory=tmp_path)
    monkeypatch.setattr(comparison, "SERVERS", {"ours": broken})
    for module in (comparison, report):
        monkeypatch.setattr(module, "BUILD", tmp_path)
    out = tmp_path / "results.json"

    done = CliRunner().invoke(comparison.main, ["--quick", "--only", "ours", "--out", str(out)])

    assert done.exit_code == 1
    assert f"Error: not measured: {broken.title}: ended with status 1: no model" in done.output
    assert [one.failed for one in Run.read(out).servers["ours"].rounds] == [
        "ended with status 1: no model"
    ]
