"""Scoring on a cluster of Ray's: a head without processors and two nodes, all on this machine."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from app.errors import ArtifactError
from app.scoring.run import Job, Outcome, run
from tests.app.scoring.test_run import Stopped, quiet, stop_after
from tests.conftest import MakeSettings, Picture
from tests.support.artifacts import CLASSES, write_artifact

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'convscope[ray]'")

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),  # a busy machine takes minutes to start the cluster
    pytest.mark.filterwarnings("ignore"),  # Ray leaves sockets open
]

STORE: Any = {"object_store_memory": 100 << 20}


def _patiently(start: Callable[..., Any], **options: Any) -> Any:
    """Start a node; Ray gives it 30 seconds, which are too few on a busy machine."""
    for _ in range(3):
        with suppress(Exception):
            return start(**options, **STORE)
    return start(**options, **STORE)


def _head(**options: Any) -> Any:
    from ray.cluster_utils import Cluster

    return Cluster(initialize_head=True, head_node_args=options)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    found = _patiently(_head, num_cpus=0, include_dashboard=False)
    try:
        for _ in range(2):
            _patiently(found.add_node, num_cpus=1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_ADDRESS", found.address)
            yield found
    finally:
        ray.shutdown()
        found.shutdown()


def test_a_run_that_was_stopped_and_loses_a_node_has_one_row_a_picture(
    cluster: Any, tmp_path: Path, picture: Picture, store_path: Path, make_settings: MakeSettings
) -> None:
    from app.scoring.on_ray import on_ray

    folder, out = tmp_path / "many", tmp_path / "results.parquet"
    folder.mkdir()
    for label in CLASSES:
        (folder / f"{label}.png").write_bytes(picture(label))
    for number in range(8000):
        (folder / f"{number}.png").hardlink_to(folder / f"{CLASSES[number % 6]}.png")
    (folder / "notes.txt").write_text("no picture")
    job = Job(store_path / "colour" / "2", make_settings())
    with pytest.raises(Stopped):
        run([str(folder)], out, job, stop_after(2), quiet)
    told: list[int] = []

    def report(pictures: int, _total: int | None) -> None:
        told.append(pictures)
        if len(told) == 4:
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    assert run([str(folder)], out, job, on_ray, report) == Outcome(8007, 1)
    assert told[0] == 1024
    assert len(cluster.worker_nodes) == 1
    rows = pq.read_table(out).to_pylist()
    assert [row["picture"] for row in rows] == list(range(8007))
    labels = {row["file"]: row["label"] for row in rows}
    assert len(labels) == 8007
    assert all(labels[str(folder / f"{n}.png")] == CLASSES[n % 6] for n in range(8000))
    assert labels[str(folder / "notes.txt")] is None
    assert not out.with_name("results.parquet.parts").exists()


@pytest.mark.usefixtures("cluster")
def test_a_damaged_model_is_named(
    tmp_path: Path, picture: Picture, make_settings: MakeSettings
) -> None:
    from app.scoring.on_ray import on_ray

    artifact = write_artifact(tmp_path / "store", "colour", "1")
    (artifact.path / "model.onnx").write_bytes(b"damaged")
    path = tmp_path / "red.png"
    path.write_bytes(picture("red"))
    job = Job(artifact.path, make_settings())
    with pytest.raises(ArtifactError, match=r"model\.onnx: holds 7 bytes") as error:
        run([str(path)], tmp_path / "results.parquet", job, on_ray, quiet)
    assert "\n" not in str(error.value)
