import asyncio

import pytest

from app.api.uploads import memory
from app.api.uploads.memory import Bodies
from app.errors import QueueFull

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def slow_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SLOW_SECONDS", 0)


async def _send(room: Bodies, size: int, release: asyncio.Event, *, whole: bool = False) -> None:
    with room.hold() as hold:
        hold.grow(size)
        if whole:
            hold.complete()
        await release.wait()


async def _start(*senders: asyncio.Task[None]) -> None:
    for _ in senders:
        await asyncio.sleep(0)


async def test_what_is_held_is_given_back() -> None:
    room = Bodies(100)
    with room.hold() as hold:
        for size in (10, 60, 100):
            hold.grow(size)
            assert room.held == size
    assert room.held == 0


async def test_peak_is_the_most_that_was_held_since_it_was_last_taken() -> None:
    room = Bodies(100)
    with room.hold() as first:
        first.grow(60)
        with room.hold() as second:
            second.grow(30)
        assert room.take_peak() == 90
        assert room.take_peak() == 60
    assert room.take_peak() == 60
    assert room.take_peak() == 0


async def test_body_that_does_not_fit_beside_quick_ones_is_refused() -> None:
    room, release = Bodies(100), asyncio.Event()
    first = asyncio.create_task(_send(room, 80, release))
    await _start(first)
    with pytest.raises(QueueFull, match="bodies of 80 bytes are held and 30 more do not fit"):
        await _send(room, 30, release)
    assert room.held == 80
    release.set()
    await first
    assert room.held == 0


@pytest.mark.usefixtures("slow_at_once")
async def test_slowest_body_makes_room() -> None:
    room, release = Bodies(100), asyncio.Event()
    slow = [asyncio.create_task(_send(room, 40, release)) for _ in range(2)]
    await _start(*slow)
    late = asyncio.create_task(_send(room, 50, release))
    with pytest.raises(
        QueueFull, match="still arriving after 0 s, and other requests needed the 100 bytes"
    ):
        await slow[0]
    assert room.held == 90
    release.set()
    await asyncio.gather(slow[1], late)
    assert room.held == 0


@pytest.mark.usefixtures("slow_at_once")
async def test_body_that_has_arrived_does_not_make_room() -> None:
    room, release = Bodies(100), asyncio.Event()
    whole = asyncio.create_task(_send(room, 80, release, whole=True))
    await _start(whole)
    with pytest.raises(QueueFull):
        await _send(room, 30, release)
    release.set()
    await whole
    assert room.held == 0


@pytest.mark.usefixtures("slow_at_once")
async def test_cancelling_for_another_reason_stays_a_cancelling() -> None:
    room, release = Bodies(100), asyncio.Event()
    sender = asyncio.create_task(_send(room, 80, release))
    await _start(sender)
    sender.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sender
    assert room.held == 0
