"""Minutes of everything at once, and every answer checked: `python -m bench.soak`, `make soak`.

The service runs as its users start it, one worker a core, on the models of this repository. Sound
requests of every format and a share of hostile ones are sent in an open loop, at a part of what a
closed loop of the same mixture reached just before. A failure is any answer but the one that stands
beside a request in the tables below, a line of the log that is an error, memory that grows, and a
count of the service's metrics that differs from the client's own.

Memory is the resident memory of all processes of the service, sampled every second; two medians
over 20 seconds are compared: from minute 2 (a fifth of a shorter run), and at the end.
"""

import asyncio
import base64
import json
import multiprocessing
import os
import random
import signal
import struct
import sys
import time
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, Self

import click
import numpy as np
import uvloop
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from app.backends import Backend
from app.contract import Artifact
from app.images import decode
from app.settings import read_settings
from app.store import Key, key_of, open_backends, read_store
from bench import BUILD, RESULTS, ROOT
from bench.answers import ask
from bench.load import Address, Request
from bench.payloads import encode, pictures
from bench.processes import ServerFailed, ServerProcess, free_port
from bench.results import new_run, now
from bench.servers import SERVERS, form

FULL = RESULTS / "soak.json"
SHORT = BUILD / "soak.json"
FULL_MINUTES = 10
LOG = BUILD / "logs" / "soak.log"

HOSTILE_SHARE = 0.05
MAX_GROWTH = 0.05
MARK_SECONDS, MARK_SHARE, WINDOW_SECONDS = 120.0, 0.2, 20.0
CAPACITY_SECONDS = 6.0
USERS = 64
"""Connections of the open loop at most: a sound request then always finds room in the service,
also after a stall; the time for which it waited for a connection is in its latency."""

_CLOSED_USERS = 16
_TIMEOUT = 30.0
_SCRAPE_SECONDS = 5.0
_LEAVE_SECONDS = 0.02
_HOST = "127.0.0.1"
_MARGIN = 0.05
"""Between the two likeliest classes: runtimes round differently in batches of another size."""
_MAX_PIXELS = 40_000_000
_LEAVERS_MODEL = "fc"
"""Asked only by clients that do not wait: nobody can say whether they were answered."""
_SHOWN = 20
_PAGES_TOO = {
    *("unknown-model", "unknown-layer", "unknown-filter", "invalid-parameter", "not-acceptable")
}
"""Problems that pages have too; the service counts rejections of predictions only."""

Count = tuple[str, str, int]
"""Method, route and status, as the service's metrics name them."""


# What is sent


@dataclass(frozen=True)
class Shot:
    """One request and what has to come of it.

    Attributes:
        name: as it stands in the report.
        raw: what goes over the wire.
        status: of the answer; for a client that leaves, what the service is to count; 0 for
            nothing at all.
        route: as the service's metrics name it.
        method: as the service's metrics name it.
        key: of the model that answers.
        labels: of the images, in order.
        leaves: the client sends this and goes.
        unsure: the service may also have answered before it saw that the client was gone.
        twice: refused while its body is read; the service may count the part that read it too, as
            one whose client left.
        unfinished: nothing else can be sent on the connection.
    """

    name: str
    raw: bytes
    status: int = 200
    route: str = "/predict"
    method: str = "POST"
    key: Key | None = None
    labels: tuple[str, ...] = ()
    leaves: bool = False
    unsure: bool = False
    twice: bool = False
    unfinished: bool = False


class _Model:
    """What one of the served models says, computed here."""

    def __init__(self, artifact: Artifact, backend: Backend) -> None:
        self.key = key_of(artifact)
        self._classes = artifact.manifest.classes
        self._backend = backend

    def label(self, file: bytes) -> str | None:
        """Return the label of an image file; None if another is nearly as likely."""
        row = self._backend.predict(decode(file, (32, 32), _MAX_PIXELS)[np.newaxis])[0]
        second, first = np.argsort(row)[-2:]
        return self._classes[first] if row[first] - row[second] > _MARGIN else None


def _models() -> tuple[_Model, dict[Key, _Model]]:
    settings = read_settings()
    store = read_store(settings.store, settings.models, settings.default_model)
    backends = open_backends(store, settings.backend, settings.threads)
    models = {key_of(item): _Model(item, backends[key_of(item)]) for item in store}
    return models[key_of(store.default)], models


def _large(seed: int, size: tuple[int, int], kind: str, **options: int) -> bytes:
    """Return a picture enlarged and with grain, so that its file is large too."""
    pixels = Image.fromarray(pictures(16)[seed]).resize(size, Image.Resampling.BICUBIC)
    grain = np.random.default_rng(seed).normal(0, 8, (size[1], size[0], 3))
    noisy = np.clip(np.asarray(pixels) + grain, 0, 255).astype(np.uint8)
    return encode(noisy, kind, **options)


def _files() -> dict[str, tuple[int, list[bytes]]]:
    """Return for each format its weight in the mixture and its files."""
    images = pictures(16)

    def every(kind: str, **options: int) -> list[bytes]:
        return [encode(image, kind, **options) for image in images]

    return {
        "png": (20, every("PNG")),
        "jpeg": (20, every("JPEG", quality=95)),
        "webp": (8, every("WEBP", lossless=1)),
        "gif": (6, every("GIF")),
        "bmp": (6, every("BMP")),
        "tiff": (6, every("TIFF")),
        "large jpeg": (4, [_large(at, (1024, 768), "JPEG", quality=90) for at in range(8)]),
        "large png": (3, [_large(at, (400, 300), "PNG") for at in range(8)]),
    }


def _wire(head: str, body: bytes = b"", content_type: str = "", *more: str) -> bytes:
    """Return a request: `head` is method and target; a Content-Length is added."""
    lines = [f"{head} HTTP/1.1", f"Host: {_HOST}", *more]
    if content_type:
        lines.append(f"Content-Type: {content_type}")
    if body or head.startswith("POST"):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _json_of(files: Sequence[bytes]) -> bytes:
    return json.dumps({"images": [base64.b64encode(file).decode() for file in files]}).encode()


def sound() -> list[tuple[int, list[Shot]]]:
    """Return the sound requests in groups with their weights."""
    default, models = _models()
    files = _files()
    groups: list[tuple[int, list[Shot]]] = []

    def add(name: str, weight: int, made: Sequence[tuple[bytes, Sequence[bytes], _Model]]) -> None:
        shots = []
        for raw, images, model in made:
            labels = [model.label(image) for image in images]
            if None not in labels:
                known = tuple(label for label in labels if label)
                shots.append(Shot(name, raw, key=model.key, labels=known))
        groups.append((weight, shots))

    for name, (weight, every) in files.items():
        post = [(_wire("POST /predict", file, "image/*"), [file], default) for file in every]
        add(name, weight, post)
    # Several in one request, only those whose label is plain.
    mixed = [file for name in ("png", "jpeg", "webp", "bmp") for file in files[name][1]]
    plain = [file for file in mixed if default.label(file)]
    sets = [plain[at : at + 1 + at % 8] for at in range(0, len(plain) - 8, 2)]
    forms = [(form("file", some).raw((_HOST, 80)), some, default) for some in sets]
    add("form", 10, forms)
    texts = [_wire("POST /predict", _json_of(some[:3]), "application/json") for some in sets]
    add("json", 10, [(raw, some[:3], default) for raw, some in zip(texts, sets, strict=True)])
    others = [
        (_wire(f"POST /predict?model={key[0]}&version={key[1]}&top_k=3", file), [file], model)
        for key, model in models.items()
        if key[0] != _LEAVERS_MODEL
        for file in files["png"][1]
    ]
    add("named model", 4, others)
    pages = ("/health/live", "/models", "/filters", "/confusion-matrix")
    groups.append(
        (3, [Shot(f"GET {page}", _wire(f"GET {page}"), 200, page, "GET") for page in pages])
    )
    return groups


def _bomb(side: int) -> bytes:
    """Return a PNG of side x side black pixels: a few bytes for each thousand."""
    rows = zlib.compress(bytes((side // 8 + 1) * min(side, 4000)), 9)
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0), b"IDAT" + rows, b"IEND")
    packed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def _part(name: str, data: bytes, more: str = "") -> bytes:
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="x"\r\n{more}\r\n'
    return head.encode() + data + b"\r\n"


def _bodies() -> Iterator[tuple[str, int, bytes, str]]:
    """Yield hostile bodies: name, status, body, content type."""
    png, jpeg = encode(pictures(1)[0], "PNG"), encode(pictures(1)[0], "JPEG")
    bitmap, a_form, as_json = "image/png", "multipart/form-data; boundary=b", "application/json"
    end, file = b"--b--\r\n", _part("file", png)
    yield "PNG cut short", 422, png[: len(png) // 2], bitmap
    yield "JPEG cut short", 422, jpeg[: len(jpeg) // 2], "image/jpeg"
    yield "PNG of noise", 422, png[:40] + bytes(range(255, 55, -1)) * 10, bitmap
    yield "text as an image", 415, b"this is no image\n" * 40, bitmap
    yield "HEIC", 415, b"\0\0\0\x18ftypheic" + bytes(200), "image/heic"
    yield "nothing", 400, b"", bitmap
    yield "bomb of 900 megapixels", 413, _bomb(30_000), bitmap
    yield "bomb of 16 megapixels", 413, _bomb(4000), bitmap
    yield "text", 415, b"hello", "text/plain"
    yield "urlencoded form", 415, b"file=x", "application/x-www-form-urlencoded"
    yield "odd type", 415, png, "\xff\xfe/\x80"
    yield "JSON cut short", 400, b'{"images": ["', as_json
    yield "JSON without images", 400, b"[]", as_json
    yield "JSON with an unknown key", 400, b'{"images": [], "a": 1}', as_json
    yield "JSON without base64", 400, b'{"images": ["%%%"]}', as_json
    yield "JSON with numbers", 400, b'{"images": [1, NaN]}', as_json
    yield "JSON nested deeply", 400, b"[" * 9000, as_json
    yield "JSON of many values", 400, b"[" + b"1," * 20_000 + b"1]", as_json
    yield "JSON in no UTF-8", 400, b'{"images": ["\xff"]}', as_json
    yield "JSON of a text", 415, _json_of([b"no image"]), as_json
    yield "JSON of many images", 413, _json_of([png] * 65), as_json
    yield "form without a boundary", 400, _part("file", png) + end, "multipart/form-data"
    yield "form without an end", 400, _part("file", png), a_form
    yield "form of another boundary", 400, b"--c\r\n\r\n--c--", a_form
    yield "form without parts", 400, end, a_form
    yield "form with another field", 400, _part("image", png) + end, a_form
    yield "form with an empty part", 400, _part("file", b"") + end, a_form
    yield "form of many parts", 413, file * 65 + end, a_form
    yield "form with a huge head", 400, _part("file", png, f"A: {'a' * 5000}\r\n") + end, a_form
    yield (
        "form with a broken image",
        422,
        file + _part("file", png[:60]) + end,
        a_form,
    )


def _targets() -> Iterator[tuple[str, int, str, str]]:
    """Yield hostile requests without a body: head, status, route, one more header."""
    yield "GET /nothing", 404, "other", ""
    yield f"GET /{'a' * 20_000}", 404, "other", ""
    yield "GET /../../etc/passwd", 404, "other", ""
    yield "GET /models/%2e%2e%2fetc", 404, "other", ""
    yield "GET /models/nope", 404, "/models/{name}", ""
    yield "GET /models/fc/versions/99", 404, "/models/{name}/versions/{version}", ""
    yield "GET /models?x=1", 422, "/models", ""
    yield "GET /filters/99999", 404, "/filters/{index}", ""
    yield "GET /filters/-1", 422, "/filters/{index}", ""
    yield "GET /filters?layer=nope", 404, "/filters", ""
    yield "GET /confusion-matrix", 406, "/confusion-matrix", "Accept: video/mp4"
    yield "GET /predict", 405, "/predict", ""
    yield "DELETE /predict", 405, "/predict", ""
    yield "POST /models", 405, "/models", ""
    yield "POST /predict?top_k=0", 422, "/predict", ""
    yield "POST /predict?top_k=many", 422, "/predict", ""
    yield "POST /predict?top_k=1&top_k=2", 422, "/predict", ""
    yield "POST /predict?model=nope", 404, "/predict", ""
    yield "POST /predict?version=99", 404, "/predict", ""
    yield "POST /predict?a%00b=1", 422, "/predict", ""
    yield "POST /predict", 422, "/predict", "X-Request-Timeout-Ms: soon"
    yield "POST /predict", 415, "/predict", "Content-Encoding: gzip"


def _not_http() -> Iterator[tuple[str, int, bytes]]:
    """Yield what is refused before there is a request: name, status, bytes."""
    long, twice = "A: " + "a" * 65536, "Content-Length: 5"
    yield "header of 64 KB", 431, _wire("GET /models", b"", "", long)
    yield "2000 headers", 431, _wire("GET /models", b"", "", *["A: aaaaaaaaaaaaaaaa"] * 2000)
    yield "target of 40 KB", 431, _wire(f"GET /{'a' * 40_000}")
    yield "TLS", 400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64)
    yield "no method", 400, b"\r\n\r\nHello there\r\n\r\n"
    yield "two lengths", 400, _wire("POST /predict", b"some bytes", "", twice)


def hostile() -> list[Shot]:
    """Return every hostile request."""
    png = encode(pictures(1)[0], "PNG")
    whole = _wire("POST /predict", png, "image/png")
    big = _wire("POST /predict", png * 40, "image/png")
    leaver = _wire(f"POST /predict?model={_LEAVERS_MODEL}", png, "image/png")
    announced = f"Host: {_HOST}\r\nContent-Length: {1 << 30}\r\n\r\n".encode()
    chunked = f"POST /predict HTTP/1.1\r\nHost: {_HOST}\r\nTransfer-Encoding: chunked\r\n\r\n"
    shots = [
        Shot(name, _wire("POST /predict", body, kind), status)
        for name, status, body, kind in _bodies()
    ]
    for head, status, route, more in _targets():
        name = f"{head[:40]} {more}".strip()
        raw = _wire(head, b"", "", *([more] if more else []))
        shots.append(Shot(name, raw, status, route, head.partition(" ")[0]))
    early = b"POST /predict HTTP/1.1\r\n" + announced + png
    return [
        *shots,
        *(Shot(name, raw, status, "other", "other") for name, status, raw in _not_http()),
        Shot("HEAD of nothing", _wire("HEAD /nothing"), 404, "other", "HEAD"),
        Shot("unknown method", _wire("PROPFIND /predict"), 405, "/predict", "other"),
        Shot("announces 1 GiB", early, 413, unfinished=True),
        Shot("broken chunk", chunked.encode() + b"zz\r\nabc\r\n", 400, "other", twice=True),
        Shot("leaves in the head", whole[:60], 0, leaves=True),
        Shot("leaves in the body", whole[:-50], 499, leaves=True),
        Shot("leaves in a larger body", big[: len(big) // 2], 499, leaves=True),
        Shot("leaves before the answer", leaver, 499, leaves=True, unsure=True),
    ]


class Mixture:
    """All requests, drawn in an order that a seed determines."""

    def __init__(self) -> None:
        self._groups = sound()
        self._hostile = hostile()

    def draw(self, seed: int) -> Iterator[Shot]:
        """Yield requests for ever."""
        chance = random.Random(seed)  # noqa: S311 -- no secret
        weights = [weight for weight, _ in self._groups]
        while True:
            if chance.random() < HOSTILE_SHARE:
                yield chance.choice(self._hostile)
            else:
                yield chance.choice(chance.choices(self._groups, weights)[0][1])


# The client, in processes of its own


@dataclass
class Tally:
    """What clients saw.

    Attributes:
        counts: what the service is to have counted, by method, route and status.
        unsure: those of `counts` with 499 which may have been answered with 200 too.
        twice: those which the service may have counted with 499 beside their answer.
        predictions: by model, version and label.
        rejections: by the end of the problem's type.
        names: requests by the name of their kind.
        latencies: of sound requests, from when they were due, in seconds.
        failures: how many, by what was wrong.
        cpu_seconds: that the clients took.
    """

    counts: Counter[Count] = field(default_factory=Counter)
    unsure: int = 0
    twice: int = 0
    predictions: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    rejections: Counter[str] = field(default_factory=Counter)
    names: Counter[str] = field(default_factory=Counter)
    latencies: "array[float]" = field(default_factory=lambda: array("f"))
    failures: Counter[str] = field(default_factory=Counter)
    cpu_seconds: float = 0.0

    def add(self, other: Self) -> None:
        """Take over what another has."""
        for name in ("counts", "predictions", "rejections", "names", "failures"):
            getattr(self, name).update(getattr(other, name))
        self.latencies.extend(other.latencies)
        self.unsure += other.unsure
        self.twice += other.twice
        self.cpu_seconds += other.cpu_seconds

    def fail(self, what: str) -> None:
        """Note a failure."""
        self.failures[what[:300]] += 1

    def take(self, shot: Shot, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Check one answer and count it."""
        self.counts[shot.method, shot.route, status] += 1
        self.twice += shot.twice
        if status != shot.status:
            self.fail(f"{shot.name}: {status}, not {shot.status}: {body[:150]!r}")
            return
        if not headers.get("x-request-id"):
            self.fail(f"{shot.name}: no request id")
        if shot.key is not None:
            self._take_labels(shot, shot.key, body)
        elif status >= 400 and body:
            self._take_problem(shot, headers, body)

    def _take_labels(self, shot: Shot, key: Key, body: bytes) -> None:
        labels = [item["label"] for item in json.loads(body)["predictions"]]
        self.predictions.update((*key, label) for label in labels)
        if tuple(labels) != shot.labels:
            self.fail(f"{shot.name}: {labels} is wrong: {shot.labels}")

    def _take_problem(self, shot: Shot, headers: Mapping[str, str], body: bytes) -> None:
        try:
            problem = json.loads(body)
            kind, request_id = problem["type"], problem["request_id"]
        except (ValueError, KeyError):
            self.fail(f"{shot.name}: {shot.status} without a problem: {body[:100]!r}")
            return
        if request_id != headers["x-request-id"]:
            self.fail(f"{shot.name}: two request ids")
        if kind != "about:blank":
            self.rejections[kind.rpartition(":")[2]] += 1


class _Client:
    """Many connections of one process."""

    def __init__(self, address: Address, shots: Iterator[Shot], rate: float | None) -> None:
        self.tally = Tally()
        self._address = address
        self._shots = shots
        self._rate = rate
        self._sent = 0

    async def run(self, users: int, seconds: float) -> None:
        self._begin = time.perf_counter()
        self._end = self._begin + seconds
        await asyncio.gather(*(self._use() for _ in range(users)))

    async def _use(self) -> None:
        """Send whatever is due next, one after the other, on one connection while it lasts."""
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while (due := self._next_due()) < self._end:
            shot = next(self._shots)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            self.tally.names[shot.name] += 1
            keep = False
            try:
                async with asyncio.timeout(_TIMEOUT):
                    if streams is None:
                        streams = await asyncio.open_connection(*self._address)
                    keep = await self._fire(shot, due, *streams)
            except (OSError, EOFError, TimeoutError, ValueError) as exc:
                self.tally.fail(f"{shot.name}: {exc!r}")
            if not keep and streams is not None:
                streams[1].close()
                streams = None
        if streams is not None:
            streams[1].close()

    def _next_due(self) -> float:
        if self._rate is None:
            return time.perf_counter()
        self._sent += 1
        return self._begin + (self._sent - 1) / self._rate

    async def _fire(
        self, shot: Shot, due: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Send one request and take its answer; return whether the connection may be kept."""
        writer.write(shot.raw)
        if shot.leaves:
            await writer.drain()
            await asyncio.sleep(_LEAVE_SECONDS if not shot.unsure else 0)
            self._leave(shot)
            return False
        status, headers, body = await _read(reader, shot.method)
        if shot.status == 200:
            self.tally.latencies.append(time.perf_counter() - due)
        self.tally.take(shot, status, headers, body)
        return headers.get("connection") != "close" and not shot.unfinished

    def _leave(self, shot: Shot) -> None:
        if shot.status:
            self.tally.counts[shot.method, shot.route, shot.status] += 1
        self.tally.unsure += shot.unsure


async def _read(reader: asyncio.StreamReader, method: str) -> tuple[int, dict[str, str], bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    pairs = (line.partition(": ") for line in lines)
    headers = {name.lower(): value for name, _, value in pairs}
    length = 0 if method == "HEAD" else int(headers.get("content-length", "-1"))
    if length < 0:
        raise ValueError("an answer without a length")
    return int(first.split()[1]), headers, await reader.readexactly(length)


def _be_client(
    pipe: Connection, address: Address, seed: int, rate: float | None, users: int, seconds: float
) -> None:
    """Be a client: the main function of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    mixture = Mixture()
    pipe.send(None)
    pipe.recv()  # all begin at once
    client = _Client(address, mixture.draw(seed), rate)
    before = time.process_time()
    uvloop.run(client.run(users, seconds))
    client.tally.cpu_seconds = time.process_time() - before
    pipe.send(client.tally)


def send(address: Address, rate: float | None, seconds: float, watch: Callable[[], None]) -> Tally:
    """Send the mixture from one process for each two cores, and call `watch` meanwhile.

    Args:
        address: the service's.
        rate: requests a second of an open loop; None for a closed one.
        seconds: how long.
        watch: called about every tenth of a second.
    """
    count = max(1, (os.cpu_count() or 1) // 2)
    users = max(1, (USERS if rate else _CLOSED_USERS) // count)
    share = rate / count if rate else None
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(count)]
    processes = [
        context.Process(
            target=_be_client, args=(end, address, seed, share, users, seconds), daemon=True
        )
        for seed, (_, end) in enumerate(pipes)
    ]
    total = Tally()
    try:
        for process, (_, end) in zip(processes, pipes, strict=True):
            process.start()
            end.close()
        for ours, _ in pipes:
            ours.recv()
        for ours, _ in pipes:
            ours.send(None)
        for ours, _ in pipes:
            while not ours.poll(0.1):
                watch()
            total.add(ours.recv())
    except EOFError as exc:
        raise ServerFailed("a client process ended by itself") from exc
    finally:
        for process in processes:
            process.terminate()
    return total


# What the service says of itself


@dataclass(frozen=True)
class Counted:
    """The service's own counts."""

    counts: Counter[Count]
    predictions: Counter[tuple[str, str, str]]
    rejections: Counter[str]

    @classmethod
    def scrape(cls, address: Address) -> Self:
        """Read `/metrics`."""
        status, body = ask(address, Request("/metrics"))
        if status != 200:
            raise ServerFailed(f"/metrics: {status}")
        found = cls(Counter(), Counter(), Counter())
        for family in text_string_to_metric_families(body.decode()):
            for sample in family.samples:
                found._take(sample.name, sample.labels, int(sample.value))
        return found

    def _take(self, name: str, labels: Mapping[str, str], value: int) -> None:
        if name == "convscope_http_requests_total":
            self.counts[labels["method"], labels["route"], int(labels["status"])] += value
        elif name == "convscope_predictions_total":
            self.predictions[labels["model"], labels["version"], labels["label"]] += value
        elif name == "convscope_rejections_total":
            self.rejections[labels["reason"]] += value

    def since(self, before: Self) -> Self:
        """Return what was counted after `before`."""
        return type(self)(
            self.counts - before.counts,
            self.predictions - before.predictions,
            self.rejections - before.rejections,
        )


def differences(tally: Tally, counted: Counted) -> list[str]:
    """Return in words where the service's counts differ from the clients' own."""
    own = tally.counts.copy()
    # Of those who left before their answer, some had it sent: as many as it was counted for.
    answered = ("POST", "/predict", 200)
    sent = min(max(counted.counts[answered] - own[answered], 0), tally.unsure)
    own[answered] += sent
    left = ("POST", "/predict", 499)
    own[left] += min(max(counted.counts[left] - own[left] + sent, 0), tally.twice) - sent
    found = _differ("request", own, counted.counts)
    leavers = sum(n for (name, *_), n in counted.predictions.items() if name == _LEAVERS_MODEL)
    if leavers != sent:
        found.append(f"predictions of {_LEAVERS_MODEL}: {leavers} counted, {sent} answered")
    named = {key: n for key, n in counted.predictions.items() if key[0] != _LEAVERS_MODEL}
    found += _differ("prediction", tally.predictions, Counter(named))
    seen, said = (
        Counter({k: n for k, n in one.items() if k not in _PAGES_TOO})
        for one in (tally.rejections, counted.rejections)
    )
    return found + _differ("rejection", seen, said)


def _differ(what: str, own: Counter[Any], counted: Counter[Any]) -> list[str]:
    return [
        f"{what} {key}: {counted[key]} counted, {own[key]} seen"
        for key in sorted(own.keys() | counted.keys(), key=str)
        if own[key] != counted[key]
    ]


# The run


@dataclass
class Watch:
    """Samples memory, and asks what a probe and a scraper would."""

    process: ServerProcess
    address: Address
    tally: Tally = field(default_factory=Tally)
    memory: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.begin = time.monotonic()
        self._ask_at = self.begin

    def __call__(self) -> None:
        """Do what is due."""
        at = time.monotonic()
        if at - self.begin >= len(self.memory):
            rss = sum(stat.rss for stat in self.process.tree.sample())
            self.memory.append((round(at - self.begin, 1), round(rss / 1e6, 1)))
        if at >= self._ask_at:
            self._ask_at = at + _SCRAPE_SECONDS
            for page in ("/metrics", "/health/ready"):
                status, _ = ask(self.address, Request(page))
                self.tally.counts["GET", page, status] += 1
                if status != 200:
                    self.tally.fail(f"GET {page}: {status}")

    def window(self, begin: float, seconds: float) -> float:
        """Return the median of a window in MB."""
        rss = [mb for at, mb in self.memory if begin <= at <= begin + seconds]
        return median(rss or [self.memory[-1][1]])


def soak(seconds: float, rate_share: float) -> dict[str, Any]:
    """Run it and return what was found; `failures` is empty if all went well."""
    run = new_run(1, seconds, "as the service comes")
    address = _HOST, free_port()
    command = SERVERS["ours"].command(address[1])
    with ServerProcess(command, directory=ROOT, environment={}, log=LOG) as process:
        process.wait_until(lambda: ask(address, Request("/health/ready"))[0] == 200, 150)
        process.tree.settle()
        before = Counted.scrape(address)
        tally = Tally(counts=Counter({("GET", "/metrics", 200): 1}))
        best = send(address, None, CAPACITY_SECONDS, lambda: None)
        capacity = sum(best.names.values()) / CAPACITY_SECONDS
        click.echo(f"closed loop: {capacity:,.0f} requests/s")
        process.tree.begin()
        watch = Watch(process, address)
        main = send(address, capacity * rate_share, seconds, watch)
        usage = process.tree.usage()
        for part in (best, main, watch.tally):
            tally.add(part)
        time.sleep(1)  # the last ones are counted after they were answered
        counted = Counted.scrape(address).since(before)
    failures = [f"{count} × {what}" for what, count in tally.failures.most_common(_SHOWN)]
    failures += differences(tally, counted) + _errors_in_log()
    memory = _memory(watch, seconds)
    if memory["growth"] > MAX_GROWTH:
        failures.append(f"memory grew by {memory['growth']:.1%}; the limit is {MAX_GROWTH:.0%}")
    return {
        "machine": run.machine,
        "versions": run.versions,
        "commit": run.commit,
        "started": run.started,
        "finished": now(),
        "seconds": seconds,
        "capacity": round(capacity, 1),
        "rate": round(capacity * rate_share, 1),
        "rate_share": rate_share,
        "requests": sum(main.names.values()),
        "hostile": sum(n for name, n in main.names.items() if name in _hostile_names()),
        "kinds": dict(sorted(main.names.items())),
        "latency_ms": _percentiles(main.latencies),
        "server_cpu_share": round(usage.cpu_seconds / usage.seconds, 3),
        "client_cpu_share": round(main.cpu_seconds / seconds, 3),
        "memory": memory,
        "counts": {" ".join(map(str, key)): n for key, n in sorted(counted.counts.items())},
        "failures": failures,
    }


def _hostile_names() -> set[str]:
    return {shot.name for shot in hostile()}


def _memory(watch: Watch, seconds: float) -> dict[str, Any]:
    mark = min(MARK_SECONDS, seconds * MARK_SHARE)
    window = min(WINDOW_SECONDS, seconds * MARK_SHARE)
    first = watch.window(mark, window)
    last = watch.window(watch.memory[-1][0] - window, window)
    return {
        "mark_seconds": mark,
        "window_seconds": window,
        "mark_mb": first,
        "end_mb": last,
        "growth": round(last / first - 1, 4),
        "peak_mb": max(mb for _, mb in watch.memory),
        "samples": watch.memory,
    }


def _percentiles(latencies: "array[float]") -> dict[str, float]:
    values = np.asarray(latencies) * 1000
    parts = {"p50": 50, "p90": 90, "p99": 99, "p99.9": 99.9, "max": 100}
    return {name: round(float(np.percentile(values, part)), 2) for name, part in parts.items()}


def _errors_in_log() -> list[str]:
    found: Counter[str] = Counter()
    with LOG.open(errors="replace") as lines:
        for line in lines:
            if '"level": "error"' in line or '"level": "critical"' in line or "Traceback" in line:
                found[line.strip()[:300]] += 1
    return [f"{count} × in the log: {line}" for line, count in found.most_common(_SHOWN)]


def _report(found: Mapping[str, Any]) -> str:
    latency, memory = found["latency_ms"], found["memory"]
    lines = [
        f"{found['requests']:,} requests in {found['seconds']:g} s, {found['rate']:,.0f}/s of "
        f"{found['capacity']:,.0f}/s; {found['hostile']:,} of them hostile",
        f"sound ones: p50 {latency['p50']} ms, p99 {latency['p99']} ms, max {latency['max']} ms",
        f"memory: {memory['mark_mb']:.0f} MB from second {memory['mark_seconds']:g}, "
        f"{memory['end_mb']:.0f} MB at the end ({memory['growth']:+.1%}; medians over "
        f"{memory['window_seconds']:g} s), at most {memory['peak_mb']:.0f} MB",
        f"processors: service {found['server_cpu_share']:.2f}, client "
        f"{found['client_cpu_share']:.2f} of {found['machine']['cores']}",
        *(f"FAILED {line}" for line in found["failures"]),
        "failed" if found["failures"] else "passed",
    ]
    return "\n".join(lines)


@click.command()
@click.option("--minutes", default=10.0, show_default=True, type=click.FloatRange(0.2))
@click.option("--rate-share", default=0.7, show_default=True, type=click.FloatRange(0.01, 1))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help=f"Results; {FULL.relative_to(ROOT)}, or {SHORT.relative_to(ROOT)} of a shorter run.",
)
def main(minutes: float, rate_share: float, out: Path | None) -> None:
    """Soak the service; the status is 1 if anything went wrong."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is stopped
    path = out or (FULL if minutes >= FULL_MINUTES else SHORT)
    try:
        found = soak(minutes * 60, rate_share)
    except (ServerFailed, OSError) as exc:
        raise click.ClickException(str(exc)) from exc
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    click.echo(_report(found))
    sys.exit(1 if found["failures"] else 0)


if __name__ == "__main__":
    main()
