"""Checks of servers: their answers against those of the model in this process."""

import time
from collections.abc import Sequence
from functools import cache

import numpy as np

from app.artifact.directory import read_artifact
from app.images.decode import decode
from bench.harness.payloads import Payload, payloads
from bench.harness.processes import ServerFailed
from bench.harness.requests import Address, Request, ask
from bench.serving.limit import backend
from bench.serving.servers import EXERCISE, Answer, Served, Server

TOLERANCE = 1e-3
"""Largest accepted difference of a probability: versions of a runtime round differently."""

_MAX_PIXELS = 40_000_000
_DRAIN_SECONDS = 10
_SHOWN = 200


@cache
def expected(name: str, served: Served = EXERCISE) -> list[list[Answer]]:
    """Return a model's answers to every request of a payload."""
    classes = read_artifact(served.directory).manifest.classes
    runtime = backend(served)
    right = []
    for files in payloads()[name].requests:
        images = np.stack([decode(data, (32, 32), _MAX_PIXELS) for data in files])
        rows = runtime.predict(images).probabilities
        right.append([Answer(classes[int(row.argmax())], row.tolist()) for row in rows])
    return right


def check(server: Server, address: Address, payload: Payload, count: int) -> None:
    """Compare the answers to a payload's first `count` requests with those of the served model.

    Raises:
        ServerFailed: an answer is missing or differs.
    """
    for number, files in list(enumerate(payload.requests))[:count]:
        request = server.wrap(payload, files)
        if request is None:
            raise ServerFailed(f"does not take {payload.title}")
        try:
            status, body = _ask_when_drained(address, request)
            if status != 200:
                raise ServerFailed(f"status {status} to {payload.title}: {body[:_SHOWN]!r}")
            answers = server.read(body)
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise ServerFailed(f"no answer to {payload.title}: {exc!r}") from exc
        _compare(payload, answers, expected(payload.name, server.serves)[number])


def _ask_when_drained(address: Address, request: Request) -> tuple[int, bytes]:
    """Ask again as long as the server refuses because it still works on an earlier load."""
    until = time.monotonic() + _DRAIN_SECONDS
    while True:
        status, body = ask(address, request)
        if status not in {429, 503} or time.monotonic() > until:
            return status, body
        time.sleep(0.1)


def _compare(payload: Payload, answers: Sequence[Answer], right: Sequence[Answer]) -> None:
    if len(answers) != len(right):
        raise ServerFailed(f"{len(answers)} answers to {payload.title}, not {len(right)}")
    for got, wanted in zip(answers, right, strict=True):
        if got.label != wanted.label:
            raise ServerFailed(f"label of {payload.title} is {got.label}, not {wanted.label}")
        worst = float(np.abs(np.subtract(got.probabilities, wanted.probabilities)).max())
        if payload.exact and worst > TOLERANCE:
            raise ServerFailed(
                f"a probability differs by {worst:.2g} for {payload.title}; "
                f"the limit is {TOLERANCE:g}"
            )
