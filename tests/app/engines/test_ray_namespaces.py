"""Ray on three nodes, each in a network namespace of its own; one is cut off for a while.

`serve deploy` reads `deploy/ray/serve.yaml`, but for the folder of the models. Needs root.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from bench import ROOT
from bench.serving.ray import node_variables
from tests.conftest import Picture
from tests.support.load import Load
from tests.support.servers import get, wait_until

yaml = pytest.importorskip("yaml", reason="PyYAML comes with Ray")

IP = shutil.which("ip")
BIN = Path(sys.executable).parent
NETWORK = "10.213.77"
BRIDGE = "cvscray"
NODES = (1, 2, 3)
"""The first is the head, without processors."""

PARTITION_SECONDS = 15
NOTICED_SECONDS = 4
START_SECONDS = 120


def ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(IP), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)


def may_use_namespaces() -> bool:
    """Whether this process may make a namespace and join it to another."""
    if IP is None:
        return False
    name = f"{BRIDGE}-try"
    try:
        ip("netns", "add", name)
        try:
            ip("link", "add", BRIDGE, "type", "veth", "peer", "name", "eth0", "netns", name)
        finally:
            ip("netns", "del", name)  # with both ends
    except subprocess.CalledProcessError:
        return False
    return True


pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is not installed"),
    pytest.mark.skipif(not may_use_namespaces(), reason="network namespaces cannot be used here"),
]


class Namespaces:
    """Three namespaces on one bridge, at which this process is too."""

    def __init__(self) -> None:
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("addr", "add", f"{NETWORK}.254/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for node in NODES:
            name = self.name(node)
            ip("netns", "add", name)
            ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", name, "master", BRIDGE, "up")
            ip("-n", name, "addr", "add", f"{NETWORK}.{node}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                ip("-n", name, "link", "set", device, "up")

    @staticmethod
    def name(node: int) -> str:
        return f"{BRIDGE}{node}"

    def run(self, node: int, program: str, *arguments: str, **variables: str) -> str:
        """Run one of Ray's programs on a node; return its output."""
        command = [str(IP), "netns", "exec", self.name(node), str(BIN / program), *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, env=variables, timeout=START_SECONDS
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def cut(self, node: int) -> None:
        ip("link", "set", self.name(node), "down")

    def heal(self, node: int) -> None:
        ip("link", "set", self.name(node), "up")

    def close(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for node in NODES:
                for pid in ip("netns", "pids", self.name(node)).stdout.split():
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), number)
            time.sleep(3)
        for node in NODES:
            ip("link", "del", self.name(node))  # a process that still ends holds its namespace
            ip("netns", "del", self.name(node))
        ip("link", "del", BRIDGE)


class Nodes:
    """Ray on the namespaces, with the service deployed."""

    def __init__(self, namespaces: Namespaces, folder: Path) -> None:
        self.namespaces = namespaces
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        self._variables = {
            **{name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
            **node_variables(),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_TOKEN_PATH": str(token),
        }
        self._variables.pop("PROMETHEUS_MULTIPROC_DIR", None)
        head, *others = NODES
        self._ray(head, "start", "--head", "--num-cpus=0")
        for node in others:
            self._ray(node, "start", f"--address={NETWORK}.{head}:6379", "--num-cpus=2")
        config = yaml.safe_load((ROOT / "deploy" / "ray" / "serve.yaml").read_text())
        variables = config["applications"][0]["runtime_env"]["env_vars"]
        variables["CONVSCOPE_STORE"] = str(ROOT / "models_store")
        written = folder / "serve.yaml"
        written.write_text(yaml.safe_dump(config))
        namespaces.run(head, "serve", "deploy", str(written), **self._variables)

    def _ray(self, node: int, *arguments: str) -> None:
        address = f"--node-ip-address={NETWORK}.{node}"
        self.namespaces.run(node, "ray", *arguments, address, **self._variables)

    @staticmethod
    def url(node: int) -> str:
        return f"http://{NETWORK}.{node}:8000"

    def ready(self, node: int) -> bool:
        try:
            return get(f"{self.url(node)}/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def status(self) -> str:
        return self.namespaces.run(NODES[0], "serve", "status", **self._variables)


@pytest.fixture
def rays(tmp_path: Path) -> Iterator[Nodes]:
    namespaces = Namespaces()
    try:
        yield Nodes(namespaces, tmp_path)
    finally:
        namespaces.close()


def test_partition_leaves_the_other_side_serving(rays: Nodes, picture: Picture) -> None:
    _, whole, cut_off = NODES
    wait_until(lambda: all(rays.ready(node) for node in NODES), START_SECONDS)
    wait_until(lambda: "RUNNING: 2" in rays.status(), START_SECONDS)
    with Load(rays.url(whole), picture("red"), 6) as asked:
        time.sleep(1)
        rays.namespaces.cut(cut_off)
        cut = time.monotonic()
        time.sleep(PARTITION_SECONDS)
        rays.namespaces.heal(cut_off)
        healed = time.monotonic()
        time.sleep(1)
    late = [one for one in asked.answers if cut + NOTICED_SECONDS < one[0] < healed]
    print(f"{asked.statuses()}, {len(late)} begun in the partition, once it was noticed")
    assert len(late) > 100
    assert {status for *_, status, _ in late} == {200}
    wait_until(lambda: rays.ready(cut_off))
    status = rays.status()
    assert status.count("HEALTHY") == len(NODES) + 1  # their proxies, and the deployment
    assert "RUNNING: 2" in status
