"""Clients of a long run: processes that send requests, check every answer and count them."""

import asyncio
import json
import multiprocessing
import os
import signal
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Self

import uvloop

from bench.harness.processes import ServerFailed
from bench.harness.requests import Address

USERS = 64
"""Most connections of the open loop, so that a valid request always finds room in the service, even
after a stall. A latency includes the wait for a connection."""

_CLOSED_USERS = 16
_TIMEOUT = 30.0
_LEAVE_SECONDS = 0.02

Count = tuple[str, str, int]
"""Method, route and status, as the service's metrics name them."""


@dataclass(frozen=True)
class Shot:
    """One request and its expected answer.

    Attributes:
        name: kind of the request, for the report.
        raw: bytes to send.
        status: status of the answer; if the client leaves, the status that the service counts; 0
            if the service counts nothing.
        route: route in the service's metrics.
        method: method in the service's metrics.
        model: name and version of the model that answers.
        labels: expected labels of the images, in order.
        leaves: the client sends the bytes and closes the connection.
        unsure: the service may have answered before it noticed that the client had gone.
        unfinished: the connection cannot be used for another request.
    """

    name: str
    raw: bytes
    status: int = 200
    route: str = "/predict"
    method: str = "POST"
    model: tuple[str, str] | None = None
    labels: tuple[str, ...] = ()
    leaves: bool = False
    unsure: bool = False
    unfinished: bool = False


Draw = Callable[[int], Iterator[Shot]]
"""A function that yields requests without end, in an order determined by a seed."""


@dataclass
class Tally:
    """Counts of the clients.

    Attributes:
        counts: requests that the service should have counted, by method, route and status.
        unsure: requests counted with 499 that may have been answered with 200 instead.
        predictions: predictions by model, version and label.
        rejections: refusals by the last part of the problem's type.
        names: requests by kind.
        latencies: seconds from the time a valid request was due to its answer.
        failures: failures by description.
        cpu_seconds: processor time of the clients.
    """

    counts: Counter[Count] = field(default_factory=Counter)
    unsure: int = 0
    predictions: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    rejections: Counter[str] = field(default_factory=Counter)
    names: Counter[str] = field(default_factory=Counter)
    latencies: "array[float]" = field(default_factory=lambda: array("f"))
    failures: Counter[str] = field(default_factory=Counter)
    cpu_seconds: float = 0.0

    def add(self, other: Self) -> None:
        """Add the counts of another tally."""
        for name in ("counts", "predictions", "rejections", "names", "failures"):
            getattr(self, name).update(getattr(other, name))
        self.latencies.extend(other.latencies)
        self.unsure += other.unsure
        self.cpu_seconds += other.cpu_seconds

    def fail(self, description: str) -> None:
        """Count a failure."""
        self.failures[description[:300]] += 1

    def take(self, shot: Shot, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Check one answer and count it."""
        self.counts[shot.method, shot.route, status] += 1
        if status != shot.status:
            self.fail(f"{shot.name}: status is {status}, not {shot.status}: {body[:150]!r}")
            return
        if not headers.get("x-request-id"):
            self.fail(f"{shot.name}: no request id")
        if shot.model is not None:
            self._take_labels(shot, shot.model, body)
        elif status >= 400 and body:
            self._take_problem(shot, headers, body)

    def _take_labels(self, shot: Shot, model: tuple[str, str], body: bytes) -> None:
        labels = [item["label"] for item in json.loads(body)["predictions"]]
        self.predictions.update((*model, label) for label in labels)
        if tuple(labels) != shot.labels:
            self.fail(f"{shot.name}: labels are {labels}, not {list(shot.labels)}")

    def _take_problem(self, shot: Shot, headers: Mapping[str, str], body: bytes) -> None:
        try:
            problem = json.loads(body)
            kind, request_id = problem["type"], problem["request_id"]
        except (ValueError, KeyError):
            self.fail(f"{shot.name}: {shot.status} without a problem document: {body[:100]!r}")
            return
        if request_id != headers["x-request-id"]:
            self.fail(f"{shot.name}: header and body have different request ids")
        if kind != "about:blank":
            self.rejections[kind.rpartition(":")[2]] += 1


class _Client:
    """The connections of one process."""

    def __init__(self, address: Address, shots: Iterator[Shot], rate: float | None) -> None:
        self.tally = Tally()
        self._address = address
        self._shots = shots
        self._rate = rate
        self._sent = 0

    async def run(self, users: int, seconds: float) -> None:
        self._begin = time.perf_counter()
        self._end = self._begin + seconds
        await asyncio.gather(*(self._use() for _ in range(users)))

    async def _use(self) -> None:
        """Send requests as they become due, on one connection while it lasts."""
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while (due := self._next_due()) < self._end:
            shot = next(self._shots)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            self.tally.names[shot.name] += 1
            keep = False
            try:
                async with asyncio.timeout(_TIMEOUT):
                    if streams is None:
                        streams = await asyncio.open_connection(*self._address)
                    keep = await self._fire(shot, due, *streams)
            except (OSError, EOFError, TimeoutError, ValueError) as exc:
                self.tally.fail(f"{shot.name}: {exc!r}")
            if not keep and streams is not None:
                streams[1].close()
                streams = None
        if streams is not None:
            streams[1].close()

    def _next_due(self) -> float:
        if self._rate is None:
            return time.perf_counter()
        self._sent += 1
        return self._begin + (self._sent - 1) / self._rate

    async def _fire(
        self, shot: Shot, due: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Send one request and read its answer; return whether the connection may be used again."""
        writer.write(shot.raw)
        if shot.leaves:
            await writer.drain()
            await asyncio.sleep(_LEAVE_SECONDS if not shot.unsure else 0)
            self._leave(shot)
            return False
        status, headers, body = await _read(reader, shot.method)
        if shot.status == 200:
            self.tally.latencies.append(time.perf_counter() - due)
        self.tally.take(shot, status, headers, body)
        return headers.get("connection") != "close" and not shot.unfinished

    def _leave(self, shot: Shot) -> None:
        if shot.status:
            self.tally.counts[shot.method, shot.route, shot.status] += 1
        self.tally.unsure += shot.unsure


async def _read(reader: asyncio.StreamReader, method: str) -> tuple[int, dict[str, str], bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    pairs = (line.partition(": ") for line in lines)
    headers = {name.lower(): value for name, _, value in pairs}
    length = 0 if method == "HEAD" else int(headers.get("content-length", "-1"))
    if length < 0:
        raise ValueError("answer has no Content-Length")
    return int(first.split()[1]), headers, await reader.readexactly(length)


def _be_client(
    pipe: Connection,
    address: Address,
    draw: Draw,
    seed: int,
    rate: float | None,
    users: int,
    seconds: float,
) -> None:
    """Main function of a client's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its clients
    shots = draw(seed)
    pipe.send(None)
    pipe.recv()  # all clients begin together
    client = _Client(address, shots, rate)
    before = time.process_time()
    uvloop.run(client.run(users, seconds))
    client.tally.cpu_seconds = time.process_time() - before
    pipe.send(client.tally)


def send(
    address: Address, draw: Draw, rate: float | None, seconds: float, watch: Callable[[], None]
) -> Tally:
    """Send requests from one process for every two cores, and call `watch` meanwhile.

    Args:
        address: address of the service.
        draw: requests to send; each process calls it with a seed of its own.
        rate: requests a second of an open loop; None for a closed loop.
        seconds: duration.
        watch: called about every tenth of a second.

    Raises:
        ServerFailed: a client process ended by itself.
    """
    count = max(1, (os.cpu_count() or 1) // 2)
    users = max(1, (USERS if rate else _CLOSED_USERS) // count)
    share = rate / count if rate else None
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(count)]
    processes = [
        context.Process(
            target=_be_client, args=(end, address, draw, seed, share, users, seconds), daemon=True
        )
        for seed, (_, end) in enumerate(pipes)
    ]
    total = Tally()
    try:
        for process, (_, end) in zip(processes, pipes, strict=True):
            process.start()
            end.close()
        for ours, _ in pipes:
            ours.recv()
        for ours, _ in pipes:
            ours.send(None)
        for ours, _ in pipes:
            while not ours.poll(0.1):
                watch()
            total.add(ours.recv())
    except EOFError as exc:
        raise ServerFailed("a client process ended by itself") from exc
    finally:
        for process in processes:
            process.terminate()
    return total
