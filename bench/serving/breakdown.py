"""Stages of one request's time: `python -m bench.serving.breakdown` prints a table.

One client sends one small PNG at a time to one worker, so nothing waits. The stages come from the
service's `Server-Timing`; the rest is HTTP, the answer's text, the log line, the metrics and the
kernel, on both sides.
"""

import os
import re
import socket
import statistics
import time

from bench import BUILD, ROOT
from bench.harness.payloads import payloads
from bench.harness.processes import ServerProcess, free_port
from bench.harness.report import table
from bench.harness.requests import Address
from bench.serving.servers import SERVERS

REQUESTS = 3000
_STAGE = re.compile(rb"(\w+);dur=([\d.]+)")


def measure() -> dict[str, float]:
    """Return the median microseconds of each stage and of the whole as the client sees it."""
    server = SERVERS["ours-1"]
    payload = payloads()["png"]
    port = free_port()
    address = "127.0.0.1", port
    requests = [server.wrap(payload, files) for files in payload.requests]
    log = BUILD / "logs" / "breakdown.log"
    environment = {**os.environ, **server.environment, "CONVSCOPE_LOG_LEVEL": "info"}
    with ServerProcess(
        server.command(port), directory=ROOT, environment=environment, log=log
    ) as process:
        process.wait_until(lambda: _listens(address), 60)
        raw = [request.raw(address) for request in requests if request is not None]
        with socket.create_connection(address) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            rows = [_ask(connection, raw[number % len(raw)]) for number in range(REQUESTS)]
    kept = rows[REQUESTS // 10 :]
    return {name: statistics.median(row[name] for row in kept) for name in rows[0]}


def _listens(address: Address) -> bool:
    with socket.create_connection(address, timeout=1):
        return True


def _ask(connection: socket.socket, request: bytes) -> dict[str, float]:
    start = time.perf_counter()
    connection.sendall(request)
    received = b""
    while not received.endswith(b"}]}"):
        received += connection.recv(65536)
    total = (time.perf_counter() - start) * 1e6
    head = received.partition(b"\r\n\r\n")[0]
    stages = {name.decode(): float(value) * 1000 for name, value in _STAGE.findall(head)}
    return {**stages, "all else": total - sum(stages.values()), "total": total}


def breakdown_table(row: dict[str, float]) -> str:
    """Return the figures as a Markdown table."""
    rows = [[name, f"{us:.0f}", f"{us / row['total']:.0%}"] for name, us in row.items()]
    return table(["stage", "µs", "share"], rows)


if __name__ == "__main__":
    print(breakdown_table(measure()))
