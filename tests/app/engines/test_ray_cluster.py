"""Replicas on a cluster: a head without processors and two nodes, all on this machine.

The model sleeps 0.1 s for each image, so that a replica has the same throughput on a busy machine.
A cluster starts in half a minute on two slow processors, and a replica in 5 s; `-rP` shows times.
"""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import psutil
import pytest

from bench import ROOT
from bench.harness.processes import free_port
from bench.serving.ray import node_variables
from tests.conftest import Picture
from tests.support.artifacts import write_artifact
from tests.support.load import Load
from tests.support.servers import HOST, wait_until
from tests.support.sleeping_app import IMAGE_SECONDS, open_sleeping

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is not installed"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]

PARTITION_SECONDS = 15

NOTICED_SECONDS = 4
"""After which HAProxy sends nothing to a replica that does not answer."""

START_SECONDS = 120
"""Of a replica, on a busy machine."""

VARIABLES = {
    **node_variables(),
    "CONVSCOPE_DEFAULT_MODEL": "colour/1",
    "CONVSCOPE_INFERENCE": "thread",
    "CONVSCOPE_MAX_WAIT_MS": "5000",
    "PYTHONPATH": str(ROOT),
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
}


class RayCluster:
    """A cluster whose nodes can be killed, and the service on it."""

    def __init__(self, port: int) -> None:
        import ray
        from ray.cluster_utils import Cluster
        from ray.serve.config import HTTPOptions

        from app.engines.ray import QUIET

        self.port = port
        self.serve: ModuleType = ray.serve
        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        self.nodes = [self.cluster.add_node(num_cpus=2) for _ in range(2)]
        ray.init(address=self.cluster.address, logging_level=40, log_to_driver=False)
        # HAProxy is on the head, which is not killed.
        options = HTTPOptions(host=HOST, port=port, request_timeout_s=60)
        ray.serve.start(proxy_location="HeadOnly", http_options=options, logging_config=QUIET)

    def deploy(self, version: int, **options: Any) -> None:
        """Serve a version of the model; return when all its replicas answer."""
        from app.engines.ray import NAME, deployment

        variables = {"env_vars": {"CONVSCOPE_DEFAULT_MODEL": f"colour/{version}"}}
        actor = {"num_cpus": 1, "runtime_env": variables}
        application = deployment().options(ray_actor_options=actor, **options).bind(open_sleeping)
        self.serve.run(application, name=NAME, route_prefix="/")

    def replicas(self) -> dict[str, int]:
        """The number of replicas in each state."""
        status = self.serve.status().applications["convscope"]
        return {str(k): v for k, v in status.deployments["Convscope"].replica_states.items()}

    def only_runs(self, number: int) -> bool:
        return self.replicas() == {"RUNNING": number}

    def stop(self) -> None:
        import ray

        self.serve.shutdown()
        ray.shutdown()
        self.cluster.shutdown()  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def rays(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    store = tmp_path_factory.mktemp("cluster") / "store"
    for version in "12":
        write_artifact(store, "colour", version)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**VARIABLES, "CONVSCOPE_STORE": str(store)}.items():
            patch.setenv(name, value)
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
        cluster = RayCluster(free_port())
        yield cluster
        cluster.stop()


@contextmanager
def stopped(node: Any) -> Iterator[None]:
    """Stop all processes of a node meanwhile, as if no packet reached them."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    processes = [raylet, *raylet.children(recursive=True)]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


StartLoad = Callable[[int], Load]


@pytest.fixture
def load(rays: RayCluster, picture: Picture) -> StartLoad:
    return lambda clients: Load(f"http://{HOST}:{rays.port}", picture("red"), clients)


def test_new_version_is_rolled_out_under_load(rays: RayCluster, load: StartLoad) -> None:
    rays.deploy(1, num_replicas=2)
    with load(4) as asked:
        time.sleep(1)
        rays.deploy(2, num_replicas=2)
        wait_until(lambda: rays.only_runs(2), START_SECONDS)
        time.sleep(1)
    assert set(asked.statuses()) == {200}
    versions = [version for *_, version in asked.answers]
    assert (versions[0], versions[-1]) == ("1", "2")


def test_partition_leaves_the_other_side_serving(rays: RayCluster, load: StartLoad) -> None:
    rays.deploy(2, num_replicas=2, max_replicas_per_node=1)
    wait_until(lambda: rays.only_runs(2), START_SECONDS)
    with load(6) as asked:
        time.sleep(1)
        cut = time.monotonic()
        with stopped(rays.nodes[-1]):
            time.sleep(PARTITION_SECONDS)
        healed = time.monotonic()
        time.sleep(3)
    late = [one for one in asked.answers if one[0] > cut + NOTICED_SECONDS]
    assert {status for *_, status, _ in late} == {200}
    meanwhile = [end for _, end, *_ in late if end < healed]
    assert len(meanwhile) > 0.8 * (PARTITION_SECONDS - NOTICED_SECONDS) / IMAGE_SECONDS
    assert rays.only_runs(2)
    with load(6) as asked:
        time.sleep(3)
        assert asked.rate(2) > 1.5 / IMAGE_SECONDS  # both answer


def test_scaling_down_loses_nothing(rays: RayCluster, load: StartLoad) -> None:
    with load(6) as asked:
        time.sleep(1)
        rays.deploy(2, num_replicas=1, max_replicas_per_node=1)
        wait_until(lambda: rays.only_runs(1))
        time.sleep(1)
    assert set(asked.statuses()) == {200}


def test_replicas_are_added_when_requests_wait(rays: RayCluster, load: StartLoad) -> None:
    scaling = {
        "min_replicas": 1,
        "max_replicas": 2,
        "target_ongoing_requests": 3,
        "look_back_period_s": 3,
        "upscale_delay_s": 2,
        "downscale_delay_s": 600,
    }
    rays.deploy(2, autoscaling_config=scaling, max_replicas_per_node=1)
    with load(3) as half:
        time.sleep(5)
        before = half.rate(4)
        assert rays.only_runs(1)
    assert before == pytest.approx(1 / IMAGE_SECONDS, rel=0.2)
    with load(6) as asked:
        doubled = time.monotonic()
        wait_until(lambda: rays.only_runs(2), START_SECONDS)
        print(f"a second replica after {time.monotonic() - doubled:.1f} s")
        time.sleep(6)
        after = asked.rate(5)
    assert set(asked.statuses()) == {200}
    assert after >= 1.8 * before


def test_killed_node_takes_only_the_requests_inside_it(rays: RayCluster, load: StartLoad) -> None:
    rays.deploy(2, num_replicas=2)
    wait_until(lambda: rays.only_runs(2), START_SECONDS)
    with load(4) as asked:
        time.sleep(1)
        killed = time.monotonic()
        rays.cluster.remove_node(rays.nodes.pop(), allow_graceful=False)
        wait_until(lambda: rays.replicas().get("RUNNING") != 2)
        wait_until(lambda: rays.only_runs(2), START_SECONDS)
        print(f"whole again {time.monotonic() - killed:.1f} s after a node was killed")
        time.sleep(1)
    failed = [begun for begun, _, status, _ in asked.answers if status != 200]
    assert len(failed) <= 4
    assert all(begun <= killed + 1 for begun in failed)
