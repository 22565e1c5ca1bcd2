"""Attackers of `bench.serving.overload`: many connections in a process of their own."""

import asyncio
import multiprocessing
import resource
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

import uvloop

from bench.harness.load import LoadFailed
from bench.harness.requests import Address, head

Say = Callable[[str], None]

HOST = "127.0.0.1"
_SOURCES = [f"127.0.0.{number}" for number in range(2, 6)]
"""Source addresses of attackers; each has ports of its own."""


@dataclass(frozen=True)
class Attack:
    """Many connections that misbehave in one way.

    Attributes:
        title: name in the report.
        connections: number of connections.
        head: bytes that are sent at once.
        piece: bytes that are sent repeatedly.
        pause: seconds between two pieces; 0 means that none is sent.
        back: seconds until a connection that was closed is opened again.
    """

    title: str
    connections: int
    head: bytes = b""
    piece: bytes = b""
    pause: float = 0.0
    back: float = 1.0


def _post(*headers: str) -> bytes:
    return head("POST /predict", "Content-Type: image/png", *headers)


_HELD = 24 << 20

ATTACKS = (
    Attack("500 slow bodies", 500, _post("Content-Length: 1000000"), b"x", 1),
    Attack("1,000 idle connections", 1000),
    Attack("10,000 half-open connections", 10_000, b"GET /models HTTP/1.1\r\nA: ", b"a", 5, 5),
    Attack("100 heads of 64 KB at a time", 100, b"GET / HTTP/1.1\r\nA: " + b"a" * 65536, b"a", 5),
    Attack(
        "100 chunked bodies without an end",
        100,
        _post("Transfer-Encoding: chunked"),
        b"1000\r\n" + bytes(4096) + b"\r\n",
        0.1,
    ),
    Attack(
        "30 bodies of 24 MB that stop short",
        30,
        _post(f"Content-Length: {_HELD + 1000}") + bytes(_HELD),
        b"x",
        1,
    ),
)


async def _connect(
    address: Address, number: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    source = (_SOURCES[number % len(_SOURCES)], 0)
    return await asyncio.open_connection(*address, local_addr=source)


async def _dribble(address: Address, number: int, attack: Attack, say: Say) -> None:
    """Hold a connection: send a head and then pieces; connect again when it is closed."""
    while True:
        writer: asyncio.StreamWriter | None = None
        try:
            reader, writer = await _connect(address, number)
            say("connected")
            writer.write(attack.head)
            ended = asyncio.ensure_future(reader.read(4096))
            while not ended.done():
                await asyncio.wait([ended], timeout=attack.pause or None)
                if not ended.done():
                    writer.write(attack.piece)
            answer = ended.result()
            say(f"answered {answer[9:12].decode()}" if answer else "closed")
        except OSError as exc:
            say(type(exc).__name__)
        finally:
            if writer is not None:
                writer.close()
        await asyncio.sleep(attack.back)


def _attack(pipe: Connection, address: Address, attack: Attack) -> None:
    """Main function of the attackers' process: attack until the other end of the pipe sends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its attackers
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    seen: Counter[str] = Counter()

    async def run() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_reader(pipe.fileno(), stop.set)
        tasks: list[asyncio.Task[None]] = []
        for number in range(attack.connections):
            tasks.append(asyncio.create_task(_dribble(address, number, attack, say)))
            if number % 20 == 19:  # fast, but not in one burst
                await asyncio.sleep(0.005)
        await stop.wait()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    def say(word: str) -> None:
        seen[word] += 1

    uvloop.run(run())
    pipe.send(dict(seen))


@contextmanager
def attacking(address: Address, attack: Attack) -> Iterator[Callable[[], dict[str, int]]]:
    """Attack during the block; the function it gives stops the attack and returns its events."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_attack, args=(theirs, address, attack), daemon=True)
    process.start()
    theirs.close()

    def stop() -> dict[str, int]:
        ours.send(None)
        seen: dict[str, int] = ours.recv()
        return seen

    try:
        yield stop
    except EOFError as exc:
        raise LoadFailed("the attackers' process ended by itself") from exc
    finally:
        process.kill()
        process.join()
