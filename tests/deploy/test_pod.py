"""The chart's pod, run: command, user, mounts, variables, probes and its end, without a cluster.

A process stands in for the container (run_container.sh) and has its rights, but no seccomp
profile. The image's parts come from the checkout. A thread stands in for the kubelet and the
Service: it asks the probes of the chart at their intervals, and takes out a pod that is not ready.
"""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from bench import ROOT
from bench.harness.processes import ServerProcess, free_port
from tests.conftest import Picture
from tests.deploy.chart import Manifest, needs_helm, pod_of, render
from tests.support.servers import CONVSCOPE, HOST, START_SECONDS

SERVICE_STAGE = (ROOT / "Dockerfile").read_text().split("\nFROM runtime AS service\n")[1]
RUN_CONTAINER = str(ROOT / "tests" / "deploy" / "run_container.sh")
CLIENTS = 6


def can_isolate() -> bool:
    """Whether this user may make mount namespaces, and has the programs for it."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("setpriv"):
        return False
    return subprocess.run(["unshare", "--mount", "true"], check=False).returncode == 0


needs_isolation = pytest.mark.skipif(
    not can_isolate(), reason="only root can stand in for a container runtime, with util-linux"
)


@dataclass
class Pod:
    """A running pod.

    Attributes:
        process: its only process that the kubelet knows.
        container: its container in the chart.
        port: its port on this machine, which its pods share.
        in_service: whether the Service sends requests to it.
        unready_at: `time.monotonic()` when a readiness probe failed first.
    """

    process: ServerProcess
    container: Manifest
    port: int
    in_service: bool = False
    unready_at: float | None = None

    def passes(self, name: str) -> bool:
        """Whether one probe succeeds."""
        probe = self.container[name]
        assert probe["httpGet"]["port"] == "http"
        try:
            answer = httpx.get(
                f"http://{HOST}:{self.port}{probe['httpGet']['path']}",
                timeout=probe["timeoutSeconds"],
                trust_env=False,
            )
        except httpx.HTTPError:
            return False
        return 200 <= answer.status_code < 400

    def start(self) -> None:
        """Wait for the startup probe, as the kubelet does before the others."""
        probe = self.container["startupProbe"]
        seconds = probe["periodSeconds"] * probe["failureThreshold"]
        self.process.wait_until(lambda: self.passes("startupProbe"), min(seconds, START_SECONDS))
        self.in_service = self.passes("readinessProbe")

    def watch(self, stopped: threading.Event) -> None:
        """Ask for readiness at the chart's intervals until the pod or the test ends."""
        probe, failures = self.container["readinessProbe"], 0
        while not stopped.wait(probe["periodSeconds"]) and self.process.alive:
            failures = 0 if self.passes("readinessProbe") else failures + 1
            if failures and self.unready_at is None:
                self.unready_at = time.monotonic()
            self.in_service = failures < probe["failureThreshold"]


def image_variables() -> dict[str, str]:
    """Return the variables that the image sets; PYTHONPATH stands in for an installation."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    found = dict(re.findall(r"\b(CONVSCOPE_\w+|PYTHON[A-Z]+)=(\S+)", text.split("AS runtime")[1]))
    del found["CONVSCOPE_BACKEND"]  # of the image for GPUs
    return {**found, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(ROOT)}


def command(container: Manifest, port: int) -> list[str]:
    """Return what the image runs, unless the chart says otherwise, at another port."""
    [entrypoint] = re.findall(r"^ENTRYPOINT (\[.+\])$", SERVICE_STAGE, re.MULTILINE)
    [arguments] = re.findall(r"^CMD (\[.+\])$", SERVICE_STAGE, re.MULTILINE)
    assert entrypoint == '["convscope"]'
    assert not container.keys() & {"command", "args"}
    words = re.findall(r'"(.+?)"', arguments)
    assert words[-2:] == ["--port", "8000"]
    return [*CONVSCOPE, *words[:-1], str(port)]


def mounts(pod: Manifest, container: Manifest) -> list[str]:
    """Return the mounts of the pod's volumes, and of the image's files, which may lie below one."""
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    found = []
    for mount in container["volumeMounts"]:
        assert volumes[mount["name"]]["emptyDir"]["medium"] == "Memory"
        found.append(f"tmpfs:{mount['mountPath']}")
    found.append(f"{ROOT / 'models_store'}:/models")
    present = [Path("/usr")]
    for folder in (ROOT, Path(sys.prefix), Path(sys.base_prefix)):
        if not any(folder.is_relative_to(path) for path in present):
            present.append(folder)
            found.append(f"{folder}:{folder}")
    return found


@contextmanager
def running(pod: Manifest, folder: Path) -> Iterator[Pod]:
    [container] = pod["containers"]
    port = free_port()
    folder.mkdir()
    security = pod["securityContext"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    given = {variable["name"]: variable["value"] for variable in container["env"]}
    isolated = ["unshare", "--mount", RUN_CONTAINER, str(folder), str(security["runAsUser"])]
    with ServerProcess(
        [*isolated, *mounts(pod, container), "--", *command(container, port)],
        directory=ROOT,
        environment={**image_variables(), **given},
        log=folder.with_suffix(".log"),
    ) as process:
        yield Pod(process, container, port)


class Clients:
    """Callers of a Service, each on kept connections to all pods that are in service."""

    def __init__(self, pods: list[Pod], picture: bytes) -> None:
        self._pods = pods
        self._picture = picture
        self._stopped = threading.Event()
        self.answered = dict.fromkeys((pod.port for pod in pods), 0)
        self.failed = list[str]()

    def run(self) -> None:
        with httpx.Client(trust_env=False, timeout=30) as session:
            for turn in range(1_000_000):
                if self._stopped.is_set():
                    return
                if in_service := [pod for pod in self._pods if pod.in_service]:
                    self._ask(session, in_service[turn % len(in_service)])
                else:  # probes of a busy machine were late
                    time.sleep(0.05)

    def _ask(self, session: httpx.Client, pod: Pod) -> None:
        try:
            answer = session.post(f"http://{HOST}:{pod.port}/predict", content=self._picture)
        except httpx.HTTPError as exc:
            self.failed.append(f"{pod.port}: {exc!r}")
            return
        if answer.status_code == 200:
            self.answered[pod.port] += 1
        else:
            self.failed.append(f"{pod.port}: {answer.status_code} {answer.text}")

    def stop(self) -> None:
        self._stopped.set()


@needs_helm
@needs_isolation
@pytest.mark.slow
def test_pod_is_replaced_under_load_without_a_failed_request(
    tmp_path: Path, picture: Picture
) -> None:
    pod = pod_of(render(settings__models="simple-cnn", settings__max_wait_ms="5000"))
    with running(pod, tmp_path / "old") as old, running(pod, tmp_path / "new") as new:
        for each in (old, new):
            each.start()
            assert each.in_service
        check_rights(old, pod["securityContext"]["runAsUser"])
        clients = Clients([old, new], picture("red"))
        stopped = threading.Event()
        threads = [threading.Thread(target=clients.run) for _ in range(CLIENTS)]
        threads += [threading.Thread(target=each.watch, args=[stopped]) for each in (old, new)]
        for thread in threads:
            thread.start()
        try:
            time.sleep(2)
            at_the_signal = clients.answered[old.port]
            begin = time.monotonic()
            old.process.send_signal(15)
            while old.unready_at is None:
                assert old.process.alive
                time.sleep(0.05)
            assert old.passes("livenessProbe"), "it would be killed while it drains"
            assert old.process.wait(pod["terminationGracePeriodSeconds"]) == 0
            ended = time.monotonic() - begin
            time.sleep(1)
        finally:
            clients.stop()
            stopped.set()
            for thread in threads:
                thread.join()
    assert clients.failed == []
    assert clients.answered[old.port] > at_the_signal, "nothing was sent to the stopping pod"
    assert clients.answered[new.port] > 0
    print(f"{sum(clients.answered.values())} answers; the pod ended after {ended:.1f} s")


def check_rights(pod: Pod, user: int) -> None:
    """Check that all processes of a pod have its user and no capabilities."""
    root = psutil.Process(pod.process.pid)
    processes = [root, *root.children(recursive=True)]
    assert len(processes) > 1
    for process in processes:
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert re.findall(r"^Uid:\t(\d+)\t(\d+)", status, re.MULTILINE) == [(str(user), str(user))]
        assert re.findall(r"^Cap(?:Eff|Bnd):\t(\w+)$", status, re.MULTILINE) == ["0" * 16] * 2
        assert re.findall(r"^NoNewPrivs:\t(\d)$", status, re.MULTILINE) == ["1"]
