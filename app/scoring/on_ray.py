"""Scoring on all nodes of a Ray cluster. Ray is imported only here, an extra.

Ray places the tasks, and repeats those of a node that is lost. Its worker processes stay, so each
loads the model once. All nodes have Convscope, the model and local files at the same paths.
"""

import os
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

# Ray reports its use to its makers unless this variable is set before the import. Set it to 1 to
# allow the reports.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.exceptions import RayError, RayTaskError

from app.errors import ScoringError
from app.scoring.run import IN_HAND, Job, score
from app.scoring.sources import Shard


def on_ray(job: Job, shards: Iterable[Shard]) -> Iterator[tuple[int, pa.Table]]:
    """Score with a task for each shard; few are in hand.

    It uses the cluster that `RAY_ADDRESS` names or that runs on this machine, or else starts one
    that ends with it.
    """
    ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False)
    task = ray.remote(num_cpus=1)(score)
    job_ref = ray.put(job)
    running = dict[Any, int]()

    def ended() -> Iterator[tuple[int, pa.Table]]:
        for ref in ray.wait(list(running))[0]:
            yield running.pop(ref), ray.get(ref)

    try:
        for shard in shards:
            while len(running) >= IN_HAND * max(_processors(), 1):
                yield from ended()
            running[task.remote(job_ref, shard)] = shard.number
        while running:
            yield from ended()
    except RayTaskError as exc:
        raise exc.cause from exc
    except RayError as exc:
        raise ScoringError(f"Ray: {exc}; the same command goes on") from exc


def _processors() -> int:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(resources.get("CPU", 0))
