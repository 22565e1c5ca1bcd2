import base64
import dataclasses
import io
import json
import selectors
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.harness.load import Latency, closed_loop, open_loop
from bench.harness.payloads import PHOTO_SIZE, payloads, pictures
from bench.harness.processes import ServerFailed, Usage, free_port
from bench.harness.report import fill
from bench.harness.requests import Request
from bench.serving import overhead, report
from bench.serving.answers import check, expected
from bench.serving.limit import Limit, PhotoDecoding
from bench.serving.results import Cell, Round, Run, ServerResult, requests_per_second
from bench.serving.servers import EXERCISE, FAST, PEERS, SERVERS, Answer

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (cc)")
needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")

Handler = Callable[[int], bytes | None]
"""The answer to request number n; empty closes the connection, None leaves it without one."""

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
BUSY = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
GET = Request("/").raw(("127.0.0.1", 80))


class TinyServer(threading.Thread):
    """Serves one request at a time, on any number of connections, with one thread."""

    def __init__(self, handler: Handler) -> None:
        super().__init__()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.stopped = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.listener, selectors.EVENT_READ)
        self._handler = handler
        self._held: dict[int, tuple[socket.socket, bytes]] = {}
        self._number = 0

    def run(self) -> None:
        while not self.stopped.is_set():
            for key, _ in self._selector.select(0.02):
                if key.fileobj is self.listener:
                    connection, _ = self.listener.accept()
                    self._held[connection.fileno()] = connection, b""
                    self._selector.register(connection, selectors.EVENT_READ)
                else:
                    self._read(key.fd)
        for connection, _ in self._held.values():
            connection.close()
        self._selector.close()
        self.listener.close()

    def _read(self, fd: int) -> None:
        connection, held = self._held[fd]
        try:
            data = connection.recv(65536)
        except ConnectionError:
            data = b""
        if data and not _is_whole(held + data):
            self._held[fd] = connection, held + data
            return
        self._held[fd] = connection, b""
        answer = self._answer() if data else b""
        if answer:
            connection.sendall(answer)
        elif answer is not None:
            self._selector.unregister(connection)
            connection.close()
            del self._held[fd]

    def _answer(self) -> bytes | None:
        self._number += 1
        return self._handler(self._number - 1)


@contextmanager
def tiny_server(handler: Handler) -> Iterator[tuple[str, int]]:
    server = TinyServer(handler)
    address: tuple[str, int] = server.listener.getsockname()
    server.start()
    try:
        yield address
    finally:
        server.stopped.set()
        server.join()


def _is_whole(data: bytes) -> bool:
    head, end, body = data.partition(b"\r\n\r\n")
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return bool(end) and len(body) >= int(length or 0)


@needs_cc
def test_open_loop_charges_a_stall_to_every_request_that_was_due_in_it() -> None:
    def stall_once(number: int) -> bytes:
        if number == 50:
            time.sleep(0.2)
        return OK

    with tiny_server(stall_once) as address:
        found = open_loop(address, [GET], 200, 1, connections=1, max_connections=1)

    assert found.statuses == {200: 200}
    assert found.errors == found.unsent == 0
    # A closed loop would see one slow request in 200, which its p99 leaves out.
    assert found.latency[200].p99 > 150
    assert found.latency[200].p90 > 50
    assert found.latency[200].p50 < found.latency[200].p90
    assert 0 < found.goodput <= found.achieved_rate <= 200


@needs_cc
def test_open_loop_sends_at_random_but_as_often() -> None:
    arrivals: list[float] = []

    def note(_: int) -> bytes:
        arrivals.append(time.monotonic())
        return OK

    with tiny_server(note) as address:
        found = open_loop(address, [GET], 200, 1, connections=8, seed=3)

    assert found.statuses == {200: 200}
    distances = np.diff(arrivals)
    # The deviation of an exponential distribution is its mean; of equal distances it would be 0.
    assert distances.std() > 0.6 / 200


@needs_cc
def test_open_loop_tells_refusals_and_their_latencies_from_good_answers() -> None:
    with tiny_server(lambda number: BUSY if number % 4 == 0 else CHUNKED) as address:
        found = open_loop(address, [GET], 200, 0.5, connections=2)

    assert found.statuses == {200: 75, 503: 25}
    assert set(found.latency) == {200, 503}
    assert found.errors == 25
    # Good answers alone, in the time that requests became due; a slow machine gives some later.
    assert 0 < found.goodput <= 75 / 0.5


@needs_cc
def test_open_loop_accounts_for_every_request_that_gets_no_answer() -> None:
    answers: Sequence[bytes | None] = (OK, b"", None, OK)
    with tiny_server(lambda number: answers[number % 4]) as address:
        found = open_loop(address, [GET], 100, 0.4, connections=1, timeout=1)

    assert found.statuses == {200: 20}
    assert (found.resets, found.timeouts, found.connect_errors) == (10, 10, 0)
    assert found.connections > 1


@needs_cc
def test_open_loop_opens_no_more_connections_than_it_may() -> None:
    with tiny_server(lambda _: None) as address:
        found = open_loop(address, [GET], 100, 0.3, connections=1, max_connections=3, timeout=0.5)

    assert found.connections == 3
    assert found.timeouts == 30


@needs_cc
def test_open_loop_counts_refused_connections() -> None:
    found = open_loop(("127.0.0.1", free_port()), [GET], 100, 0.2, connections=1)

    assert found.connect_errors == 20
    assert not found.statuses


@needs_wrk
def test_closed_loop_leaves_refusals_out_of_the_rate() -> None:
    with tiny_server(lambda number: BUSY if number % 2 else OK) as address:
        found = closed_loop(address, [GET, Request("/x", b"body").raw(address)], 2, 1)

    assert found.errors == pytest.approx(found.requests_per_second * found.seconds, rel=0.01, abs=2)
    assert 0 < found.latency.p50 <= found.latency.p99 <= found.latency.max


def test_payloads_carry_the_pictures_that_they_name() -> None:
    made = payloads()
    for image, (data,) in zip(pictures(16), made["png"].requests, strict=True):
        assert (np.asarray(Image.open(io.BytesIO(data))) == image).all()
    assert len({files[0] for files in made["jpeg"].requests}) == 16
    assert made["form64"].images == 64
    for (data,) in made["photo"].requests:
        assert Image.open(io.BytesIO(data)).size == PHOTO_SIZE
        assert 2e6 < len(data) < 4e6


def test_every_server_takes_a_png_and_says_what_it_does_not_take() -> None:
    for server in SERVERS.values():
        assert server.tuning
        for payload in payloads().values():
            request = server.wrap(payload, payload.requests[0])
            assert request is not None or payload.body != "file"
            if request is not None:
                head, _, body = request.raw(("localhost", 1)).partition(b"\r\n\r\n")
                assert f"Content-Length: {len(body)}".encode() in head
    assert {peer.peer for peer in PEERS} == {
        path.parent.name for path in Path("bench/serving/peers").glob("*/requirements.txt")
    }


def test_a_png_in_json_is_the_raw_one_in_base64() -> None:
    made = payloads()
    request = SERVERS["ours"].wrap(made["json"], made["json"].requests[3])

    assert request is not None
    assert request.content_type == "application/json"
    (image,) = json.loads(request.body)["images"]
    assert (base64.b64decode(image),) == made["png"].requests[3]


def _served(answers: Sequence[Answer]) -> bytes:
    classes = json.loads(Path("models_store/simple-cnn/1/manifest.json").read_text())["classes"]
    items = [
        {"label": one.label, "probabilities": dict(zip(classes, one.probabilities, strict=True))}
        for one in answers
    ]
    body = json.dumps({"predictions": items}).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def test_only_the_models_own_answers_pass_the_check() -> None:
    png, server = payloads()["png"], SERVERS["ours"]
    right = expected("png")
    with tiny_server(lambda number: _served(right[number])) as address:
        check(server, address, png, 4)

    wrong_label = [dataclasses.replace(right[0][0], label="nothing")]
    bent = [0.002 + value for value in right[0][0].probabilities]
    wrong_value = [dataclasses.replace(right[0][0], probabilities=bent)]
    for answers, reason in (
        (wrong_label, "label of PNG 32x32 is nothing, not"),
        (wrong_value, "differs by 0.002"),
        ([], "0 answers"),
    ):
        with (
            tiny_server(lambda _, answers=answers: _served(answers)) as address,  # type: ignore[misc]
            pytest.raises(ServerFailed, match=reason),
        ):
            check(server, address, png, 1)


def test_answers_are_checked_against_the_model_and_precision_that_a_server_serves() -> None:
    png, server = payloads()["png"], SERVERS["ours-int8"]
    right = expected("png", FAST)
    unquantized = expected("png", dataclasses.replace(FAST, precision="float32"))

    with tiny_server(lambda number: _served(right[number])) as address:
        check(server, address, png, 16)
    with (
        tiny_server(lambda number: _served(unquantized[number])) as address,
        pytest.raises(ServerFailed, match="differs"),
    ):
        check(server, address, png, 16)


LATENCY = Latency(1, 2, 3, 4, 5)
USAGE = Usage(2, 3, 150, 150, 140, 130, 1)


def _cell(rate: float, payload: str = "png", connections: int = 32) -> Cell:
    images = rate * payloads()[payload].images
    return Cell(payload, "closed", connections, None, None, rate, images, 0, LATENCY, USAGE)


def _run() -> Run:
    half = dataclasses.replace(_cell(2000), mode="open", share=0.5, rate=2000.0)
    failed = Cell("photo", "closed", 8, failed="cat is wrong")
    rounds = [Round(1, [_cell(rate), half, failed]) for rate in (4000, 4400, 4800)]
    rounds[0].cells += [_cell(3300, "form"), _cell(3520, "json")]
    one = ServerResult("Convscope, 1 worker", "", rounds=[Round(1, [_cell(50, "form64", 4)])])
    return Run(
        machine={"processor": "P", "cores": 2},
        versions={"numpy": "2"},
        commit="abc",
        started="2026-01-01T00:00:00+00:00",
        rounds=3,
        seconds=4,
        access_logs="Off.",
        limits={
            str(EXERCISE): [Limit(2, {1: 3000, 8: 4000}, {1: 6000, 8: 8000})],
            str(FAST): [Limit(2, {1: 500, 8: 600}, {1: 1000, 8: 900})],
        },
        photo=PhotoDecoding(10, 30, 0.5, same_label=True),
        startup_seconds=[1, 2, 1.2],
        servers={
            "ours": ServerResult("Convscope", "Defaults.", rounds=rounds),
            "ours-1": one,
            "ours-int8": ServerResult("Fast", "", str(FAST), rounds=[Round(1, [_cell(900)])]),
            "ours-log": ServerResult("Log on", "", rounds=[Round(1, [_cell(4180)])]),
            "litserve": ServerResult("LitServe", "", rounds=[Round(1, [_cell(400)])]),
            "ray": ServerResult("Ray Serve", "", skipped="cannot be installed: no wheel"),
        },
    )


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    _run().write(tmp_path / "results.json")

    assert Run.read(tmp_path / "results.json") == _run()


def test_a_wrong_answer_scores_nothing() -> None:
    ours = _run().servers["ours"]

    assert requests_per_second(ours, "photo", connections=8) is None
    assert "cat is wrong" in report.payload_table(_run())


def test_report_gives_medians_spread_and_peers_that_are_missing() -> None:
    table = report.main_table(_run())

    assert "4,400 (4,000–4,800)" in table
    assert "cannot be installed: no wheel" in table
    assert "| the limit: no server, 2 processes, batches of 8 |  |  | 8,000 |" in table
    assert f"| the limit of {FAST}: no server, 2 processes, batches of 1 |  |  | 1,000" in table


def test_payloads_that_were_not_measured_have_no_column() -> None:
    table = report.payload_table(_run())

    assert "PNG in JSON" in table
    assert "JPEG 32x32" not in table


def test_targets_are_ratios_within_one_run() -> None:
    found = {target.title: target for target in report.targets(_run())}

    assert found["PNG, 32 connections, of the limit"].figure == pytest.approx(0.55)
    assert found[f"PNG, 32 connections, {FAST}, of its limit"].figure == pytest.approx(0.9)
    assert found["PNG, 32 connections, in a form, of raw"].figure == pytest.approx(0.75)
    assert found["PNG, 32 connections, in JSON, of raw"].figure == pytest.approx(0.8)
    assert found["PNG, 32 connections, log on, of log off"].figure == pytest.approx(0.95)
    assert found["PNG, 32 connections, against LitServe"].figure == pytest.approx(11)
    assert found["PNG, 32 connections, against Ray Serve"].reached is None
    form = found["64 images in one request, 1 worker, of one core's limit"]
    assert form.figure == pytest.approx(0.8)
    assert found["p99 at half of the saturating rate, open loop"].reached
    assert found["12-megapixel JPEG in process, against a full decode"].reached is False
    assert found["from exec to ready"].figure == 1.2


def test_report_fills_marked_documents_and_no_others(tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text("before\n<!-- bench:serving -->\nold\n<!-- /bench:serving -->\nafter\n")
    plain = tmp_path / "plain.md"
    plain.write_text("no markers\n")

    assert fill(document, r"new \1", "serving")
    assert not fill(plain, "new", "serving")
    assert not fill(tmp_path / "missing.md", "new", "serving")

    text = "before\n<!-- bench:serving -->\nnew \\1\n<!-- /bench:serving -->\nafter\n"
    assert document.read_text() == text
    assert plain.read_text() == "no markers\n"


def test_plot_is_drawn_also_where_peers_are_missing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report.plot(_run(), tmp_path / "plot.png")

    with Image.open(tmp_path / "plot.png") as image:
        assert image.width > 500


def test_overhead_is_what_requests_take_beyond_their_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(overhead, "ROUNDS", 50)
    row = overhead.measure()
    assert all(microseconds > 0 for microseconds in row.values())
    fixed = dict.fromkeys(row, 1.0) | {"request": 90.4, "decoding and inference": 40.0}
    *_, last = overhead.overhead_table(fixed).splitlines()
    assert last == "| all else | 50 |"
