import pytest

from bench.scaling.simulation import (
    ServiceTimes,
    at_random,
    better_of_two,
    in_turn,
    percentile,
    simulate,
)

STEADY = ServiceTimes((1, 2), (0.01, 0.01), (0.0, 1.0), (1.0, 1.0))


def _one_by_one(seconds: float) -> ServiceTimes:
    return ServiceTimes((1,), (seconds,), (0.0, 1.0), (1.0, 1.0))


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_a_worker_of_constant_times_makes_requests_wait_as_long_as_theory_says(
    load: float,
) -> None:
    seconds = 0.01
    found = simulate(_one_by_one(seconds), 1, load / seconds, 150, balancer=at_random)
    waited = sum(found) / len(found) - seconds
    # Pollaczek and Khinchine's formula for M/D/1
    assert waited == pytest.approx(load * seconds / (2 * (1 - load)), rel=0.15)


def test_regular_requests_below_the_highest_rate_never_wait() -> None:
    found = simulate(_one_by_one(0.01), 1, 90, 10, balancer=at_random, regular=True)
    assert len(found) >= 900
    assert found == pytest.approx([0.01] * len(found), abs=1e-9)


def test_what_waits_is_answered_together() -> None:
    """Two requests at once take as long as one, so that twice as many can come."""
    assert STEADY.highest_rate == 200
    found = simulate(STEADY, 1, 180, 20, balancer=at_random, regular=True)
    assert percentile(found, 1.0) < 0.021


def test_every_request_has_one_answer_whoever_takes_it() -> None:
    for balancer in (at_random, better_of_two, in_turn()):
        found = simulate(STEADY, 7, 100, 20, balancer=balancer, regular=True)
        assert len(found) == pytest.approx(2000, abs=1)


def test_a_balancer_that_looks_at_two_workers_keeps_the_slowest_answers_short() -> None:
    blind, looking = (
        percentile(simulate(_one_by_one(0.01), 20, 1600, 5, balancer=balancer), 0.99)
        for balancer in (at_random, better_of_two)
    )
    assert looking < 0.5 * blind
