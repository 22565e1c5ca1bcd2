"""Requests of the soak: valid ones in every format and hostile ones, each with its expected answer.

The expected labels are computed in this process. The tables below give, beside each hostile
request, the service's answer and the way in which the service counts it.
"""

import base64
import json
import random
import struct
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from app.artifact.directory import Artifact
from app.artifact.store import read_store
from app.images.decode import decode
from app.inference.backends import Backend, open_backends
from app.settings import read_settings
from bench.harness.clients import Shot
from bench.harness.payloads import encode, pictures
from bench.harness.requests import end_of_form, form, form_type, head, message, part

HOST = "127.0.0.1"
HOSTILE_SHARE = 0.05
LEAVERS_MODEL = "fc"
"""Only clients that leave ask this model: nobody can tell whether they were answered."""

_MARGIN = 0.05
"""Least distance between the two likeliest classes: rounding depends on the size of a batch."""
_MAX_PIXELS = 40_000_000


# Valid requests


class _Model:
    """A served model's answers, computed in this process."""

    def __init__(self, artifact: Artifact, backend: Backend) -> None:
        self.name, self.version = artifact.manifest.name, artifact.manifest.version
        self._classes = artifact.manifest.classes
        self._backend = backend

    def label(self, file: bytes) -> str | None:
        """Return the label of an image file; None if another class is nearly as likely."""
        outputs = self._backend.predict(decode(file, (32, 32), _MAX_PIXELS)[np.newaxis])
        row = outputs.probabilities[0]
        second, first = np.argsort(row)[-2:]
        return self._classes[first] if row[first] - row[second] > _MARGIN else None


def _models() -> tuple[_Model, list[_Model]]:
    settings = read_settings()
    store = read_store(settings.store, settings.models, settings.default_model)
    backends = open_backends(store, settings.backend, settings.threads)
    classifiers = store.for_task("classification")
    models = {item.ref: _Model(item, backends[item.ref]) for item in classifiers}
    return models[store.default.ref], list(models.values())


def _large(seed: int, size: tuple[int, int], kind: str, **options: int) -> bytes:
    """Return the file of a picture that is enlarged and has grain, so the file is large too."""
    pixels = Image.fromarray(pictures(16)[seed]).resize(size, Image.Resampling.BICUBIC)
    grain = np.random.default_rng(seed).normal(0, 8, (size[1], size[0], 3))
    noisy = np.clip(np.asarray(pixels) + grain, 0, 255).astype(np.uint8)
    return encode(noisy, kind, **options)


def _files() -> dict[str, tuple[int, list[bytes]]]:
    """Return each format's weight in the mixture and its files."""
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


def _post(target: str, body: bytes, content_type: str) -> bytes:
    return message(f"POST {target}", body, f"Content-Type: {content_type}", host=HOST)


def _json_of(files: Sequence[bytes]) -> bytes:
    return json.dumps({"images": [base64.b64encode(file).decode() for file in files]}).encode()


def sound() -> list[tuple[int, list[Shot]]]:
    """Return the valid requests in groups, each with its weight."""
    default, models = _models()
    files = _files()
    groups: list[tuple[int, list[Shot]]] = []

    def add(name: str, weight: int, made: Sequence[tuple[bytes, Sequence[bytes], _Model]]) -> None:
        shots = []
        for raw, images, model in made:
            labels = [model.label(image) for image in images]
            if None not in labels:
                known = tuple(label for label in labels if label)
                shots.append(Shot(name, raw, model=(model.name, model.version), labels=known))
        groups.append((weight, shots))

    for name, (weight, every) in files.items():
        add(name, weight, [(_post("/predict", file, "image/*"), [file], default) for file in every])
    # Several images in one request; all have a clear label.
    mixed = [file for name in ("png", "jpeg", "webp", "bmp") for file in files[name][1]]
    plain = [file for file in mixed if default.label(file)]
    sets = [plain[at : at + 1 + at % 8] for at in range(0, len(plain) - 8, 2)]
    forms = [(form("file", some).raw((HOST, 80)), some, default) for some in sets]
    add("form", 10, forms)
    texts = [_post("/predict", _json_of(some[:3]), "application/json") for some in sets]
    add("json", 10, [(raw, some[:3], default) for raw, some in zip(texts, sets, strict=True)])
    others = [
        (
            _post(f"/predict?model={model.name}&version={model.version}&top_k=3", file, "image/*"),
            [file],
            model,
        )
        for model in models
        if model.name != LEAVERS_MODEL
        for file in files["png"][1]
    ]
    add("named model", 4, others)
    pages = ("/health/live", "/models", "/filters", "/confusion-matrix")
    gets = [Shot(f"GET {page}", head(f"GET {page}", host=HOST), 200, page, "GET") for page in pages]
    groups.append((3, gets))
    return groups


# Hostile requests


def _bomb(side: int) -> bytes:
    """Return a PNG of side x side black pixels, a few bytes for every thousand pixels."""
    rows = zlib.compress(bytes((side // 8 + 1) * min(side, 4000)), 9)
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0), b"IDAT" + rows, b"IEND")
    packed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def _part(name: str, data: bytes, *headers: str) -> bytes:
    return part(f'name="{name}"; filename="x"', data, *headers)


def _bodies() -> Iterator[tuple[str, int, bytes, str]]:
    """Yield hostile bodies: name, status, body, content type."""
    png, jpeg = encode(pictures(1)[0], "PNG"), encode(pictures(1)[0], "JPEG")
    bitmap, a_form, as_json = "image/png", form_type(), "application/json"
    end, file = end_of_form(), _part("file", png)
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
    yield "form with a huge head", 400, _part("file", png, f"A: {'a' * 5000}") + end, a_form
    yield "form with a broken image", 422, file + _part("file", png[:60]) + end, a_form


def _targets() -> Iterator[tuple[str, int, str, str]]:
    """Yield hostile requests without a body: method and target, status, route, one more header."""
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
    """Yield bytes that are refused before there is a request: name, status, bytes."""
    yield "header of 64 KB", 431, head("GET /models", "A: " + "a" * 65536)
    yield "2000 headers", 431, head("GET /models", *["A: aaaaaaaaaaaaaaaa"] * 2000)
    yield "target of 40 KB", 431, head(f"GET /{'a' * 40_000}")
    yield "TLS", 400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64)
    yield "no method", 400, b"\r\n\r\nHello there\r\n\r\n"
    yield "two lengths", 400, message("POST /predict", b"some bytes", "Content-Length: 5")


def hostile() -> list[Shot]:
    """Return every hostile request."""
    png = encode(pictures(1)[0], "PNG")
    whole = _post("/predict", png, "image/png")
    big = _post("/predict", png * 40, "image/png")
    leaver = _post(f"/predict?model={LEAVERS_MODEL}", png, "image/png")
    early = head("POST /predict", f"Content-Length: {1 << 30}") + png
    chunked = head("POST /predict", "Transfer-Encoding: chunked")
    shots = [
        Shot(name, _post("/predict", body, kind), status) for name, status, body, kind in _bodies()
    ]
    for line, status, route, more in _targets():
        method, headers = line.partition(" ")[0], [more] if more else []
        raw = message(line, b"", *headers) if method == "POST" else head(line, *headers)
        shots.append(Shot(f"{line[:40]} {more}".strip(), raw, status, route, method))
    return [
        *shots,
        *(Shot(name, raw, status, "other", "other") for name, status, raw in _not_http()),
        Shot("HEAD of nothing", head("HEAD /nothing"), 404, "other", "HEAD"),
        Shot("unknown method", head("PROPFIND /predict"), 405, "/predict", "other"),
        Shot("announces 1 GiB", early, 413, unfinished=True),
        Shot("broken chunk", chunked + b"zz\r\nabc\r\n", 400, "other"),
        Shot("leaves in the head", whole[:60], 0, leaves=True),
        Shot("leaves in the body", whole[:-50], 499, leaves=True),
        Shot("leaves in a larger body", big[: len(big) // 2], 499, leaves=True),
        Shot("leaves before the answer", leaver, 499, leaves=True, unsure=True),
    ]


# Both


class Mixture:
    """All requests, in an order determined by a seed."""

    def __init__(self) -> None:
        self._groups = sound()
        self._hostile = hostile()

    def draw(self, seed: int) -> Iterator[Shot]:
        """Yield requests without end."""
        chance = random.Random(seed)  # noqa: S311 -- no secret
        weights = [weight for weight, _ in self._groups]
        while True:
            if chance.random() < HOSTILE_SHARE:
                yield chance.choice(self._hostile)
            else:
                yield chance.choice(chance.choices(self._groups, weights)[0][1])


def draw(seed: int) -> Iterator[Shot]:
    """Compute the expected labels, then return `Mixture.draw`: for processes of clients."""
    return Mixture().draw(seed)
