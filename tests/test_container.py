"""The image and the compose file: what can be told by reading them, and what only a run shows."""

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from app.settings import PREFIX, Settings
from bench.harness.processes import free_port
from tests.deploy.chart import HELM, pod_of, podman_arguments, render

REPOSITORY = Path(__file__).parents[1]
IMAGE = "localhost/convscope-test:local"
PROBE = '["python","/probe/container_probe.py"]'
PROBE_VOLUME = f"--volume={REPOSITORY / 'tests' / 'support'}:/probe:ro"
RUN_ARGUMENTS = [
    "--read-only",
    "--tmpfs=/tmp",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    PROBE_VOLUME,
]


def test_dockerfile_copies_exactly_what_is_sent_to_the_build() -> None:
    dockerfile = (REPOSITORY / "Dockerfile").read_text()
    sent = set(re.findall(r"^!(\S+)$", (REPOSITORY / ".dockerignore").read_text(), re.MULTILINE))
    copied = {
        source
        for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE)
        for source in sources.split()
    }
    assert copied == sent
    assert [source for source in copied if not (REPOSITORY / source).exists()] == []


def test_models_of_the_image_are_the_newest_of_their_names() -> None:
    dockerfile = (REPOSITORY / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (models_store/\S+)/(\d+) \1/\2$", dockerfile, re.MULTILINE)
    assert copied
    for model, version in copied:
        newest = max(int(path.name) for path in (REPOSITORY / model).iterdir())
        assert int(version) == newest, model


@pytest.mark.slow
def test_dependencies_have_wheels_for_arm64(tmp_path: Path) -> None:
    # The extra has none: mahotas is compiled there, as the Dockerfile says.
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    resolve = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
    target = [f"--target={tmp_path}", "--only-binary=:all:", "--python-version=3.11"]
    platforms = ["--platform=manylinux_2_28_aarch64", "--platform=manylinux2014_aarch64"]
    run = subprocess.run(
        [*resolve, *target, *platforms, *project["dependencies"]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "onnxruntime" in run.stdout.splitlines()[-1]


def test_variables_set_for_the_container_are_settings() -> None:
    text = "".join((REPOSITORY / name).read_text() for name in ("Dockerfile", "compose.yaml"))
    variables = {name.lower() for name in re.findall(rf"\b{PREFIX}([A-Z_]+)\b", text)}
    assert variables
    assert variables <= Settings.model_fields.keys()


def test_compose_kills_no_service_that_still_drains() -> None:
    compose = (REPOSITORY / "compose.yaml").read_text()
    [grace] = re.findall(r"stop_grace_period: (\d+)s", compose)
    assert int(grace) > Settings.model_fields["shutdown_seconds"].default


def test_log_of_a_composed_service_is_bounded() -> None:
    compose = (REPOSITORY / "compose.yaml").read_text()
    shared = compose.split("x-service: &service")[1].split("\nservices:")[0]
    [options] = re.findall(
        r"^  logging:\n    driver: json-file\n    options: (.+)$", shared, re.MULTILINE
    )
    assert re.fullmatch(r'\{max-size: \d+m, max-file: "\d+"\}', options)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_image_and_compose_file_serve_predictions() -> None:
    script = os.environ.get("CONVSCOPE_CONTAINER_CHECK")
    if script:
        check_by_script(script)
    elif docker_engine_answers():
        check_by_docker()
    else:
        pytest.skip("no Docker engine answers, and CONVSCOPE_CONTAINER_CHECK names no script")


def check_by_script(script: str) -> None:
    """Let the script build, lint and run everything: it needs no Docker engine, but root.

    It runs the container's health check, and by that the probe. That the image has a health check
    of its own it verifies itself; that this one succeeds shows in compose, which waits for it.
    What the probe finds wrong stands in the container's log, among the script's logs.
    """
    if os.geteuid() != 0:
        pytest.skip("CONVSCOPE_CONTAINER_CHECK names a script that needs root")
    ready = "http://127.0.0.1:8000/health/ready"
    settings = {
        "CONTEXT": str(REPOSITORY),
        "IMAGE": IMAGE,
        "RUN_ARGS": " ".join([*RUN_ARGUMENTS, "--read-only-tmpfs=false", f"--health-cmd={PROBE}"]),
        "URL": ready,
        "COMPOSE_URLS": ready,
    }
    run = subprocess.run(
        [script], env={**os.environ, **settings}, capture_output=True, text=True, check=False
    )
    print(run.stdout)
    if run.returncode != 0:
        folder = os.environ.get("CTR_DIR")
        log = Path(folder, "log", "run-container.log") if folder else None
        pytest.fail(log.read_text() if log and log.exists() else run.stderr)
    passed = set(re.findall(r"^ok +(\S+)", run.stdout, re.MULTILINE))
    assert {"build", "run-http", "run-not-root", "run-health", "run-stop"} <= passed
    assert {"compose-up", "compose-ask", "compose-down"} <= passed
    if HELM:
        check_pod_by_script(script, settings)


def check_pod_by_script(script: str, settings: dict[str, str]) -> None:
    """Let the script run the image once more, as the chart's pod."""
    pod = podman_arguments(pod_of(render()))
    arguments = [*pod, PROBE_VOLUME, f"--health-cmd={PROBE}"]
    run = subprocess.run(
        [script, "run"],
        env={**os.environ, **settings, "RUN_ARGS": " ".join(arguments)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout


def check_by_docker() -> None:
    docker("build", "--tag", IMAGE, str(REPOSITORY))
    container = docker("run", "--detach", *RUN_ARGUMENTS, IMAGE)
    try:
        wait_until_healthy(container)
        docker("exec", container, "python", "/probe/container_probe.py")
        docker("stop", "--time=20", container)
        killed = docker("inspect", "--format={{.State.ExitCode}}", container) == "137"
        assert not killed, "SIGTERM did not stop it"
    finally:
        docker("rm", "--force", "--volumes", container)
    with composed() as url:
        assert httpx.get(f"{url}/health/ready", trust_env=False).status_code == 200


def docker(*arguments: str, **environment: str) -> str:
    run = subprocess.run(
        ["docker", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, f"docker {' '.join(arguments)}: {run.stderr}"
    return run.stdout.strip()


def docker_engine_answers() -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


def wait_until_healthy(container: str) -> None:
    deadline = time.monotonic() + 60
    while (state := docker("inspect", "--format={{.State.Health.Status}}", container)) != "healthy":
        if state == "unhealthy" or time.monotonic() > deadline:
            pytest.fail(f"the container is {state}: {docker('logs', container)}")
        time.sleep(0.5)


@contextmanager
def composed() -> Iterator[str]:
    """Bring the compose project up under another name and port, and take it down afterwards."""
    port = str(free_port())
    project = ("compose", "--project-name", "convscope-test")
    try:
        docker(*project, "up", "--build", "--detach", "--wait", PORT=port)
        yield f"http://127.0.0.1:{port}"
    finally:
        docker(*project, "down", "--volumes", PORT=port)
