"""A discrete-event model of workers behind a load balancer, with measured service times.

A worker is a server of batches: it takes all that waits, up to a limit, and answers it together
(Bailey 1954, "On queueing processes with bulk service"). Requests arrive at random, as those of
many independent users do (a Poisson process).
"""

import random
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import simpy

_Random = random.Random
Process = Generator[simpy.Event, None, None]
Balancer = Callable[[Sequence["Worker"], _Random], "Worker"]


@dataclass(frozen=True)
class ServiceTimes:
    """How long a worker takes.

    Attributes:
        batches: sizes, ascending from 1, the last of them the most that a worker takes at once.
        seconds: for a batch of each of these sizes, on average.
        parts: of all batches, ascending from 0 to 1.
        delays: seconds that a batch takes beyond the average, at each of these parts.
        outside: seconds of a request during which its worker can do other things.
    """

    batches: tuple[int, ...]
    seconds: tuple[float, ...]
    parts: tuple[float, ...]
    delays: tuple[float, ...]
    outside: float = 0.0

    @property
    def highest_rate(self) -> float:
        """Requests a second of a worker that always has as many as it takes at once."""
        return self.batches[-1] / self.seconds[-1]

    def draw(self, batch: int, generator: _Random) -> float:
        """Return the seconds that a batch takes this time."""
        average = _between(batch, self.batches, self.seconds)
        return max(average + _between(generator.random(), self.parts, self.delays), 0.0)


class Worker:
    """One worker and its queue."""

    def __init__(
        self, environment: simpy.Environment, service: ServiceTimes, seed: _Random
    ) -> None:
        """Start it."""
        self.waiting = 0
        """Requests that have no answer yet."""
        self.latencies: list[float] = []
        self._environment, self._service, self._random = environment, service, seed
        self._queue: deque[float] = deque()
        self._wake = environment.event()
        environment.process(self._work())

    def take(self) -> None:
        """Let a request arrive now."""
        self.waiting += 1
        self._queue.append(self._environment.now)
        if not self._wake.triggered:
            self._wake.succeed()

    def _work(self) -> Process:
        while True:
            if not self._queue:
                self._wake = self._environment.event()
                yield self._wake
            size = min(len(self._queue), self._service.batches[-1])
            batch = [self._queue.popleft() for _ in range(size)]
            yield self._environment.timeout(self._service.draw(size, self._random))
            self.waiting -= size
            answered = self._environment.now + self._service.outside
            self.latencies += [answered - arrived for arrived in batch]


def in_turn() -> Balancer:
    """Return a balancer that gives each worker the next request."""
    turn = -1

    def choose(workers: Sequence[Worker], _: _Random) -> Worker:
        nonlocal turn
        turn = (turn + 1) % len(workers)
        return workers[turn]

    return choose


def at_random(workers: Sequence[Worker], generator: _Random) -> Worker:
    """Choose any worker."""
    return generator.choice(workers)


def better_of_two(workers: Sequence[Worker], generator: _Random) -> Worker:
    """Choose of two random workers the one where fewer wait (Mitzenmacher 2001)."""
    one, other = generator.choice(workers), generator.choice(workers)
    return one if one.waiting <= other.waiting else other


def simulate(
    service: ServiceTimes,
    workers: int,
    rate: float,
    seconds: float,
    *,
    balancer: Balancer,
    seed: int = 0,
) -> list[float]:
    """Return the latency of each request, in seconds, ascending.

    Args:
        service: of each worker.
        workers: their number.
        rate: requests a second, of all together.
        seconds: how long requests arrive.
        balancer: chooses the worker of a request.
        seed: decides everything that is random.
    """
    environment, generator = simpy.Environment(), random.Random(seed)  # noqa: S311 - no secret
    crew = [Worker(environment, service, generator) for _ in range(workers)]

    def arrivals() -> Process:
        while environment.now < seconds:
            balancer(crew, generator).take()
            yield environment.timeout(generator.expovariate(rate))

    environment.process(arrivals())
    environment.run(until=2 * seconds)
    return sorted(latency for worker in crew for latency in worker.latencies)


def percentile(ascending: Sequence[float], part: float) -> float:
    """Return the value that this part of the values does not exceed."""
    return ascending[min(int(part * len(ascending)), len(ascending) - 1)]


def _between(at: float, places: Sequence[float], values: Sequence[float]) -> float:
    """Interpolate between the values at the neighbouring places."""
    if len(places) == 1:
        return values[0]
    index = min(max(bisect_left(places, at), 1), len(places) - 1)
    (left, right), (low, high) = places[index - 1 : index + 1], values[index - 1 : index + 1]
    return low + (high - low) * (at - left) / (right - left)
