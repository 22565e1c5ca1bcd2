"""Traffic that doubles each minute, and a deployment that adds replicas as Ray Serve does."""

import math
import random
from collections import deque
from dataclasses import dataclass, field

import simpy

from bench.scaling.simulation import Process, ServiceTimes, Worker, better_of_two, percentile

REFUSE_SECONDS = 0.04
"""`CONVSCOPE_MAX_WAIT_MS`."""


@dataclass(frozen=True)
class Policy:
    """The settings of Ray Serve's autoscaling, and how long a replica takes to start.

    Attributes:
        target: `target_ongoing_requests`.
        look_back: `look_back_period_s`.
        delay: `upscale_delay_s`.
        pushed: seconds between two reports of the requests.
        start: seconds from the decision to the first answer of a new replica.
    """

    target: float
    look_back: float
    delay: float
    pushed: float
    start: float


@dataclass(frozen=True)
class Second:
    """What happened in one second.

    Attributes:
        asked: requests that arrived.
        refused: those of them that would have waited for too long.
        replicas: that served at its end.
        p99_ms: of the answers, in milliseconds; 0 without answers.
    """

    asked: int
    refused: int
    replicas: int
    p99_ms: float


@dataclass
class _Deployment:
    """The replicas, and what is counted of them."""

    environment: simpy.Environment
    service: ServiceTimes
    policy: Policy
    generator: random.Random
    replicas: list[Worker] = field(default_factory=list)
    wanted: int = 0
    asked: int = 0
    refused: int = 0

    @property
    def waiting(self) -> int:
        return sum(replica.waiting for replica in self.replicas)

    def add(self) -> None:
        self.replicas.append(Worker(self.environment, self.service, self.generator))

    def take(self) -> None:
        """Let a request arrive at the less busy of two replicas, as Ray's proxies do."""
        self.asked += 1
        replica = better_of_two(self.replicas, self.generator)
        room = max(2 * self.service.batches[-1], REFUSE_SECONDS * self.service.highest_rate)
        if replica.waiting >= room:
            self.refused += 1
        else:
            replica.take()

    def start_one(self) -> Process:
        yield self.environment.timeout(self.policy.start)
        self.add()

    def scale(self) -> Process:
        """Start replicas when the mean of what was reported has been above the target for long."""
        reports: deque[tuple[float, int]] = deque()
        above = None
        while True:
            yield self.environment.timeout(self.policy.pushed)
            now = self.environment.now
            reports.append((now, self.waiting))
            while reports[0][0] <= now - self.policy.look_back:
                reports.popleft()
            mean = sum(waiting for _, waiting in reports) / len(reports)
            desired = math.ceil(mean / self.policy.target)
            if desired <= self.wanted:
                above = None
                continue
            above = now if above is None else above
            if now - above >= self.policy.delay:
                for _ in range(desired - self.wanted):
                    self.environment.process(self.start_one())
                self.wanted, above = desired, None


def simulate_doubling(
    service: ServiceTimes,
    policy: Policy,
    *,
    first: float,
    minutes: int,
    replicas: int = 2,
    seed: int = 0,
) -> list[Second]:
    """Return what happens in each second while the traffic doubles each minute.

    Args:
        service: of each replica.
        policy: of adding replicas.
        first: requests a second at the beginning.
        minutes: how long requests arrive.
        replicas: that serve at the beginning.
        seed: decides everything that is random.
    """
    environment, generator = simpy.Environment(), random.Random(seed)  # noqa: S311 - no secret
    deployment = _Deployment(environment, service, policy, generator, wanted=replicas)
    for _ in range(replicas):
        deployment.add()

    def arrivals() -> Process:
        while True:
            deployment.take()
            rate = first * 2 ** (environment.now / 60)
            yield environment.timeout(generator.expovariate(rate))

    environment.process(arrivals())
    environment.process(deployment.scale())
    seconds = []
    for second in range(1, 60 * minutes + 1):
        environment.run(until=second)
        seconds.append(_count(deployment))
    return seconds


def _count(deployment: _Deployment) -> Second:
    """Return the counts since the last call."""
    latencies = []
    for replica in deployment.replicas:
        latencies += replica.latencies
        replica.latencies = []
    p99 = 1000 * percentile(sorted(latencies), 0.99) if latencies else 0.0
    found = Second(deployment.asked, deployment.refused, len(deployment.replicas), p99)
    deployment.asked = deployment.refused = 0
    return found
