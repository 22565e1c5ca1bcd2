import asyncio

import pytest

from app.api.gate import Gate
from app.errors import QueueFull

pytestmark = pytest.mark.anyio


async def _pass(gate: Gate, log: list[str], name: str, leave: asyncio.Event) -> None:
    async with gate.enter():
        log.append(f"{name} in")
        await leave.wait()
        log.append(f"{name} out")


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_those_who_wait_are_let_in_one_by_one_in_their_order() -> None:
    gate, log, leave = Gate("guests", 3), list[str](), asyncio.Event()
    guests = [asyncio.create_task(_pass(gate, log, name, leave)) for name in "abc"]
    await _settle()
    assert log == ["a in"]
    leave.set()
    await asyncio.gather(*guests)
    assert log == ["a in", "a out", "b in", "b out", "c in", "c out"]


async def test_who_would_wait_behind_too_many_is_refused_at_once() -> None:
    gate, log, leave = Gate("guests", 2), list[str](), asyncio.Event()
    guests = [asyncio.create_task(_pass(gate, log, name, leave)) for name in "abc"]
    await _settle()
    with pytest.raises(QueueFull, match="2 guests wait; that is the limit"):
        await _pass(gate, log, "d", leave)
    leave.set()
    await asyncio.gather(*guests)
    await _pass(gate, log, "e", leave)
    assert log[-1] == "e out"


async def test_who_leaves_the_queue_or_fails_inside_makes_room() -> None:
    gate, log, leave = Gate("guests", 1), list[str](), asyncio.Event()
    first = asyncio.create_task(_pass(gate, log, "a", leave))
    waiting = asyncio.create_task(_pass(gate, log, "b", leave))
    await _settle()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    third = asyncio.create_task(_pass(gate, log, "c", leave))
    await _settle()
    first.cancel()
    leave.set()
    await asyncio.gather(first, third, return_exceptions=True)
    assert log == ["a in", "c in", "c out"]
