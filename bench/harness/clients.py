"""The soak's clients: processes that send its mixture, check every answer and count them."""

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

from bench.harness.load import Address
from bench.harness.processes import ServerFailed
from bench.serving.mixture import Mixture, Shot

USERS = 64
"""Connections of the open loop at most: a sound request then always finds room in the service,
also after a stall; the time for which it waited for a connection is in its latency."""

_CLOSED_USERS = 16
_TIMEOUT = 30.0
_LEAVE_SECONDS = 0.02

Count = tuple[str, str, int]
"""Method, route and status, as the service's metrics name them."""


@dataclass
class Tally:
    """What clients saw.

    Attributes:
        counts: what the service is to have counted, by method, route and status.
        unsure: those of `counts` with 499 which may have been answered with 200 too.
        predictions: by model, version and label.
        rejections: by the end of the problem's type.
        names: requests by the name of their kind.
        latencies: of sound requests, from when they were due, in seconds.
        failures: how many, by what was wrong.
        cpu_seconds: that the clients took.
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
        """Take over what another has."""
        for name in ("counts", "predictions", "rejections", "names", "failures"):
            getattr(self, name).update(getattr(other, name))
        self.latencies.extend(other.latencies)
        self.unsure += other.unsure
        self.cpu_seconds += other.cpu_seconds

    def fail(self, what: str) -> None:
        """Note a failure."""
        self.failures[what[:300]] += 1

    def take(self, shot: Shot, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Check one answer and count it."""
        self.counts[shot.method, shot.route, status] += 1
        if status != shot.status:
            self.fail(f"{shot.name}: {status}, not {shot.status}: {body[:150]!r}")
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
            self.fail(f"{shot.name}: {labels} is wrong: {shot.labels}")

    def _take_problem(self, shot: Shot, headers: Mapping[str, str], body: bytes) -> None:
        try:
            problem = json.loads(body)
            kind, request_id = problem["type"], problem["request_id"]
        except (ValueError, KeyError):
            self.fail(f"{shot.name}: {shot.status} without a problem: {body[:100]!r}")
            return
        if request_id != headers["x-request-id"]:
            self.fail(f"{shot.name}: two request ids")
        if kind != "about:blank":
            self.rejections[kind.rpartition(":")[2]] += 1


class _Client:
    """Many connections of one process."""

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
        """Send whatever is due next, one after the other, on one connection while it lasts."""
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
        """Send one request and take its answer; return whether the connection may be kept."""
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
        raise ValueError("an answer without a length")
    return int(first.split()[1]), headers, await reader.readexactly(length)


def _be_client(
    pipe: Connection, address: Address, seed: int, rate: float | None, users: int, seconds: float
) -> None:
    """Be a client: the main function of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    mixture = Mixture()
    pipe.send(None)
    pipe.recv()  # all begin at once
    client = _Client(address, mixture.draw(seed), rate)
    before = time.process_time()
    uvloop.run(client.run(users, seconds))
    client.tally.cpu_seconds = time.process_time() - before
    pipe.send(client.tally)


def send(address: Address, rate: float | None, seconds: float, watch: Callable[[], None]) -> Tally:
    """Send the mixture from one process for each two cores, and call `watch` meanwhile.

    Args:
        address: the service's.
        rate: requests a second of an open loop; None for a closed one.
        seconds: how long.
        watch: called about every tenth of a second.
    """
    count = max(1, (os.cpu_count() or 1) // 2)
    users = max(1, (USERS if rate else _CLOSED_USERS) // count)
    share = rate / count if rate else None
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(count)]
    processes = [
        context.Process(
            target=_be_client, args=(end, address, seed, share, users, seconds), daemon=True
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
