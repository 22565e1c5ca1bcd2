"""The limits of a connection, tested on real sockets."""

import asyncio
import json
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from app.errors import QueueFull
from app.problems import Problem
from app.server.overload import MAX_HEAD_BYTES, is_plain_post, shed_answer
from bench.harness.requests import head, message
from tests.conftest import Connect, Picture
from tests.support.fakes import HeldBackend
from tests.support.servers import CONVSCOPE, Server, get, sockets, started, wait_until

pytestmark = pytest.mark.anyio

LIVE = head("GET /health/live")


@pytest.fixture(scope="module")
def server(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("protocol") / "log"
    limits = {
        "CONVSCOPE_HEAD_TIMEOUT_SECONDS": "1",
        "CONVSCOPE_BODY_TIMEOUT_SECONDS": "2",
        "CONVSCOPE_KEEP_ALIVE_SECONDS": "2",
        "CONVSCOPE_MAX_CONNECTIONS": "40",
    }
    with started([*CONVSCOPE, "serve", "--workers", "1"], store_path, log, **limits) as running:
        yield running
        assert running.stop() == 0
        assert "Traceback" not in log.read_text()


def _post(body: bytes, *more: str) -> bytes:
    return message("POST /predict", body, "Content-Type: image/png", *more)


def _read_all(connection: socket.socket) -> bytes:
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    return received


def _problem(received: bytes, status: int) -> Problem:
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), received
    assert b"content-type: application/problem+json" in head
    problem = Problem.model_validate_json(body)
    assert f"x-request-id: {problem.request_id}".encode() in head
    assert problem.status == status
    return problem


@pytest.mark.parametrize(
    "head",
    [
        head("GET /health/live", f"X: {'a' * 65536}"),
        b"GET /filters HTTP/1.1\r\nHost: x\r\nAccept: %b" % (b"a/b," * 100_000),
        b"GET /filters HTTP/1.1\r\nHost: x\r\n%b\r\n" % (b"a: b\r\n" * 20_000),
        head(f"GET /{'a' * 40_000}"),
    ],
    ids=["one header", "no end", "many headers", "path"],
)
def test_large_head_is_refused(server: Server, head: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(head)
        problem = _problem(_read_all(connection), 431)
    assert problem.detail.endswith(f"the limit is {MAX_HEAD_BYTES} bytes")
    counted = get(f"{server.url}/metrics").text
    assert 'requests_total{method="other",route="other",status="431"}' in counted
    assert 'method="GET",route="other",status="431"' not in counted


def test_usual_head_is_taken(server: Server) -> None:
    assert get(f"{server.url}/health/live", headers={"Cookie": "a" * 16_000}).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n",
        head("FETCH /"),
        head("POST /predict", "Content-Length: ten"),
        head("GET /", "bad header"),
    ],
    ids=["TLS", "method", "length", "header"],
)
def test_what_is_not_http_is_refused_as_a_problem(server: Server, sent: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(sent)
        assert _problem(_read_all(connection), 400).detail.startswith(
            "malformed HTTP/1.1 request: "
        )


@pytest.mark.parametrize(
    ("target", "status", "instance"),
    [
        ("http://evil", 200, None),
        ("http://evil/", 200, None),
        ("HTTP://x:8000?a=1", 200, None),
        ("http://x/health/live", 200, None),
        ("https://x/cats?a=1#b", 404, "/cats"),
        ("http://x//cats", 404, "//cats"),
    ],
)
def test_whole_url_as_a_target_stands_for_its_path(
    server: Server, target: str, status: int, instance: str | None
) -> None:
    with server.connect() as connection:
        connection.sendall(head(f"GET {target}", "Connection: close"))
        received = _read_all(connection)
    assert received.startswith(b"HTTP/1.1 %d " % status)
    if instance is not None:
        assert _problem(received, status).instance == instance


@pytest.mark.parametrize("target", ["http://[::1/", "http://x:99999/", "http:///x"])
def test_target_that_is_neither_a_path_nor_a_whole_url_is_named(
    server: Server, target: str
) -> None:
    with server.connect() as connection:
        connection.sendall(head(f"GET {target}"))
        problem = _problem(_read_all(connection), 400)
    assert problem.detail == f"the request's target '{target}' is neither a path nor a whole URL"


@pytest.mark.parametrize(
    ("version", "hosts", "status"),
    [("1.1", 1, 200), ("1.1", 0, 400), ("1.1", 2, 400), ("1.0", 0, 200), ("1.0", 2, 400)],
)
def test_request_says_once_which_host_it_asks(
    server: Server, version: str, hosts: int, status: int
) -> None:
    with server.connect() as connection:
        lines = [f"GET /health/live HTTP/{version}", *["Host: x"] * hosts, "Connection: close"]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        received = _read_all(connection)
    assert received.startswith(b"HTTP/1.1 %d " % status)
    if status == 400:
        detail = f"the request has {hosts} Host headers; there must be one"
        assert _problem(received, 400).detail == detail


@pytest.mark.parametrize(
    ("line", "end"),
    [
        ("GET / HTTP/2.0", "HTTP/2.0"),
        ("GET / HTTP/0.9", "HTTP/0.9"),
        ("GET /", "/"),
        ("DESCRIBE / RTSP/1.0", "RTSP/1.0"),
        ("SOURCE / ICE/1.0", "ICE/1.0"),
    ],
)
def test_other_versions_and_protocols_are_refused(server: Server, line: str, end: str) -> None:
    with server.connect() as connection:
        connection.sendall(f"{line}\r\nHost: x\r\n\r\n".encode())
        problem = _problem(_read_all(connection), 400)
    expected = f"the request's first line ends in '{end}'; it must end in HTTP/1.1 or HTTP/1.0"
    assert problem.detail == expected


@pytest.mark.parametrize(
    ("coding", "status"),
    [
        ("chunked", 200),
        ("Chunked ", 200),
        ("gzip, chunked", 400),
        ("gzip\r\nTransfer-Encoding: chunked", 400),
        ("x" * 200 + ",chunked", 400),
    ],
)
def test_other_transfer_codings_are_refused_by_their_name(
    server: Server, picture: Picture, coding: str, status: int
) -> None:
    body = picture("red")
    with server.connect() as connection:
        lines = ["Content-Type: image/png", "Connection: close", f"Transfer-Encoding: {coding}"]
        connection.sendall(head("POST /predict", *lines))
        connection.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        received = _read_all(connection)
    assert received.startswith(b"HTTP/1.1 %d " % status)
    if status == 400:
        sent = coding.replace("\r\nTransfer-Encoding:", ",")
        detail = f"Transfer-Encoding is {sent[:100]!r}; it must be 'chunked' or absent"
        assert _problem(received, 400).detail == detail


@pytest.mark.parametrize(("zeros", "status"), [(15, 200), (16, 400), (5000, 400)])
def test_length_has_a_limit_of_digits(
    server: Server, picture: Picture, zeros: int, status: int
) -> None:
    body = picture("red").ljust(10_000, b"\0")
    length = f"Content-Length: {'0' * zeros}{len(body)}"
    with server.connect() as connection:
        connection.sendall(
            head("POST /predict", "Content-Type: image/png", "Connection: close", length) + body
        )
        received = _read_all(connection)
    assert received.startswith(b"HTTP/1.1 %d " % status)
    if status == 400:
        detail = f"Content-Length has {zeros + 5} digits; the limit is 20"
        assert _problem(received, 400).detail == detail


def test_refusal_of_head_has_no_body(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(head("HEAD /", "Host: y"))
        received = _read_all(connection)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert re.search(rb"\r\ncontent-length: [1-9]", received)
    assert received.index(b"\r\n\r\n") == len(received) - 4


def test_slow_head_is_refused_in_time(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        started_at = time.monotonic()
        problem = _problem(_read_all(connection), 408)
        assert time.monotonic() - started_at < 5
    assert problem.detail == "the request's head did not arrive within 1 seconds"


def test_slow_body_is_refused_in_time(server: Server) -> None:
    with server.connect() as connection:
        connection.settimeout(0.3)
        connection.sendall(head("POST /predict", "Content-Length: 1000"))
        received = b""
        for _ in range(20):
            connection.sendall(b"x")
            try:
                received += connection.recv(65536)
            except TimeoutError:
                continue
            break
    assert _problem(received, 408).title == "Upload took too long"


def test_silent_connection_is_closed(server: Server) -> None:
    with server.connect() as connection:
        assert connection.recv(1) == b""


def test_idle_connection_is_closed_after_keep_alive(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(LIVE)
        started_at = time.monotonic()
        assert _read_all(connection).startswith(b"HTTP/1.1 200 ")
        assert 1 < time.monotonic() - started_at < 5


def test_half_open_connections_give_way_to_those_that_ask(server: Server, picture: Picture) -> None:
    half_open = [server.connect() for _ in range(100)]
    try:
        for connection in half_open:
            connection.send(b"GET / HT")
        with server.connect() as connection:
            connection.sendall(_post(picture("red"), "Connection: close"))
            assert b'"label":"red"' in _read_all(connection)
    finally:
        for connection in half_open:
            connection.close()


def test_offer_of_another_protocol_is_not_taken(server: Server, picture: Picture) -> None:
    with server.connect() as connection:
        offer = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"]
        connection.sendall(_post(picture("red"), *offer))
        received = b""
        while not received.endswith(b"}]}"):
            received += connection.recv(65536)
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b'"label":"red"' in received


def test_refused_body_is_not_read_for_ever(server: Server) -> None:
    chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    with server.connect() as connection:
        chunked = head("POST /predict", "Content-Type: text/plain", "Transfer-Encoding: chunked")
        connection.sendall(chunked)
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            connection.sendall(chunk * 200)


def test_what_is_refused_here_is_counted(server: Server) -> None:
    def count() -> float:
        (value,) = [
            line.split()[1]
            for line in get(f"{server.url}/metrics").text.splitlines()
            if line.startswith('convscope_rejections_total{reason="malformed-request"}')
        ] or ["0"]
        return float(value)

    before = count()
    with server.connect() as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        _read_all(connection)
    assert count() == before + 1


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_worker_with_enough_to_do_refuses_posts_at_once_and_takes_gets(
    connect: Connect, picture: Picture
) -> None:
    backend = HeldBackend()
    async with (
        connect(backend, max_requests=2) as client,
        sockets(client) as (port, connections),
    ):
        streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        for _, writer in streams[:2]:
            writer.write(_post(picture("red")))
        await _until(lambda: connections.working == 2)
        reader, writer = streams[2]
        for _ in range(2):  # the connection stays
            writer.write(_post(picture("red")))
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readuntil(b"}")
            problem = _problem(head + body, 503)
            assert b"retry-after: 1\r\n" in head.lower()
            assert problem.type == "urn:convscope:problem:queue-full"
            assert problem.detail == "the worker has 2 requests to answer; that is the limit"
            assert problem.instance == "/predict"
        writer.write(LIVE)
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200 ")
        backend.release.set()
        for reader, _ in streams[:2]:
            assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200 ")
        await _until(lambda: connections.working == 0)
        metrics = (await client.get("/metrics")).text
        for _, writer in streams:
            writer.close()
    for route, status in (("/predict", 503), ("/predict", 200)):
        line = f'convscope_http_requests_total{{method="POST",route="{route}",status="{status}"}}'
        assert f"{line} 2.0" in metrics
    assert 'convscope_rejections_total{reason="queue-full"} 2.0' in metrics
    assert sum(map(len, backend.batches)) == 2


@pytest.mark.parametrize("path", ["/predict", f"/{'0' * 32}", f"/{'0' * 64}"])
def test_refusal_by_a_full_worker_repeats_any_path(path: str) -> None:
    assert _problem(shed_answer(QueueFull("full"), path, keep=True), 503).instance == path


async def test_full_worker_closes_the_connection_of_an_old_client(
    connect: Connect, picture: Picture
) -> None:
    async with connect(HeldBackend()) as client, sockets(client) as (port, connections):
        connections.working = connections.settings.max_requests
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        post = _post(picture("red"), "Connection: keep-alive")
        writer.write(post.replace(b"HTTP/1.1", b"HTTP/1.0", 1))
        async with asyncio.timeout(10):
            received = await reader.read()
        writer.close()
    _problem(received, 503)
    assert b"connection: close\r\n" in received


async def test_body_of_a_refused_request_need_not_arrive(
    connect: Connect, picture: Picture
) -> None:
    backend = HeldBackend()
    async with (
        connect(backend, max_requests=1) as client,
        sockets(client) as (port, connections),
    ):
        _, first = await asyncio.open_connection("127.0.0.1", port)
        first.write(_post(picture("red")))
        await _until(lambda: connections.working == 1)
        reader, second = await asyncio.open_connection("127.0.0.1", port)
        second.write(_post(bytes(1000))[:-500])
        _problem(await reader.read(), 503)
        backend.release.set()
        await _until(lambda: connections.working == 0)
        first.close()
        second.close()


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_client_that_goes_away_frees_its_place(
    connect: Connect, picture: Picture, how: str
) -> None:
    backend = HeldBackend()
    async with (
        connect(backend, max_requests=10) as client,
        sockets(client) as (port, connections),
    ):
        held = asyncio.create_task(
            client.post("/predict", content=picture("red"), headers={"Content-Type": "image/png"})
        )
        assert await asyncio.to_thread(backend.entered.wait, 5)
        with closing(socket.create_connection(("127.0.0.1", port))) as leaver:
            leaver.sendall(_post(picture("blue")))
            await _until(lambda: connections.working == 1)
            if how == "reset":
                leaver.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await _until(lambda: connections.working == 0)
        backend.release.set()
        assert json.loads((await held).text)["predictions"][0]["label"] == "red"
    assert sum(map(len, backend.batches)) == 1


async def test_large_head_of_a_pipelined_request_does_not_overtake_the_answer_before_it(
    connect: Connect, picture: Picture
) -> None:
    backend = HeldBackend()
    async with connect(backend) as client, sockets(client) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(_post(picture("red")))
        assert await asyncio.to_thread(backend.entered.wait, 5)
        writer.write(b"GET / HTTP/1.1\r\nX: " + b"a" * 50_000)
        await asyncio.sleep(0.05)
        backend.release.set()
        received = await reader.read()
        writer.close()
    first, second = received.split(b"HTTP/1.1 431 ")
    assert first.startswith(b"HTTP/1.1 200 ")
    assert first.count(b"HTTP/1.1") == 1
    _problem(b"HTTP/1.1 431 " + second, 431)


def test_slow_uploads_are_closed_before_those_that_are_answered(
    server: Server, picture: Picture
) -> None:
    uploads = [server.connect() for _ in range(60)]
    try:
        for connection in uploads:
            connection.send(head("POST /predict", "Content-Length: 9") + b"x")
        wait_until(lambda: get(f"{server.url}/health/ready").status_code == 200)
        with server.connect() as connection:
            connection.sendall(_post(picture("red"), "Connection: close"))
            assert b'"label":"red"' in _read_all(connection)
    finally:
        for connection in uploads:
            connection.close()


@pytest.mark.parametrize(
    ("line", "headers", "plain"),
    [
        (b"POST /predict HTTP/1.1", [], True),
        (b"POST /predict?top_k=1 HTTP/1.1", [b"Connection: keep-alive"], True),
        (b"POST /predict HTTP/1.0", [], False),
        (b"POST /explain HTTP/1.1", [], True),
        (b"POST http://x/predict HTTP/1.1", [], False),
        (b"GET /predict HTTP/1.1", [], False),
        (b"POST /predict HTTP/1.1", [b"Connection: close"], False),
        (b"POST /predict HTTP/1.1", [b"Transfer-Encoding: chunked"], False),
        (b"POST /predict HTTP/1.1", [b"content-length: 9"], False),
        (b"POST /predict HTTP/1.1", [b"content-length : 9"], False),
        (b"POST /predict HTTP/1.1", [b"content-length:  9"], False),
        (b"POST /predict HTTP/1.1", [b"content-length: x"], False),
        (b"POST /predict HTTP/1.1", [b"X: a\nTransfer-Encoding: chunked"], False),
        (b"POST /predict HTTP/1.1", [b"X: a\rTransfer-Encoding: chunked"], False),
        (b"POST /predict HTTP/1.1", [b"X: a", b" content-length: 9"], False),
        (b"POST /predict HTTP/1.1", [b"Expect: 100-continue"], False),
    ],
)
def test_only_a_plain_and_whole_request_is_refused_unparsed(
    line: bytes, headers: list[bytes], plain: bool
) -> None:
    head = b"\r\n".join([line, b"Host: x", *headers, b"Content-Length: 9"])
    assert is_plain_post(head + b"\r\n\r\n" + bytes(9)) is plain
    for rest in (bytes(8), bytes(9) + b"P"):
        assert not is_plain_post(head + b"\r\n\r\n" + rest)
    assert not is_plain_post(head)


@pytest.mark.parametrize("size", [1, 7, 100, 5000, 1_000_000])
def test_requests_sent_ahead_are_answered_in_order(
    server: Server, picture: Picture, size: int
) -> None:
    """They arrive in packets of any size, with bodies of any framing."""
    chunked = head("POST /predict", "Content-Type: image/png", "Transfer-Encoding: chunked")
    image = picture("blue")
    chunked += b"%x\r\n%b\r\n0\r\na: b\r\n\r\n" % (len(image), image)
    missing = head("GET /missing")
    sent = (LIVE + _post(picture("red")) + chunked + b"\r\n" + missing) * 5
    with server.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(sent), size):
            connection.sendall(sent[start : start + size])
        received = b""
        while received.count(b"HTTP/1.1 404 ") < 5 or not received.endswith(b"}"):
            chunk = connection.recv(65536)
            assert chunk, received
            received += chunk
    found = re.findall(rb'"live"|"label":"\w+"|"/missing"', received)
    assert found == [b'"live"', b'"label":"red"', b'"label":"blue"', b'"/missing"'] * 5


def test_any_number_of_requests_may_be_sent_ahead_of_an_answer(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(LIVE * 2000 + b"GET /health/live HTTP/1.0\r\n\r\n")
        received = _read_all(connection)
    assert received.count(b"HTTP/1.1 200 OK") == 2001


async def test_bytes_sent_ahead_are_not_taken_without_a_limit(
    connect: Connect, picture: Picture
) -> None:
    backend = HeldBackend()
    async with connect(backend) as client, sockets(client) as (port, connections):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(_post(picture("red")))
        await _until(lambda: connections.working == 1)
        writer.write(LIVE * 200_000)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(writer.drain(), 0.5)
        backend.release.set()
        await reader.readuntil(b"}]}")
        for _ in range(1000):
            await reader.readuntil(b'{"status":"live"}')
        writer.transport.abort()


def test_client_that_reads_no_answer_gets_no_further_one(server: Server) -> None:
    """Else the answers to requests sent ahead pile up in the worker's memory."""
    (worker,) = server.workers
    bundle = head("GET /static-offline-docs/swagger-ui-bundle.js")
    before = psutil.Process(worker).memory_info().rss
    with server.connect() as connection:
        connection.sendall(bundle * 300)
        time.sleep(2)
        grown = psutil.Process(worker).memory_info().rss - before
        received = len(connection.recv(1 << 20))
        while received < 5_000_000:  # some of the answers; all of them would be 450 MB
            received += len(connection.recv(1 << 20))
    assert grown < 30 << 20


def test_last_answer_is_not_lost_by_bytes_behind_its_request(server: Server) -> None:
    """Closing with unread bytes resets the connection, which discards what the client has."""
    with server.connect() as connection:
        connection.sendall(head("GET /metrics", "Connection: close") + b"x" * 400_000)
        received = _read_all(connection)
    assert received.startswith(b"HTTP/1.1 200 ")


def test_slow_body_behind_another_request_is_refused_in_time(server: Server) -> None:
    with server.connect() as connection:
        post = head("POST /predict", "Content-Length: 1000")
        connection.sendall(LIVE + post + b"abc")
        received = _read_all(connection)
    assert received.startswith(b"HTTP/1.1 200 ")
    _problem(b"HTTP/1.1 408 " + received.partition(b"HTTP/1.1 408 ")[2], 408)


def test_trailers_are_not_kept(server: Server) -> None:
    (worker,) = server.workers
    status = Path(f"/proc/{worker}/status")

    def resident() -> int:
        (line,) = [row for row in status.read_text().splitlines() if row.startswith("VmRSS")]
        return int(line.split()[1])

    before = resident()
    with server.connect() as connection:
        connection.sendall(head("POST /predict", "Transfer-Encoding: chunked"))
        connection.sendall(b"0\r\n" + b"a:b\r\n" * 2_000_000)
        assert resident() - before < 50_000


def test_client_that_does_not_read_takes_no_place_from_others(
    server: Server, picture: Picture
) -> None:
    metrics = head("GET /metrics")
    lazy = [server.connect() for _ in range(20)]
    try:
        for connection in lazy:
            connection.sendall(metrics * 16)
        with server.connect() as connection:
            connection.sendall(_post(picture("red"), "Connection: close"))
            assert b'"label":"red"' in _read_all(connection)
    finally:
        for connection in lazy:
            connection.close()


@pytest.mark.parametrize("name", ["Upgrade", "UPGRADE"])
@pytest.mark.parametrize("cut", [40, 80])
def test_offer_of_another_protocol_is_not_taken_however_it_comes(
    server: Server, picture: Picture, name: str, cut: int
) -> None:
    request = _post(picture("red"), "Connection: Upgrade", f"{name}: h2c") * 2
    with server.connect() as connection:
        connection.sendall(request[:cut])
        time.sleep(0.05)
        connection.sendall(request[cut:])
        received = b""
        while received.count(b'"label":"red"') < 2:
            chunk = connection.recv(65536)
            assert chunk, received
            received += chunk


def test_tunnel_is_refused(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(head("CONNECT example.org:443", host="example.org"))
        _problem(_read_all(connection), 400)


def test_what_has_been_answered_is_not_answered_again(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(head("POST /no", "Transfer-Encoding: chunked"))
        received = b""
        while b"}" not in received:
            received += connection.recv(65536)
        connection.sendall(b"zz\r\n")
        received += _read_all(connection)
    assert received.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    "framing",
    [
        b"0\r\nx: %b" % (b"a" * 500_000),
        b"1;%b" % (b"a" * 500_000),
        b"1\r\nx\r\n" * 50_000,
        b"64\r\n%b\r\n" % bytes(100) + b"1;abc\r\nx\r\n" * 50_000,
    ],
    ids=["trailer", "chunk", "small chunks", "small chunks behind a large one"],
)
def test_endless_framing_of_a_body_is_refused(server: Server, framing: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(head("POST /predict", "Transfer-Encoding: chunked"))
        connection.sendall(framing)
        problem = _problem(_read_all(connection), 400)
    assert problem.detail.endswith(
        " bytes more of framing than of content; the limit is 32768 bytes"
    )


async def test_requests_sent_ahead_count_as_work_one_after_the_other(
    connect: Connect, picture: Picture
) -> None:
    backend = HeldBackend()
    async with connect(backend) as client, sockets(client) as (port, connections):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(5):
            writer.write(_post(picture("red")))
            await asyncio.sleep(0.02)
        assert connections.working == 1
        backend.release.set()
        for _ in range(5):
            await reader.readuntil(b"}]}")
        await _until(lambda: connections.working == 0)
        writer.close()


async def test_client_that_leaves_after_a_large_body_is_noticed(
    connect: Connect, picture: Picture
) -> None:
    backend = HeldBackend()
    async with connect(backend) as client, sockets(client) as (port, connections):
        held = asyncio.create_task(
            client.post("/predict", content=picture("red"), headers={"Content-Type": "image/png"})
        )
        assert await asyncio.to_thread(backend.entered.wait, 5)
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(_post(picture("blue").ljust(400_000, b"\0")))
        await _until(lambda: connections.working == 1)
        writer.close()
        await _until(lambda: connections.working == 0)
        backend.release.set()
        assert (await held).status_code == 200
    assert sum(map(len, backend.batches)) == 1
