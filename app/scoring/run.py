"""A scoring run: shards of the input, scored by one of two engines, to parts and results.

An engine is a function from a job and shards to tables of rows; it keeps few shards in hand, so
that memory does not grow with the input. `on_this_machine` has a process for each processor,
`app.scoring.on_ray` all nodes of a Ray cluster. Both call `score` in processes that keep the model.
"""

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from app.artifact.directory import Artifact, read_artifact, record_file
from app.artifact.files import MANIFEST
from app.errors import ScoringError
from app.local import ANSWERS, FileReader, Options
from app.machine import usable_cpus
from app.scoring.results import as_table, opened, schema_of
from app.scoring.sources import Shard, count_pictures, fetch, read_shards, walk
from app.settings import Settings

IN_HAND = 2
"""Shards for each process: one that is scored, and one that waits."""


@dataclass(frozen=True)
class Job:
    """What is asked of every picture.

    Attributes:
        model: the artifact's directory.
        settings: of the service.
    """

    model: Path
    settings: Settings


class Outcome(NamedTuple):
    """The number of pictures, and of those without an answer."""

    pictures: int
    failures: int


Engine = Callable[[Job, Iterable[Shard]], Iterator[tuple[int, pa.Table]]]
"""Yields the number and the rows of each shard, in any order.

Raises ScoringError if it cannot go on, and errors of the model.
"""


def run(
    words: Sequence[str],
    out: Path,
    job: Job,
    engine: Engine,
    report: Callable[[int, int | None], None],
) -> Outcome:
    """Score all pictures; go on where an earlier run ended.

    Args:
        words: that name the input.
        out: the file of the results.
        job: what is asked.
        engine: computes the answers.
        report: is called with the number of pictures that have a row, and of all, which is None if
            some are in archives.

    Raises:
        ScoringError: the input, the results or what an earlier run left do not fit.
        ArtifactError: the model is damaged.
    """
    artifact = read_artifact(job.model)
    plan = _plan(artifact, job.settings)
    with opened(out) as results:
        results.begin(plan, walk(words, results.folder))
        total = count_pictures(results.lines())
        report(results.pictures, total)
        limit = job.settings.max_body_bytes
        shards = read_shards(results.lines(), words, frozenset(results.done), limit)
        for number, table in engine(job, shards):
            results.add(number, table)
            report(results.pictures, total)
        schema = schema_of(artifact.manifest.task)
        results.finish(schema.with_metadata({"convscope": json.dumps(plan)}))
        return Outcome(results.pictures, results.failures)


def _plan(artifact: Artifact, settings: Settings) -> dict[str, Any]:
    """Return all on which answers depend, beside the input."""
    kept = ("backend", "precision", "max_body_bytes", "max_pixels", "max_pixels_whole")
    return {
        "model": artifact.ref,
        "manifest_sha256": record_file(artifact.path / MANIFEST).sha256,
        **settings.model_dump(include=set(kept)),
    }


@lru_cache(maxsize=1)
def _open_model(job: Job) -> tuple[Artifact, FileReader[Any]]:
    artifact = read_artifact(job.model)
    answers = ANSWERS[artifact.manifest.task](artifact, job.settings, Options())
    return artifact, FileReader(artifact, job.settings, answers)


def score(job: Job, shard: Shard) -> pa.Table:
    """Return the rows of a shard; the process keeps the model for the next one.

    Raises:
        ArtifactError: the model is damaged.
        BackendFailed: the runtime failed.
    """
    artifact, reader = _open_model(job)
    files = (fetch(item, job.settings.max_body_bytes) for item in shard.items)
    return as_table(artifact.manifest.task, shard.first, shard.archives, reader.rows(files))


def on_this_machine(job: Job, shards: Iterable[Shard]) -> Iterator[tuple[int, pa.Table]]:
    """Score with a process for each processor."""
    processes = usable_cpus()
    context = multiprocessing.get_context("spawn")
    running = dict[Future[pa.Table], int]()

    def ended() -> Iterator[tuple[int, pa.Table]]:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(future), future.result()

    pool = ProcessPoolExecutor(processes, context, _begin_process)
    try:
        for shard in shards:
            while len(running) >= IN_HAND * processes:
                yield from ended()
            running[pool.submit(score, job, shard)] = shard.number
        while running:
            yield from ended()
    except BrokenProcessPool as exc:
        raise ScoringError(
            "a process that scored was killed, perhaps for its memory; the same command goes on"
        ) from exc
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_process() -> None:
    """End with the parent, however it ends, and leave an interrupt to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
