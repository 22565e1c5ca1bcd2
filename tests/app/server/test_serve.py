"""The service as its users start it: real processes, sockets and signals."""

import json
import os
import platform
import pty
import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from bench.harness.requests import head
from tests.conftest import Picture
from tests.support.artifacts import CLASSES, copy_store
from tests.support.servers import (
    CONVSCOPE,
    UVICORN,
    Server,
    client,
    failed,
    get,
    post,
    started,
    wait_until,
)

PNG = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def server(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [*CONVSCOPE, "serve"]
    with started(command, store_path, log, CONVSCOPE_MAX_BODY_BYTES="100000") as running:
        yield running
        assert running.stop() == 0
        assert "Traceback" not in log.read_text()


def test_default_model_that_nobody_names_is_logged_once(store_path: Path, tmp_path: Path) -> None:
    command, log = [*CONVSCOPE, "serve", "--workers", "2"], tmp_path / "log"
    with started(command, store_path, log, CONVSCOPE_DEFAULT_MODEL="") as server, client() as user:
        models = user.get(f"{server.url}/models").json()["models"]
    assert [model["name"] for model in models if model["default"]] == ["colour"]
    assert log.read_text().count("colour is the default model, the first by name of") == 1


def test_service_answers_and_names_no_server(server: Server, picture: Picture) -> None:
    response = post(f"{server.url}/predict", content=picture("red"), headers=PNG)
    assert response.json()["predictions"][0]["label"] == "red"
    assert "server" not in response.headers
    # uvloop's clock stands still within a millisecond.
    assert all(
        float(dur) > 0 for dur in re.findall(r"dur=([\d.]+)", response.headers["server-timing"])
    )


def test_page_and_curl_that_are_printed_on_a_terminal_work(
    store_path: Path, tmp_path: Path
) -> None:
    outer, inner = pty.openpty()
    on_terminal = ["sh", "-c", f'exec "$@" >{os.ttyname(inner)}', "sh"]
    command = [*on_terminal, *CONVSCOPE, "serve", "--workers", "1"]
    shown = b""
    with started(command, store_path, tmp_path / "log") as server:
        while b"curl" not in shown or not shown.endswith(b"\r\n\r\n"):
            shown += os.read(outer, 1 << 16)
        found = re.search(
            r"^curl (\S+) -H '(.*?): (.*?)' -d '(.*)'\r$", shown.decode(), re.MULTILINE
        )
        assert found, shown
        url, name, value, body = found.groups()
        response = post(url, headers={name: value}, content=body)
        assert response.json()["predictions"][0]["label"] in CLASSES
        assert f"Open {server.url} in a browser" in shown.decode()
        assert "<title>Convscope</title>" in get(server.url).text
        assert server.stop() == 0
    os.close(inner)
    os.close(outer)


def test_output_to_a_file_is_nothing_but_json_lines(server: Server) -> None:
    get(f"{server.url}/models", headers={"X-Request-ID": "last-line"})
    _logged(server, "last-line")
    lines = server.log.read_text().splitlines()
    assert [line for line in lines if not line.startswith("{")] == []


def test_log_has_a_json_line_for_the_request(server: Server) -> None:
    get(f"{server.url}/models?token=secret", headers={"X-Request-ID": "find-me"})
    assert _logged(server, "find-me")["path"] == "/models"
    assert "secret" not in server.log.read_text()


def _logged(server: Server, request_id: str) -> dict[str, Any]:
    """Return a request's line; it is written when the client has its answer already."""
    wait_until(lambda: f'"{request_id}"' in server.log.read_text())
    (line,) = [text for text in server.log.read_text().splitlines() if f'"{request_id}"' in text]
    return dict(json.loads(line))


def _exchange(server: Server, headers: list[str], body: bytes) -> bytes:
    """Send a whole body before reading, unless the server is to be asked first; a reset raises."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head("POST /predict", "Content-Type: image/png", *headers))
        if "Expect: 100-continue" not in headers:
            connection.sendall(body)
        received = b""
        while b"}" not in received:
            chunk = connection.recv(65536)
            assert chunk, received
            received += chunk
        return received


@pytest.mark.parametrize("expect", [[], ["Expect: 100-continue"]])
def test_body_that_is_announced_too_large_is_refused_without_a_reset(
    server: Server, expect: list[str]
) -> None:
    body = bytes(8_000_000)
    received = _exchange(server, [f"Content-Length: {len(body)}", *expect], body)
    assert received.startswith(b"HTTP/1.1 413 ")
    assert b"body is 8000000 bytes; the limit is 100000 bytes" in received


def test_body_that_turns_out_too_large_is_refused_without_a_reset(server: Server) -> None:
    chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
    received = _exchange(server, ["Transfer-Encoding: chunked"], chunk * 100 + b"0\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 413 ")


def test_unread_body_of_a_wrong_type_is_refused_without_a_reset(server: Server) -> None:
    with client() as session:
        for _ in range(3):
            response = session.post(
                f"{server.url}/predict",
                content=bytes(5_000_000),
                headers={"Content-Type": "text/plain"},
            )
            assert response.status_code == 415
        assert session.get(f"{server.url}/models").status_code == 200


def test_client_that_leaves_while_it_sends_is_no_error(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        announced = head("POST /predict", "X-Request-ID: gone", "Content-Length: 99")
        connection.sendall(announced + bytes(10))
        time.sleep(0.2)
    assert _logged(server, "gone")["status"] == 499


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked for memory")
def test_memory_of_bodies_goes_back_to_the_system(store_path: Path, tmp_path: Path) -> None:
    command = [*CONVSCOPE, "serve", "--workers", "1"]
    with started(command, store_path, tmp_path / "log") as server, ExitStack() as leaving:
        (worker,) = map(psutil.Process, server.workers)
        before = worker.memory_info().rss
        # From then on, glibc takes pieces of this size from the heap, not each from the system.
        assert post(f"{server.url}/predict", content=bytes(20_000_000)).status_code == 415
        with server.connect() as staying:
            senders = [staying, *(leaving.enter_context(server.connect()) for _ in range(9))]
            for sender in senders:
                sender.sendall(head("POST /predict", "Content-Length: 20000000"))
            for _ in range(8):
                for sender in senders:
                    sender.sendall(bytes(1 << 20))
            wait_until(lambda: worker.memory_info().rss > before + (80 << 20))
            leaving.close()
            wait_until(lambda: worker.memory_info().rss < before + (20 << 20), 10)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_requests_in_flight_are_finished_after_sigterm(
    store_path: Path, tmp_path: Path, picture: Picture, workers: str
) -> None:
    command = [*UVICORN, "tests.support.slow_app:create_app", "--workers", workers]
    command += ["--timeout-worker-healthcheck", "60"]
    metrics = tmp_path / "metrics"
    metrics.mkdir()
    changes = {
        "CONVSCOPE_MAX_BATCH": "4",
        "CONVSCOPE_REQUEST_TIMEOUT_SECONDS": "60",
        "CONVSCOPE_MAX_WAIT_MS": "60000",  # some come after the first batch has shown its speed
        "PROMETHEUS_MULTIPROC_DIR": str(metrics),
    }
    with started(command, store_path, tmp_path / "log", **changes) as server:

        def ask(_: int) -> int:
            url = f"{server.url}/predict"
            return post(url, content=picture("red"), headers=PNG).status_code

        with ThreadPoolExecutor(20) as clients:
            answers = [clients.submit(ask, number) for number in range(20)]
            # Each has its connection; the one that asks counts itself.
            wait_until(
                lambda: _in_flight(server) - 1 + sum(answer.done() for answer in answers) >= 20
            )
            server.process.send_signal(signal.SIGTERM)
            assert [answer.result() for answer in answers] == [200] * 20
        server.process.wait(60)
        assert "Traceback" not in server.log.read_text()
        with pytest.raises(httpx.ConnectError):
            get(server.url)


def _in_flight(server: Server) -> int:
    text = get(f"{server.url}/metrics").text
    (value,) = re.findall(r"^convscope_http_requests_in_flight (\d+)", text, re.MULTILINE)
    return int(value)


def test_workers_share_their_metrics_and_leave_nothing_behind(
    store_path: Path, tmp_path: Path, picture: Picture
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [*CONVSCOPE, "serve", "--workers", "2"]
    with started(command, store_path, tmp_path / "log", TMPDIR=str(scratch)) as server:
        for _ in range(20):
            response = post(f"{server.url}/predict", content=picture("red"), headers=PNG)
            assert response.status_code == 200
        counted = 'convscope_predictions_total{label="red",model="colour",version="2"} 20.0'
        # The other worker writes its counts within a tenth of a second.
        wait_until(lambda: counted in get(f"{server.url}/metrics").text.splitlines(), 5)
        for _ in range(6):
            assert counted in get(f"{server.url}/metrics").text.splitlines()
        (directory,) = scratch.glob("convscope-metrics-*")
        killed = int(next(directory.glob("gauge_live*.db")).stem.rpartition("_")[2])
        os.kill(killed, signal.SIGKILL)
        wait_until(
            lambda: len(_live(server, directory)) == 2 and killed not in _live(server, directory)
        )
        assert counted in get(f"{server.url}/metrics").text.splitlines()
        assert server.stop() == 0
    assert not list(scratch.iterdir())
    assert "Traceback" not in server.log.read_text()


def test_few_connections_are_shared_by_all_workers(store_path: Path, tmp_path: Path) -> None:
    command = [*CONVSCOPE, "serve", "--workers", "2"]
    with started(command, store_path, tmp_path / "log") as server:
        workers = [psutil.Process(pid) for pid in server.workers]
        time.sleep(2)  # both listen

        def shares() -> list[int]:
            found = [worker.net_connections("tcp") for worker in workers]
            return [sum(one.status == psutil.CONN_ESTABLISHED for one in each) for each in found]

        def least_of_eight() -> int:
            with ExitStack() as clients:
                for _ in range(8):
                    clients.enter_context(server.connect())
                wait_until(lambda: sum(shares()) == 8)
                least = min(shares())
            wait_until(lambda: sum(shares()) == 0)
            return least

        # On a busy machine a worker may come too late for what is left to it, but not each time.
        assert max(least_of_eight() for _ in range(3)) >= 3


def _live(server: Server, directory: Path) -> set[int]:
    """Ask for the metrics, which tidies up, and see whose gauges are left."""
    try:
        get(f"{server.url}/metrics")
    except httpx.TransportError:
        return set()
    return {int(path.stem.rpartition("_")[2]) for path in directory.glob("gauge_live*.db")}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_damaged_model_ends_serve_with_one_line(
    store_path: Path, tmp_path: Path, workers: str
) -> None:
    store = copy_store(store_path, tmp_path / "store")
    graph = store / "flat" / "1" / "model.onnx"
    graph.write_bytes(graph.read_bytes() + b"x")
    done = failed([*CONVSCOPE, "serve", "--workers", workers], store)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(r"Error: .*/model\.onnx: holds \d+ bytes; manifest\.json says \d+", line)


def _uvicorn_fails(store: Path, **changes: str) -> str:
    done = failed([*UVICORN, "app.main:create_app"], store, **changes)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr


def test_damaged_model_ends_uvicorn_with_one_line_that_names_it(
    store_path: Path, tmp_path: Path
) -> None:
    store = copy_store(store_path, tmp_path / "store")
    (store / "flat" / "1" / "golden.npz").unlink()
    lines = [line for line in _uvicorn_fails(store).splitlines() if "golden.npz" in line]
    assert len(lines) == 1
    assert json.loads(lines[0])["event"].endswith("flat/1/golden.npz: no such file")


def test_wrong_setting_ends_uvicorn_with_one_line(store_path: Path) -> None:
    (line,) = _uvicorn_fails(store_path, CONVSCOPE_THREADS="0").splitlines()
    assert line == "convscope: CONVSCOPE_THREADS=0: Input should be greater than or equal to 1"


def test_port_in_use_ends_serve_with_one_line(server: Server, store_path: Path) -> None:
    done = failed([*CONVSCOPE, "serve"], store_path, server.port)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line == f"Error: cannot listen on 127.0.0.1:{server.port}: Address already in use"
    assert done.stdout == ""


def test_documentation_page_makes_no_request_to_another_host(server: Server) -> None:
    page = get(f"{server.url}/docs")
    assert page.status_code == 200
    links = re.findall(r"""(?:src|href)=["']([^"']+)""", page.text)
    assert links
    for link in links:
        assert link.startswith("/")
        assert get(server.url + link).status_code == 200
    assert "://" not in page.text
    assert '"validatorUrl": null' in page.text
