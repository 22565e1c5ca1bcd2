import asyncio
import logging
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from app.artifact.tensors import Images, Outputs
from app.errors import (
    BackendFailed,
    DamagedImage,
    DeadlineExceeded,
    ImageError,
    NotAnImage,
    QueueFull,
    ShuttingDown,
)
from app.inference.backends import Backend
from app.inference.backlog import Backlog
from app.inference.batcher import LOAD_SECONDS, OTHER_SECONDS, Answer, Batcher
from tests.support.artifacts import CLASSES, numpy_predict, solid
from tests.support.fakes import (
    DyingBackend,
    FailingBackend,
    HangingBackend,
    HeldBackend,
    NumberlessBackend,
    RecordingBackend,
    ShortBackend,
    SlowBackend,
    black,
    burn,
)

pytestmark = pytest.mark.anyio


class Notes:
    """An observer that writes down what it is told."""

    def __init__(self) -> None:
        self.length = 0
        self.batches: list[int] = []

    def waiting(self, change: int) -> None:
        self.length += change

    def computed(self, images: int, seconds: float) -> None:
        assert seconds >= 0
        self.batches.append(images)


class BrokenNotes(Notes):
    """An observer that fails at its first batch."""

    def computed(self, images: int, seconds: float) -> None:
        super().computed(images, seconds)
        if len(self.batches) == 1:
            raise OSError("no space left for metrics")


@asynccontextmanager
async def running(
    backend: Backend,
    max_batch: int = 8,
    capacity: int = 100,
    notes: Notes | None = None,
    in_loop: bool = False,
    max_wait: float = 60.0,
) -> AsyncIterator[Batcher]:
    batcher = Batcher(
        backend,
        max_batch=max_batch,
        capacity=capacity,
        backlog=Backlog(max_wait, at_least=2 * max_batch),
        observer=notes or Notes(),
        in_loop=in_loop,
    )
    batcher.start()
    yield batcher
    if isinstance(backend, HeldBackend):
        backend.release.set()
    if batcher.alive:
        await batcher.stop()


@pytest.fixture(params=[False, True], ids=["thread", "loop"])
def in_loop(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def soon(seconds: float = 60.0) -> float:
    return asyncio.get_running_loop().time() + seconds


def ask(batcher: Batcher, images: Images, seconds: float = 60.0) -> asyncio.Task[Answer]:
    return asyncio.create_task(batcher.submit(images, soon(seconds)))


async def entered(backend: HeldBackend | HangingBackend) -> None:
    assert await asyncio.to_thread(backend.entered.wait, 60)


async def test_each_caller_gets_the_rows_of_its_own_images(in_loop: bool) -> None:
    async with running(SlowBackend(0.01), in_loop=in_loop) as batcher:
        tasks = [ask(batcher, solid(label)) for label in CLASSES * 5]
        for label, task in zip(CLASSES * 5, tasks, strict=True):
            answer = await task
            assert answer.outputs.probabilities.shape == (1, len(CLASSES))
            assert CLASSES[int(answer.outputs.probabilities[0].argmax())] == label


async def test_batch_is_what_waited_while_the_backend_was_busy_up_to_the_limit() -> None:
    backend = HeldBackend()
    async with running(backend, max_batch=4) as batcher:
        first = ask(batcher, solid("red"))
        await entered(backend)
        rest = [ask(batcher, solid("blue")) for _ in range(6)]
        await asyncio.sleep(0)
        backend.release.set()
        await asyncio.gather(first, *rest)
    assert [len(batch) for batch in backend.batches] == [1, 4, 2]


async def test_idle_backend_is_called_at_once(in_loop: bool) -> None:
    backend = RecordingBackend()
    async with running(backend, in_loop=in_loop) as batcher:
        for count in (1, 2, 3):
            # No second request is needed to send the first on its way.
            assert (await ask(batcher, solid("red"))).queue_seconds >= 0
            assert [len(batch) for batch in backend.batches] == [1] * count


async def test_cancelled_request_does_not_affect_batch_mates() -> None:
    backend = HeldBackend()
    async with running(backend) as batcher:
        first = ask(batcher, solid("red"))
        await entered(backend)
        leaves, stays = ask(batcher, solid("green")), ask(batcher, solid("blue"))
        await asyncio.sleep(0)
        leaves.cancel()
        await asyncio.sleep(0)
        backend.release.set()
        assert CLASSES[int((await stays).outputs.probabilities.argmax())] == "blue"
        assert CLASSES[int((await first).outputs.probabilities.argmax())] == "red"
    np.testing.assert_array_equal(np.concatenate(backend.batches[1:]), solid("blue"))


async def test_request_cancelled_as_the_backend_comes_free_is_dropped_before_inference() -> None:
    backend = HeldBackend()
    async with running(backend) as batcher:
        first = ask(batcher, solid("red"))
        await entered(backend)
        leaves = ask(batcher, solid("green"))
        await asyncio.sleep(0)
        # The loop stands still here: the worker is woken before the caller takes its images back.
        backend.release.set()
        _wait_in_the_loop(lambda: len(backend.batches) == 1)
        leaves.cancel()
        await first
    assert [len(batch) for batch in backend.batches] == [1]


async def test_request_cancelled_during_inference_does_not_affect_batch_mates() -> None:
    backend = HeldBackend()
    async with running(backend) as batcher:
        tasks = [ask(batcher, solid("red")), ask(batcher, solid("blue"))]
        await entered(backend)
        tasks[0].cancel()
        await asyncio.sleep(0)
        backend.release.set()
        assert CLASSES[int((await tasks[1]).outputs.probabilities.argmax())] == "blue"
        assert batcher.alive


async def test_cancelled_request_gives_its_place_in_the_queue_back() -> None:
    backend = HeldBackend()
    notes = Notes()
    async with running(backend, capacity=2, notes=notes) as batcher:
        ask(batcher, solid("red"))
        await entered(backend)
        leaves = ask(batcher, np.repeat(solid("green"), 2, axis=0))
        await asyncio.sleep(0)
        leaves.cancel()
        await asyncio.wait([leaves])
        assert notes.length == 0
        stays = ask(batcher, np.repeat(solid("blue"), 2, axis=0))
        await asyncio.sleep(0)
        backend.release.set()
        assert len((await stays).outputs.probabilities) == 2


async def test_error_fails_its_batch_only_and_the_worker_goes_on(in_loop: bool) -> None:
    async with running(FailingBackend(), in_loop=in_loop) as batcher:
        bad = [ask(batcher, black()), ask(batcher, solid("red"))]
        for task in bad:
            with pytest.raises(BackendFailed, match="secret of the inside"):
                await task
        assert len((await ask(batcher, solid("red"))).outputs.probabilities) == 1
        assert batcher.alive


async def test_batch_mates_get_exceptions_of_their_own(in_loop: bool) -> None:
    async with running(FailingBackend(), in_loop=in_loop) as batcher:
        tasks = [ask(batcher, black()), ask(batcher, black())]
        await asyncio.wait(tasks)
        assert tasks[0].exception() is not tasks[1].exception()


async def test_backend_that_loses_a_row_fails_instead_of_answering_the_wrong_caller(
    in_loop: bool,
) -> None:
    async with running(ShortBackend(), in_loop=in_loop) as batcher:
        with pytest.raises(BackendFailed, match="1 answers for 2 images"):
            await ask(batcher, np.repeat(solid("red"), 2, axis=0))


async def test_backend_that_gives_no_numbers_fails(in_loop: bool) -> None:
    async with running(NumberlessBackend(), in_loop=in_loop) as batcher:
        with pytest.raises(BackendFailed, match="no numbers"):
            await ask(batcher, black())


async def test_full_queue_refuses_at_once() -> None:
    backend = HeldBackend()
    async with running(backend, capacity=3) as batcher:
        first = ask(batcher, solid("red"))
        await entered(backend)
        waits = ask(batcher, np.repeat(solid("red"), 2, axis=0))
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match=r"2 images wait and 2 more .* limit is 3"):
            await batcher.submit(np.repeat(solid("red"), 2, axis=0), soon())
        backend.release.set()
        await asyncio.gather(first, waits)


async def test_item_past_its_deadline_is_dropped_before_inference() -> None:
    backend = HeldBackend()
    async with running(backend) as batcher:
        first = ask(batcher, solid("red"))
        await entered(backend)
        late = ask(batcher, solid("green"), seconds=0.05)
        with pytest.raises(DeadlineExceeded, match=r"within 0\.0[345]\d* s"):
            await late
        backend.release.set()
        await first
        await ask(batcher, solid("blue"))
    assert [len(batch) for batch in backend.batches] == [1, 1]


async def test_item_that_expires_while_the_loop_is_busy_is_dropped_before_inference(
    in_loop: bool,
) -> None:
    backend = RecordingBackend()
    async with running(backend, in_loop=in_loop) as batcher:
        with pytest.raises(DeadlineExceeded):
            await batcher.submit(solid("red"), soon(-1))
    assert not backend.batches


async def test_caller_is_told_at_its_deadline_even_while_the_backend_hangs() -> None:
    backend = HeldBackend()
    async with running(backend) as batcher:
        with pytest.raises(DeadlineExceeded):
            await ask(batcher, solid("red"), seconds=0.1)
        assert not backend.batches  # it holds the batch still


async def test_shutdown_drains_the_queue_and_refuses_new_work() -> None:
    backend = HeldBackend()
    async with running(backend, max_batch=1) as batcher:
        tasks = [ask(batcher, solid(label)) for label in CLASSES[:4]]
        await entered(backend)
        stop = asyncio.create_task(batcher.stop(patience=60))
        await asyncio.sleep(0)
        assert not batcher.alive
        with pytest.raises(ShuttingDown):
            await batcher.submit(solid("red"), soon())
        assert not stop.done()
        backend.release.set()
        await stop
        assert len(backend.batches) == 4
        answers = await asyncio.gather(*tasks)
        found = [CLASSES[int(answer.outputs.probabilities.argmax())] for answer in answers]
        assert found == list(CLASSES[:4])


async def test_shutdown_does_not_wait_for_ever_for_a_backend_that_hangs() -> None:
    backend = HangingBackend()
    async with running(backend, max_batch=1) as batcher:
        tasks = [ask(batcher, solid("red")) for _ in range(2)]
        await entered(backend)
        async with asyncio.timeout(30):
            await batcher.stop(patience=0.05)
        for task in tasks:
            with pytest.raises(ShuttingDown, match="before the model answered"):
                await task
        assert not batcher.alive


def test_process_ends_though_a_backend_hangs() -> None:
    program = """
import asyncio
from tests.support.fakes import HangingBackend
from tests.app.inference.test_batcher import ask, entered, running, solid

async def main():
    backend = HangingBackend()
    async with running(backend) as batcher:
        task = ask(batcher, solid("red"))
        await entered(backend)
        await batcher.stop(patience=0.05)
        await asyncio.wait([task])
    print("stopped", type(task.exception()).__name__)

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "stopped ShuttingDown\n"), done.stderr


async def test_observer_that_raises_fails_its_batch_only_and_the_worker_goes_on(
    in_loop: bool,
) -> None:
    async with running(RecordingBackend(), notes=BrokenNotes(), in_loop=in_loop) as batcher:
        with pytest.raises(BackendFailed, match="no space left for metrics"):
            await ask(batcher, solid("red"))
        assert batcher.alive
        assert len((await ask(batcher, solid("red"))).outputs.probabilities) == 1


async def test_images_of_two_sizes_fail_their_batch_only_and_the_worker_goes_on() -> None:
    backend = HeldBackend()
    async with running(backend) as batcher:
        first = ask(batcher, solid("red"))
        await entered(backend)
        mixed = [ask(batcher, solid("red")), ask(batcher, np.zeros((1, 8, 8, 3), np.uint8))]
        await asyncio.sleep(0)
        backend.release.set()
        await first
        for task in mixed:
            with pytest.raises(BackendFailed, match="must match exactly"):
                await task
        assert batcher.alive


async def test_backend_that_ends_its_thread_is_given_up_and_nobody_waits_for_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running(DyingBackend(), max_batch=1) as batcher:
        tasks = [ask(batcher, solid("red")) for _ in range(3)]
        with caplog.at_level(logging.CRITICAL):
            await asyncio.wait(tasks, timeout=60)
        assert all(isinstance(task.exception(), BackendFailed) for task in tasks)
        assert not batcher.alive
        with pytest.raises(BackendFailed, match="given up"):
            await batcher.submit(solid("red"), soon())
        assert "a model was given up" in caplog.text


async def test_group_larger_than_a_batch_is_computed_in_several_and_joined(in_loop: bool) -> None:
    notes = Notes()
    backend = SlowBackend(0.01)
    images = np.concatenate([solid(label) for label in CLASSES])
    async with running(backend, max_batch=4, notes=notes, in_loop=in_loop) as batcher:
        answer = await ask(batcher, images)
    np.testing.assert_allclose(answer.outputs.probabilities, numpy_predict(images), atol=1e-6)
    assert notes.batches == [4, 2]
    assert answer.inference_seconds >= 0.02


async def test_group_that_fails_in_part_fails_whole_and_leaves_nothing_behind(
    in_loop: bool,
) -> None:
    backend = FailingBackend()
    notes = Notes()
    images = np.concatenate([black(), np.repeat(solid("red"), 3, axis=0)])
    async with running(backend, max_batch=1, notes=notes, in_loop=in_loop) as batcher:
        with pytest.raises(BackendFailed):
            await ask(batcher, images)
        await ask(batcher, solid("blue"))
    assert notes.length == 0


async def test_times_of_waiting_and_computing_are_told_apart(in_loop: bool) -> None:
    async with running(SlowBackend(0.1), max_batch=1, in_loop=in_loop) as batcher:
        first, second = ask(batcher, solid("red")), ask(batcher, solid("red"))
        a, b = await first, await second
    assert min(a.inference_seconds, b.inference_seconds) >= 0.1
    # Both came at the same moment; the second has waited while the first was computed.
    assert b.queue_seconds >= a.queue_seconds + 0.1


async def test_event_loop_answers_while_the_backend_computes() -> None:
    backend = HeldBackend()
    async with running(backend) as batcher:
        task = ask(batcher, solid("red"))
        await entered(backend)
        await asyncio.sleep(0.01)
        assert not task.done()  # the loop goes round, and the backend is not let go
        backend.release.set()
        await task


def _wait_in_the_loop(condition: Callable[[], bool]) -> None:
    """Wait without giving way to the loop, until shortly after the condition holds."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.1)


async def test_loop_computes_what_came_in_one_turn_together_up_to_a_batch() -> None:
    backend = RecordingBackend()
    async with running(backend, max_batch=4, in_loop=True) as batcher:
        tasks = [ask(batcher, solid("red")) for _ in range(6)]
        turns = 0
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0)
            turns += 1
            if len(backend.batches) == 1:
                assert sum(task.done() for task in tasks) in {0, 4}
    assert [len(batch) for batch in backend.batches] == [4, 2]
    assert turns >= 3


async def turns_after_batches(burnt: float) -> Counter[int]:
    """Count the turns after each of three batches, in each of which other work burns seconds."""
    backend = RecordingBackend()
    turns = Counter[int]()
    async with running(backend, max_batch=1, in_loop=True) as batcher:
        tasks = [ask(batcher, solid("red")) for _ in range(3)]
        while not all(task.done() for task in tasks):
            burn(burnt)
            await asyncio.sleep(0)
            turns[len(backend.batches)] += 1
    return turns


async def test_other_work_has_several_turns_between_two_batches() -> None:
    """A new connection and its answer by ASGI take about five."""
    turns = await turns_after_batches(burnt=0.0)
    assert turns[1] > 5
    assert turns[2] > 5


async def test_other_work_holds_up_the_next_batch_for_milliseconds_only() -> None:
    turns = await turns_after_batches(burnt=OTHER_SECONDS / 2)  # as decoding for others does
    assert turns[1] <= 4
    assert turns[2] <= 4


async def test_images_that_cannot_be_loaded_leave_others_their_turns_too() -> None:
    def broken() -> Images:
        time.sleep(LOAD_SECONDS)
        raise NotAnImage("no image")

    async with running(RecordingBackend(), in_loop=True) as batcher:
        answers = [batcher.begin(broken, 60.0) for _ in range(3)]
        turns = Counter[int]()
        while not all(answer.done() for answer in answers):
            await asyncio.sleep(0)
            turns[sum(answer.done() for answer in answers)] += 1
        for answer in answers:
            assert isinstance(answer.exception(), NotAnImage)
    assert turns[1] > 5
    assert turns[2] > 5


async def test_answer_says_how_long_its_image_was_loaded_and_how_long_it_waited(
    in_loop: bool,
) -> None:
    def slow() -> Images:
        time.sleep(0.05)
        return solid("red")

    async with running(RecordingBackend(), in_loop=in_loop) as batcher:
        answer = await batcher.begin(slow, 60.0)
    assert 0.05 <= answer.load_seconds < 0.1
    assert 0 <= answer.queue_seconds < 0.04


async def test_loop_drops_a_request_that_is_cancelled_before_its_turn() -> None:
    backend = RecordingBackend()
    notes = Notes()
    async with running(backend, max_batch=1, notes=notes, in_loop=True) as batcher:
        tasks = [ask(batcher, solid(label)) for label in ("red", "green", "blue")]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.wait(tasks)
    np.testing.assert_array_equal(
        np.concatenate(backend.batches), np.concatenate([solid("red"), solid("blue")])
    )
    assert notes.length == 0


async def test_loop_finishes_what_waits_before_it_stops() -> None:
    async with running(RecordingBackend(), max_batch=1, in_loop=True) as batcher:
        tasks = [ask(batcher, solid("red")) for _ in range(4)]
        await asyncio.sleep(0)
        await batcher.stop()
        assert [len((await task).outputs.probabilities) for task in tasks] == [1] * 4
        with pytest.raises(ShuttingDown):
            await batcher.submit(solid("red"), soon())


async def test_begun_request_gets_its_answer(in_loop: bool) -> None:
    async with running(RecordingBackend(), in_loop=in_loop) as batcher:
        answers = [batcher.begin(partial(solid, label), 60.0) for label in CLASSES]
        for label, answer in zip(CLASSES, await asyncio.gather(*answers), strict=True):
            assert CLASSES[int(answer.outputs.probabilities.argmax())] == label


async def test_begun_request_past_its_deadline_is_never_computed(in_loop: bool) -> None:
    backend = RecordingBackend()
    async with running(backend, in_loop=in_loop) as batcher:
        with pytest.raises(DeadlineExceeded):
            await batcher.begin(partial(solid, "red"), -1)
    assert not backend.batches


async def test_begun_request_is_told_at_its_deadline_while_the_backend_hangs() -> None:
    async with running(HeldBackend()) as batcher:
        with pytest.raises(DeadlineExceeded):
            await batcher.begin(partial(solid, "red"), 0.1)


async def test_begun_request_that_is_cancelled_is_never_computed(in_loop: bool) -> None:
    backend, notes = RecordingBackend(), Notes()
    async with running(backend, notes=notes, in_loop=in_loop) as batcher:
        leaves, stays = (batcher.begin(partial(solid, label), 60.0) for label in ("red", "blue"))
        leaves.cancel()
        await stays
    np.testing.assert_array_equal(np.concatenate(backend.batches), solid("blue"))
    assert notes.length == 0


async def test_nothing_waits_for_a_model_that_was_given_up(in_loop: bool) -> None:
    notes = Notes()
    async with running(DyingBackend(), max_batch=1, notes=notes, in_loop=in_loop) as batcher:
        answers = [batcher.begin(partial(solid, "red"), 60.0) for _ in range(3)]
        for answer in answers:
            with pytest.raises(BackendFailed):
                await answer
        assert notes.length == 0
        with pytest.raises(BackendFailed, match="given up"):
            batcher.begin(partial(solid, "red"), 60.0)


class TimedBackend(HeldBackend):
    """Takes `seconds` for a batch, by a clock of its own; held unless `release` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.125
        self.release.set()
        self.now = 1000.0

    def predict(self, images: Images) -> Outputs:
        self.now += self.seconds
        return super().predict(images)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> TimedBackend:
    """A backend whose clock is the batcher's."""
    backend = TimedBackend()
    clock = SimpleNamespace(perf_counter=lambda: backend.now, thread_time=lambda: 0.0)
    monkeypatch.setattr("app.inference.batcher.time", clock)
    return backend


async def measured(batcher: Batcher) -> None:
    """Let the batcher learn the rate of batches behind which images wait."""
    await asyncio.gather(*(ask(batcher, solid("red")) for _ in range(6)))


def fill(batcher: Batcher) -> tuple[list[asyncio.Future[Answer]], str]:
    """Begin requests until one is refused; return the others, and the refusal."""
    begun = list[asyncio.Future[Answer]]()
    for _ in range(200):
        try:
            batcher.check_wait()
            begun.append(batcher.begin(partial(solid, "red"), 60.0))
        except QueueFull as exc:
            return begun, str(exc)
    raise AssertionError("200 images wait")


@pytest.mark.parametrize(
    ("max_wait", "waits", "reason"),
    [
        (0.5, 8, "an image would wait for longer than 500 ms; that is the limit"),
        (0.375, 6, "an image would wait for longer than 375 ms; that is the limit"),
        (0.05, 4, "an image would wait for longer than 50 ms; that is the limit"),  # two batches
        (60.0, 100, "100 images wait; that is the limit"),
    ],
)
async def test_image_that_would_wait_for_too_long_is_refused(
    timed: TimedBackend, in_loop: bool, max_wait: float, waits: int, reason: str
) -> None:
    """At two images a batch, the rate is 16 a second."""
    async with running(timed, max_batch=2, in_loop=in_loop, max_wait=max_wait) as batcher:
        await measured(batcher)
        for _ in range(2):  # there is room again when the first have their answers
            assert batcher.refusal is None
            begun, refusal = fill(batcher)
            assert (len(begun), refusal) == (waits, reason)
            assert str(batcher.refusal) == reason
            with pytest.raises(QueueFull) as refused:
                batcher.check_wait()
            assert str(refused.value) == reason
            assert refused.value is not batcher.refusal  # each request raises its own
            await asyncio.gather(*begun)


@pytest.mark.parametrize(("images", "waits"), [(1, 4), (2, 8)])
async def test_batches_behind_which_nothing_waits_teach_their_own_time(
    timed: TimedBackend, in_loop: bool, images: int, waits: int
) -> None:
    async with running(timed, max_batch=2, in_loop=in_loop, max_wait=0.5) as batcher:
        for _ in range(4):
            await asyncio.gather(*(ask(batcher, solid("red")) for _ in range(images)))
            timed.now += 1000
        begun, _ = fill(batcher)
        assert len(begun) == waits
        await asyncio.gather(*begun)


async def test_pause_between_two_bursts_is_not_taken_for_a_low_rate(
    timed: TimedBackend, in_loop: bool
) -> None:
    async with running(timed, max_batch=2, in_loop=in_loop, max_wait=0.5) as batcher:
        for _ in range(3):
            await measured(batcher)
            timed.now += 1000
        begun, _ = fill(batcher)
        assert len(begun) == 8
        await asyncio.gather(*begun)


@pytest.mark.parametrize(("slow", "waits"), [(2, 8), (3, 4)])
async def test_batches_that_are_held_up_count_when_they_are_the_most_of_five(
    timed: TimedBackend, in_loop: bool, slow: int, waits: int
) -> None:
    async with running(timed, max_batch=2, in_loop=in_loop, max_wait=0.5) as batcher:
        for seconds in [0.125] * (5 - slow) + [1000.0] * slow:
            timed.seconds = seconds
            await asyncio.gather(*(ask(batcher, solid("red")) for _ in range(2)))
        begun, _ = fill(batcher)
        assert len(begun) == waits
        await asyncio.gather(*begun)


async def test_stalled_backend_has_as_many_images_wait_as_at_the_rate_before(
    timed: TimedBackend,
) -> None:
    async with running(timed, max_batch=2, max_wait=0.5) as batcher:
        await measured(batcher)
        timed.release.clear()
        timed.entered.clear()
        held: list[asyncio.Future[Answer]] = [ask(batcher, solid("red")) for _ in range(3)]
        await entered(timed)
        timed.now += 1000
        begun, reason = fill(batcher)
        assert len(begun) == 8 - 1  # one of the held waits too
        assert "longer than 500 ms" in reason
        timed.release.set()
        await asyncio.gather(*held, *begun)


async def test_bound_recovers_after_a_slow_start(timed: TimedBackend, in_loop: bool) -> None:
    async with running(timed, max_batch=2, in_loop=in_loop, max_wait=0.5) as batcher:
        timed.seconds = 1000.0
        await measured(batcher)
        timed.seconds = 0.125
        begun, _ = fill(batcher)
        assert len(begun) < 8
        for _ in range(100):  # one after the other is enough
            await asyncio.gather(*begun)
            begun = [batcher.begin(partial(solid, label), 60.0) for label in ("red", "blue")]
        await asyncio.gather(*begun)
        begun, _ = fill(batcher)
        assert len(begun) == 8
        await asyncio.gather(*begun)


async def test_images_that_load_slowly_leave_other_connections_their_turn() -> None:
    turns = list[int]()
    loaded = 0

    def slow() -> Images:
        nonlocal loaded
        loaded += 1
        time.sleep(2 * LOAD_SECONDS)
        return solid("red")

    async with running(RecordingBackend(), in_loop=True) as batcher:
        answers = [batcher.begin(slow, 60.0) for _ in range(4)]
        while not all(answer.done() for answer in answers):
            turns.append(loaded)
            await asyncio.sleep(0)
    assert {0, 1, 2, 3} <= set(turns)


class Journal:
    """What happened in order: images that were loaded, and batches by their size."""

    def __init__(self) -> None:
        self.events: list[str | int] = []

    def load(self, label: str) -> Images:
        self.events.append(label)
        if label == "broken":
            raise DamagedImage("it is broken")
        return solid(label)

    def predict(self, images: Images) -> Outputs:
        self.events.append(len(images))
        return Outputs.of_classes(numpy_predict(images))


async def test_loop_loads_an_image_when_its_turn_comes() -> None:
    journal = Journal()
    async with running(journal, max_batch=2, in_loop=True) as batcher:
        labels = ("red", "green", "blue")
        answers = [batcher.begin(partial(journal.load, label), 60.0) for label in labels]
        assert not journal.events
        await asyncio.gather(*answers)
    assert journal.events == ["red", "green", 2, "blue", 1]


async def test_image_is_loaded_at_once_while_the_thread_computes() -> None:
    journal, backend = Journal(), HeldBackend()
    async with running(backend) as batcher:
        first = ask(batcher, solid("red"))
        await entered(backend)
        second = batcher.begin(partial(journal.load, "blue"), 60.0)
        assert journal.events == ["blue"]
        backend.release.set()
        await asyncio.gather(first, second)


async def test_loop_never_loads_an_image_that_is_cancelled_or_late() -> None:
    journal, notes = Journal(), Notes()
    async with running(journal, notes=notes, in_loop=True) as batcher:
        leaves = batcher.begin(partial(journal.load, "red"), 60.0)
        late = batcher.begin(partial(journal.load, "green"), -1)
        stays = batcher.begin(partial(journal.load, "blue"), 60.0)
        leaves.cancel()
        with pytest.raises(DeadlineExceeded):
            await late
        await stays
    assert journal.events == ["blue", 1]
    assert notes.length == 0


@pytest.mark.parametrize(
    ("labels", "batches"),
    [
        (["red", "broken", "blue"], [2]),
        (["broken", "broken", "broken", "blue"], [1]),
        (["broken", "broken", "broken"], []),
    ],
)
async def test_image_that_cannot_be_loaded_fails_alone(
    in_loop: bool, labels: list[str], batches: list[int]
) -> None:
    journal, notes = Journal(), Notes()

    async def answer(batcher: Batcher, label: str) -> str:
        answer = await batcher.begin(partial(journal.load, label), 60.0)
        return CLASSES[int(answer.outputs.probabilities.argmax())]

    async with running(journal, max_batch=4, notes=notes, in_loop=in_loop) as batcher:
        found = await asyncio.gather(
            *(answer(batcher, label) for label in labels), return_exceptions=True
        )
        for label, result in zip(labels, found, strict=True):
            assert result == label or (label == "broken" and isinstance(result, ImageError))
        assert notes.batches == batches
        assert notes.length == 0
        assert await answer(batcher, "cyan") == "cyan"


async def test_loop_loads_no_more_images_in_a_turn_than_a_batch_holds() -> None:
    """Else a queue of broken images, each of them small, stops the loop."""
    journal = Journal()
    async with running(journal, max_batch=4, in_loop=True) as batcher:
        answers = [batcher.begin(partial(journal.load, "broken"), 60.0) for _ in range(20)]
        loaded = [0]
        while loaded[-1] < len(answers):
            await asyncio.sleep(0)
            loaded.append(len(journal.events))
        await asyncio.wait(answers)
    assert max(after - before for before, after in pairwise(loaded)) <= 4
    assert all(isinstance(answer.exception(), ImageError) for answer in answers)
