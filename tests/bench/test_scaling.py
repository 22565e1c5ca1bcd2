from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from bench.scaling.autoscaling import Policy, Second, simulate_doubling
from bench.scaling.report import plot_scaling
from bench.scaling.simulation import (
    ServiceTimes,
    at_random,
    better_of_two,
    in_turn,
    percentile,
    simulate,
)

STEADY = ServiceTimes((1, 2), (0.01, 0.01), (0.0, 1.0), (0.0, 0.0))


def _one_by_one(seconds: float) -> ServiceTimes:
    return ServiceTimes((1,), (seconds,), (0.0, 1.0), (0.0, 0.0))


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_a_worker_of_constant_times_makes_requests_wait_as_long_as_theory_says(
    load: float,
) -> None:
    seconds = 0.01
    found = simulate(_one_by_one(seconds), 1, load / seconds, 150, balancer=at_random)
    waited = sum(found) / len(found) - seconds
    # Pollaczek and Khinchine's formula for M/D/1
    assert waited == pytest.approx(load * seconds / (2 * (1 - load)), rel=0.15)


def test_what_waits_is_answered_together() -> None:
    """Two requests at once take as long as one, so that more can come than one by one."""
    assert STEADY.highest_rate == 200
    seldom, often = (
        sum(found) / len(found)
        for found in (simulate(STEADY, 1, rate, 200, balancer=at_random) for rate in (20, 150))
    )
    assert seldom < 0.012
    assert seldom < often < 0.03


def test_time_outside_a_worker_keeps_no_other_request_waiting() -> None:
    far = replace(STEADY, outside=0.5)
    near, distant = (simulate(service, 1, 150, 50, balancer=at_random) for service in (STEADY, far))
    assert distant == pytest.approx([latency + 0.5 for latency in near])


def test_every_request_has_one_answer_whoever_takes_it() -> None:
    for balancer in (at_random, better_of_two, in_turn()):
        found = simulate(STEADY, 7, 100, 20, balancer=balancer)
        assert len(found) == pytest.approx(2000, rel=0.1)


def test_a_balancer_that_looks_at_two_workers_keeps_the_slowest_answers_short() -> None:
    blind, looking = (
        percentile(simulate(_one_by_one(0.01), 20, 1600, 5, balancer=balancer), 0.99)
        for balancer in (at_random, better_of_two)
    )
    assert looking < 0.5 * blind


@pytest.fixture(scope="module")
def course() -> list[Second]:
    policy = Policy(target=2, look_back=5, delay=2, pushed=1, start=10)
    return simulate_doubling(_one_by_one(0.01), policy, first=100, minutes=3)


def test_replicas_are_added_as_traffic_doubles(course: Sequence[Second]) -> None:
    assert sum(second.asked for second in course[-60:]) == pytest.approx(
        2 * sum(second.asked for second in course[-120:-60]), rel=0.1
    )
    replicas = [second.replicas for second in course]
    assert replicas == sorted(replicas)
    assert replicas[0] == 2
    assert replicas[-1] * 100 > course[-1].asked


def test_slow_policy_refuses_what_a_quick_one_answers(course: Sequence[Second]) -> None:
    slow = Policy(target=2, look_back=30, delay=30, pushed=10, start=10)
    late = simulate_doubling(_one_by_one(0.01), slow, first=100, minutes=3)
    refused, more_refused = (sum(second.refused for second in found) for found in (course, late))
    assert sum(second.asked for second in course) > 10 * refused
    assert more_refused > 2 * refused


def test_target_that_is_never_exceeded_for_what_is_refused_adds_nothing() -> None:
    """A replica that answers 100/s holds 4 requests when it begins to refuse."""
    policy = Policy(target=4, look_back=5, delay=2, pushed=1, start=10)
    found = simulate_doubling(_one_by_one(0.01), policy, first=100, minutes=2)
    assert found[-1].replicas == 2
    assert found[-1].refused > found[-1].asked / 4


def test_simulated_scaling_becomes_a_picture(course: Sequence[Second], tmp_path: Path) -> None:
    plot_scaling({"one": course, "other": course}, 100, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width > 1000
