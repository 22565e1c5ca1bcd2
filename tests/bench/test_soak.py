"""The soak in its short form, as CI runs it: everything at once, and every answer checked."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from bench import ROOT
from bench.harness.clients import Shot, Tally
from bench.serving.mixture import Mixture
from bench.serving.soak import Counted, differences

MINUTES = "1"
SECONDS_AT_MOST = 420  # imports and start take a minute where others compute


def test_mixture_is_the_same_for_the_same_seed() -> None:
    mixture = Mixture()
    one, same, other = (mixture.draw(seed) for seed in (1, 1, 2))
    drawn = [next(one) for _ in range(200)]
    assert drawn == [next(same) for _ in range(200)]
    assert drawn != [next(other) for _ in range(200)]


def test_wrong_answers_are_failures() -> None:
    tally = Tally()
    sound = Shot("one", b"", model=("name", "1"), labels=("cat",))
    headers = {"x-request-id": "1"}
    tally.take(sound, 200, headers, b'{"predictions": [{"label": "cat"}]}')
    assert not tally.failures
    tally.take(sound, 200, headers, b'{"predictions": [{"label": "dog"}]}')
    tally.take(sound, 503, headers, b"")
    tally.take(Shot("none", b"", 404), 404, {}, b"")
    assert [line.split(":")[0] for line in tally.failures] == ["one", "one", "none"]


def test_counts_of_the_service_are_compared_with_the_clients_own() -> None:
    key = "POST", "/predict", 200
    tally = Tally(counts=Counter({key: 3}))
    assert differences(tally, Counted(Counter({key: 3}), Counter(), Counter())) == []
    (line,) = differences(tally, Counted(Counter({key: 2}), Counter(), Counter()))
    assert line.endswith("2 counted, 3 seen")
    tally.rejections["unknown-filter"] += 1
    (line,) = differences(tally, Counted(Counter({key: 3}), Counter(), Counter()))
    assert line.endswith("0 counted, 1 seen")


def test_who_left_before_an_answer_may_have_been_answered() -> None:
    left, answered = ("POST", "/predict", 499), ("POST", "/predict", 200)
    tally = Tally(counts=Counter({left: 3}), unsure=1)
    predicted = Counter({("fc", "1", "cat"): 1})
    one, two = (Counter({left: 3 - n, answered: n}) for n in (1, 2))
    assert differences(tally, Counted(one, predicted, Counter())) == []
    assert differences(tally, Counted(two, predicted, Counter()))
    assert differences(tally, Counted(Counter({left: 4}), Counter(), Counter()))


@pytest.mark.slow
@pytest.mark.timeout(SECONDS_AT_MOST + 60)
def test_service_stands_a_minute_of_everything(tmp_path: Path) -> None:
    out = tmp_path / "soak.json"
    command = [sys.executable, "-m", "bench.serving.soak", "--minutes", MINUTES, "--out", str(out)]
    # Other tests take the processors meanwhile, so images may wait for longer than usual.
    patient = {**os.environ, "CONVSCOPE_MAX_WAIT_MS": "10000"}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=patient,
        capture_output=True,
        text=True,
        timeout=SECONDS_AT_MOST,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert found["failures"] == []
    assert found["requests"] > 60
    assert 0.02 < found["hostile"] / found["requests"] < 0.1
