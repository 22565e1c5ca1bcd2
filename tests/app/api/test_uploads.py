"""app.api.uploads behind a real Starlette application, called through httpx's ASGI transport."""

import asyncio
import base64
import contextlib
import json
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterable
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Message

from app.api.uploads import json_body
from app.api.uploads.body import read_files
from app.api.uploads.forms import MAX_PADDING
from app.api.uploads.memory import Bodies
from app.api.uploads.upload import Upload, UploadLimits
from app.errors import (
    EmptyUpload,
    MalformedUpload,
    TooManyImages,
    UnsupportedMediaType,
    UploadTooLarge,
)
from bench.harness import requests

pytestmark = pytest.mark.anyio

LIMITS = UploadLimits(max_body_bytes=20_000, max_images=3)
MULTIPART = requests.form_type("b")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def post(
    content: bytes | AsyncIterator[bytes] | None = None,
    content_type: str | None = None,
    *,
    limits: UploadLimits = LIMITS,
    **request: Any,
) -> list[Upload]:
    """Send a request and return what `read` made of it in the application."""
    seen: list[Upload] = []

    async def endpoint(received: Request) -> JSONResponse:
        headers = dict(received.scope["headers"])
        with Bodies(1 << 30).hold() as hold:
            seen.extend(await read_files(headers, received.receive, limits, hold))
        return JSONResponse({})

    app = Starlette(routes=[Route("/", endpoint, methods=["POST"])])
    headers = dict(request.pop("headers", {}))
    if content_type is not None:
        headers["content-type"] = content_type
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://test"
    ) as client:
        await client.post("/", content=content, headers=headers, **request)
    return seen


async def slowly(chunks: Iterable[bytes], pause: float = 0.0) -> AsyncIterator[bytes]:
    for chunk in chunks:
        await asyncio.sleep(pause)
        yield chunk


def part(disposition: str, data: bytes = b"x") -> bytes:
    return requests.part(disposition, data, boundary="b")


async def read_form(body: bytes, step: int = 64 << 10) -> list[Upload]:
    """Read a form with the boundary `a` from pieces that nobody else holds."""
    at = 0

    async def receive() -> Message:
        nonlocal at
        at += step
        return {
            "type": "http.request",
            "body": body[at - step : at],
            "more_body": at < len(body),
        }

    headers = {b"content-type": requests.form_type("a").encode()}
    limits = UploadLimits(len(body), 32)
    return await read_files(headers, receive, limits, Bodies(1 << 30).hold())


HEAD = requests.part('name="file"', b"", boundary="a")[:-2]


async def post_json(document: object) -> list[Upload]:
    return await post(json.dumps(document).encode(), "application/json")


@pytest.mark.parametrize(
    "content_type", [None, "", "image/png", "IMAGE/JPEG; q=1", "application/octet-stream"]
)
async def test_raw_body_is_one_file(content_type: str | None) -> None:
    assert await post(b"\x89PNG", content_type) == [Upload(b"\x89PNG", None)]


async def test_raw_body_in_many_chunks_is_joined() -> None:
    body = slowly([b"a", b"", b"bc", b"d" * 5000])
    assert await post(body, "image/png") == [Upload(b"abc" + b"d" * 5000)]


@pytest.mark.parametrize("content_type", [None, "image/png", "application/json"])
async def test_empty_body_is_refused(content_type: str | None) -> None:
    with pytest.raises(EmptyUpload, match="body is empty"):
        await post(b"", content_type)


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "imagery/png", "x" * 9999]
)
async def test_other_content_types_are_named_with_what_is_read(content_type: str) -> None:
    with pytest.raises(
        UnsupportedMediaType, match=r"not supported; send one of image/\*"
    ) as caught:
        await post(b"x", content_type)
    assert content_type[:10] in str(caught.value)
    assert len(str(caught.value)) < 250


async def test_type_that_curl_gives_a_body_is_named_with_the_option_for_another() -> None:
    form = "application/x-www-form-urlencoded"
    with pytest.raises(
        UnsupportedMediaType,
        match=f"^Content-Type '{form}' is not supported; .*; with curl: -H 'Content-Type: image/",
    ):
        await post(b"a=1", form)
    with pytest.raises(UnsupportedMediaType, match=r"application/json$"):
        await post(b"a=1", "text/plain")


async def test_compressed_body_is_named() -> None:
    with pytest.raises(UnsupportedMediaType, match="Content-Encoding 'gzip' is not supported"):
        await post(b"x", "image/png", headers={"content-encoding": "gzip"})
    assert await post(b"x", "image/png", headers={"content-encoding": "identity"}) == [Upload(b"x")]


async def test_body_of_exactly_the_limit_is_taken() -> None:
    assert len((await post(bytes(20_000), "image/png"))[0].data) == 20_000


async def test_announced_size_over_the_limit_is_refused_before_a_byte_is_read() -> None:
    async def receive() -> Message:
        raise AssertionError("read")

    for announced in (b"20001", b"9" * 5000):
        headers = {b"content-length": announced}
        with pytest.raises(UploadTooLarge, match="the limit is 20000 bytes"):
            await read_files(headers, receive, LIMITS, Bodies(1 << 30).hold())


@pytest.mark.parametrize("content_type", ["image/png", MULTIPART, "application/json"])
async def test_stream_over_the_limit_is_refused_as_soon_as_it_passes(content_type: str) -> None:
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        head = part('name="file"')[:-2] if content_type == MULTIPART else b"["
        for _ in range(100):
            chunk = head.ljust(8000, b"x")
            sent += len(chunk)
            yield chunk
            head = b""

    with pytest.raises(UploadTooLarge, match="body is at least 24000 bytes; the limit is 20000"):
        await post(body(), content_type)
    # httpx's transport pulls at most one chunk ahead.
    assert sent <= 32_000


@pytest.mark.parametrize("content_type", [b"image/png", MULTIPART.encode()])
async def test_client_going_away_is_passed_on(content_type: bytes) -> None:
    messages: list[Message] = [
        {"type": "http.request", "body": b"--b\r\n", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return messages.pop(0)

    headers = {b"content-type": content_type}
    with pytest.raises(ClientDisconnect):
        await read_files(headers, receive, LIMITS, Bodies(1 << 30).hold())


async def test_multipart_files_come_in_order_with_their_names() -> None:
    files = [("file", (name, name.encode(), "image/png")) for name in ("a.png", "b.png", "c.png")]
    found = await post(files=files)
    assert found == [Upload(n.encode(), n) for n in ("a.png", "b.png", "c.png")]


@pytest.mark.parametrize("step", [1, 2, 3, 7, 50, 1000])
async def test_multipart_cut_into_any_chunks_is_the_same(step: int) -> None:
    data = b"\r\n--b-\r\n--\r\n\r\n--" + bytes(range(256))
    body = part('name="file"; filename="a"', data) + part('name="file"', b"\r\n") + b"--b--\r\n"
    chunks = [body[at : at + step] for at in range(0, len(body), step)]
    assert await post(slowly(chunks), MULTIPART) == [Upload(data, "a"), Upload(b"\r\n")]


async def test_truncated_multipart_is_never_accepted() -> None:
    body = part('name="file"') + b"--b--"
    assert await post(body, MULTIPART) == [Upload(b"x")]
    for end in range(1, len(body)):
        with pytest.raises(MalformedUpload, match="multipart body"):
            await post(body[:end], MULTIPART)


@pytest.mark.parametrize(
    ("content_type", "body", "message"),
    [
        ("multipart/form-data", b"x", "has no boundary; leave this header to the library"),
        ("multipart/form-data; boundary=", b"x", "has no boundary"),
        (
            "multipart/form-data; boundary=" + "b" * 999,
            b"x",
            "boundary .* is 999 bytes; the limit is 256",
        ),
        (MULTIPART, b"", "ends before its closing boundary"),
        (MULTIPART, b"garbage" * 100, "ends before its closing boundary '--b--'"),
        (MULTIPART, b"--b\r\nA: x", "ends before its closing boundary '--b--'"),
        ("multipart/form-data; boundary=" + "b" * 256, b"x", "ends before its closing .*'--bbb"),
        (
            MULTIPART,
            b"--b\r\nA: "
            + b"x" * 500
            + b"\r\nbad header\r\nB: "
            + b"x" * 500
            + b"\r\n\r\nx\r\n--b--",
            "malformed: Malformed .* in 'bad header'$",
        ),
        (
            MULTIPART,
            b"--b\r\nContent-Disposition: file\r\n\r\nx\r\n--b--",
            "Wrong type in .*: file",
        ),
        (MULTIPART, b"--b\r\nA: " + b"x" * 5000 + b"\r\n\r\nx\r\n--b--", "more than 4096 bytes"),
        (MULTIPART, b"--b\r\n" + b"A: x\r\n" * 50 + b"\r\nx\r\n--b--", "more than 16 headers"),
        (MULTIPART, b"--b\r\n" + b"A: x\r\n" * 50, "more than 16 headers"),
        (MULTIPART, b"--b\r\nA: x\r\n" + b" \r\n" * 6000, "a header has more than 4096 bytes$"),
        (MULTIPART, b"--b\r\n A: x\r\n\r\nx\r\n--b--", "Unexpected segment header continuation"),
        (MULTIPART, b"--b\nA: x\n\nx\n--b--", "is not a line of its own that ends in CRLF"),
        (MULTIPART, b"--bc\r\n" + part('name="file"') + b"--b--", "first boundary is not a line"),
        (MULTIPART, b"x" + part('name="file"') * 2 + b"--b--", "first boundary is not a line"),
        (MULTIPART, b"--b\r\n\r\nx\r\n--b--", "malformed: Missing Content-Disposition"),
        (MULTIPART, part("x") + b"--b--", "part 0 is named ''; every part must be named 'file'"),
        (MULTIPART, part('name="other"') + b"--b--", "part 0 is named 'other'; every part must be"),
        (MULTIPART, part('name="file"') + part('name="ä"') + b"--b--", "part 1 is named 'ä'"),
        (MULTIPART, part('name="' + "n" * 3000 + '"') + b"--b--", "part 0 is named 'n"),
    ],
)
async def test_malformed_multipart_is_refused(content_type: str, body: bytes, message: str) -> None:
    with pytest.raises(MalformedUpload, match=message) as caught:
        await post(body, content_type)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "boundary", ["===1700000000===", "a/b:c=d", "(a)", "a@[b]?{c},", "'a'", "a b"]
)
@pytest.mark.parametrize("head", ["", '; charset="utf-8"', '; a="; boundary=c; \\""'])
@pytest.mark.parametrize("tail", ["", ";charset=utf-8", " ; charset=utf-8", '; type="a"'])
async def test_boundary_that_lacks_its_quotes_is_read_whole(
    boundary: str, head: str, tail: str
) -> None:
    body = part('name="file"').replace(b"--b\r\n", f"--{boundary}\r\n".encode())
    content_type = f"multipart/form-data{head}; boundary={boundary}{tail}"
    assert await post(body + f"--{boundary}--".encode(), content_type) == [Upload(b"x")]


@pytest.mark.parametrize(
    "tail",
    [
        ";" * 30_000,
        "; boundary" * 6000,
        ";\t \t " * 6000,
        '; a="' * 6000,
        '; a="\\' * 5000,
        " " * 30_000,
    ],
)
async def test_long_content_type_takes_no_long_time(tail: str) -> None:
    started = time.perf_counter()
    assert await post(part('name="file"') + b"--b--", MULTIPART + tail) == [Upload(b"x")]
    assert time.perf_counter() - started < 0.5


async def test_line_that_begins_like_a_boundary_is_data_in_chunks_of_any_size() -> None:
    data = [b"\r\n--bold\r\n--boat" * 50, b"--b", b"\r\n--b-\r\n"]
    body = b"".join(part('name="file"', item) for item in data) + b"--b--"
    for step in (1, 5, 100, len(body)):
        chunks = [body[at : at + step] for at in range(0, len(body), step)]
        assert await post(slowly(chunks), MULTIPART) == [Upload(item) for item in data]


@pytest.mark.parametrize("tail", [b"X", b"\r", b"-", b"-\r", b"XY", b"\rX", b"-X-", b"XYZ"])
async def test_file_that_ends_like_a_boundary_does_not_swallow_the_next(tail: bytes) -> None:
    line = b"\r\n--a" + tail
    data = [b"x" + line, line * 2, line[2:], b"y"]
    body = b"".join(HEAD + item + b"\r\n" for item in data) + b"--a--\r\nepilogue"
    for step in range(1, len(body) + 1):
        assert await read_form(body, step) == [Upload(item) for item in data], step


async def test_file_that_ends_in_a_whole_boundary_is_refused_in_chunks_of_any_size() -> None:
    body = HEAD + b"x\r\n--a\r\n" + HEAD + b"y\r\n--a--"
    for step in range(1, len(body) + 1):
        with pytest.raises(MalformedUpload, match="Malformed segment header"):
            await read_form(body, step)


async def test_content_length_of_a_part_is_ignored() -> None:  # RFC 7578 (4.8)
    body = HEAD[:-2] + b"Content-Length: 7\r\n\r\nx\r\n--a--"
    assert await read_form(body) == [Upload(b"x")]


async def test_headers_of_a_part_are_limited_together() -> None:
    line = b"A: " + b"x" * 4093 + b"\r\n"
    body = b"--b\r\n" + line * 16 + b"\r\nx\r\n--b--"
    for step in (1000, len(body)):
        chunks = [body[at : at + step] for at in range(0, len(body), step)]
        with pytest.raises(MalformedUpload, match="a part have more than 65536 bytes"):
            await post(slowly(chunks), MULTIPART, limits=UploadLimits(100_000, 3))


@pytest.mark.parametrize("data", [b" x", b"q" * 70_000, b"\r\n\r\nx\r\n--b--"])
async def test_part_without_headers_is_named_wherever_the_body_is_cut(data: bytes) -> None:
    for chunks in ([b"--b\r\n\r\n", data], [b"--b\r\n", b"\r\n" + data], [b"--b\r\n\r\n" + data]):
        with pytest.raises(MalformedUpload, match="Missing Content-Disposition segment header"):
            await post(slowly(chunks), MULTIPART, limits=UploadLimits(100_000, 3))


async def test_head_of_a_part_far_behind_in_one_piece_is_read() -> None:
    sizes = (100_000, 3)
    body = b"".join(HEAD + bytes(size) + b"\r\n" for size in sizes) + b"--a--"
    assert [len(upload.data) for upload in await read_form(body, len(body))] == list(sizes)


async def test_file_is_held_once_while_the_end_of_its_form_is_slow() -> None:
    size = 8 << 20
    chunks = iter([HEAD + bytes(size), b"\r\n--a--", b"epilogue", b""])
    held = 0

    async def receive() -> Message:
        nonlocal held
        held, _ = tracemalloc.get_traced_memory()
        chunk = next(chunks)
        return {"type": "http.request", "body": chunk, "more_body": bool(chunk)}

    headers = {b"content-type": requests.form_type("a").encode()}
    tracemalloc.start()
    try:
        await read_files(headers, receive, UploadLimits(2 * size, 1), Bodies(1 << 30).hold())
    finally:
        tracemalloc.stop()
    assert size <= held < 1.1 * size


@pytest.mark.parametrize(
    "body",
    [
        HEAD + b"\r\n--ax" * 349_525 + b"\r\n--a--",
        HEAD + b"\r\n--a\r" * 299_593 + b"\r\n--a--",
        b"\r\n--ax" * 349_525,
        HEAD[:-2] + b"A: x\r\n" * 349_525,
        HEAD[:-2] + b"A: " + b"x" * 4000 + b"\r\n \r\n" * 400_000,
    ],
    ids=["data", "data with line ends", "before the first part", "headers", "folded header"],
)
async def test_hostile_form_takes_little_time_and_memory(body: bytes) -> None:
    async def read_it() -> None:
        with contextlib.suppress(MalformedUpload):
            await read_form(body)

    started = time.process_time()
    await read_it()
    assert time.process_time() - started < 0.3
    tracemalloc.start()
    try:
        await read_it()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2.3 * len(body)


@pytest.mark.parametrize(
    "tail",
    [
        ";" * 4000,
        '; a="\\' * 660,
        ';a="' * 1000,
        "; " + " " * 4000,
        '; a="' + "\\" * 3900,
    ],
)
@pytest.mark.parametrize("extended", ["", "; filename*=utf-8''"])
async def test_long_content_dispositions_take_no_long_time(tail: str, extended: str) -> None:
    disposition = 'name="file"' + extended + tail
    body = requests.part(disposition, b"x", boundary="a") * 32 + b"--a--"
    started = time.process_time()
    assert await read_form(body) == [Upload(b"x")] * 32
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize(
    "name",
    [
        "; ".join(f"filename*{number}=x" for number in range(200)),
        "filename=" + "=?utf-8?q?" * 390,
        "filename=" + "=?utf-8?q?a?= " * 280,
        "filename=" + "=?utf-8?q?a?= " * 280 + "?",
    ],
    ids=["pieces", "begun words", "words", "words and more"],
)
async def test_long_file_names_take_no_long_time(name: str) -> None:
    body = requests.part(f'name="file"; {name}', b"x", boundary="a") * 32 + b"--a--"
    started = time.process_time()
    assert [upload.data for upload in await read_form(body)] == [b"x"] * 32
    assert time.process_time() - started < 0.5


async def test_semicolons_of_a_file_name_belong_to_it() -> None:
    name = "a;b" * 10 + ".png"
    body = part(f'name="file"; filename="{name}"') + b"--b--"
    assert await post(body, MULTIPART) == [Upload(b"x", name)]


async def test_empty_part_is_named() -> None:
    body = part('name="file"') + part('name="file"', b"") + b"--b--"
    with pytest.raises(EmptyUpload, match="part 1 is empty"):
        await post(body, MULTIPART)


async def test_multipart_without_parts_is_empty() -> None:
    with pytest.raises(EmptyUpload, match="no parts"):
        await post(b"--b--\r\n", MULTIPART)


async def test_too_many_parts_are_refused_before_the_rest_is_read() -> None:
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield part('name="file"')

    with pytest.raises(TooManyImages, match="request has more than 3 images; the limit is 3"):
        await post(body(), MULTIPART)
    assert sent <= 5


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("cat.png", "cat.png"),
        ("../../etc/passwd", "passwd"),
        ("/a/b.png", "b.png"),
        ("C:\\photos\\b.png", "b.png"),
        ("кот 🐈.png", "кот 🐈.png"),
        ("a\x00b\x1b[31mc\x7f.png", "ab[31mc.png"),
        ("gpj.\u202eexe", "gpj.exe"),
        ("n" * 999, "n" * 255),
        ("👩‍🚀 می‌روم.png", "👩‍🚀 می‌روم.png"),
        (" a.png ", "a.png"),
        (" ", None),
        ("", None),
        ("folder/", None),
    ],
)
async def test_file_name_is_cleaned(sent: str, kept: str | None) -> None:
    body = part(f'name="file"; filename="{sent}"') + b"--b--"
    assert await post(body, MULTIPART) == [Upload(b"x", kept)]


@pytest.mark.parametrize(
    ("parameters", "kept"),
    [
        ("filename=my cat.png", "my cat.png"),
        ("filename=grün (1), neu.png ; size=3", "grün (1), neu.png"),
        (r"filename=C:\photos\a.png", "a.png"),
        (r'filename="C:\photos\"', None),
        (r'filename="a\"b;c.png"; size=3', 'a"b;c.png'),
        ('filename="a%22b.png"', 'a"b.png'),
        ("filename=", None),
    ],
)
async def test_file_name_is_read_with_and_without_quotes(parameters: str, kept: str | None) -> None:
    body = part('name="file"; ' + parameters) + b"--b--"
    assert await post(body, MULTIPART) == [Upload(b"x", kept)]


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("=?utf-8?B?Z3LDvG4ucG5n?=", "grün.png"),
        ("=?UTF-8?q?gr=C3=BCn_b.png?=", "grün b.png"),
        ("=?iso-8859-1?Q?gr=FCn.png?=", "grün.png"),
        ("=?utf-8?B?Z3LD?= =?utf-8?B?vG4ucG5n?=", "grün.png"),
        ("=?utf-8?B?Li4vL2V0Yy9wYXNzd2Q=?=", "passwd"),
        ("=?utf-8?Q?=FF?=", "=?utf-8?Q?=FF?="),
        ("=?utf-8?B?x?=", "=?utf-8?B?x?="),
        ("=?utf-7?B?Z3LDvG4=?=", "=?utf-7?B?Z3LDvG4=?="),
        ("=?utf-8?B?Z3LDvG4=?= a", "=?utf-8?B?Z3LDvG4=?= a"),
    ],
)
async def test_file_name_in_encoded_words_is_read(name: str, kept: str) -> None:
    body = part(f'name="file"; filename="{name}"') + b"--b--"
    assert await post(body, MULTIPART) == [Upload(b"x", kept)]


async def test_file_name_in_latin_1_is_read() -> None:
    body = part('name="file"; filename="@"').replace(b"@", b"caf\xe9") + b"--b--"
    assert (await post(body, MULTIPART))[0].filename == "café"


@pytest.mark.parametrize(
    ("parameters", "kept"),
    [
        ("filename*=utf-8''caf%C3%A9.png", "café.png"),
        ("FileName*=UTF-8'de'gr%c3%bcn.png", "grün.png"),
        ("filename=\"plain.png\"; filename*=utf-8''%E5%AD%97.png", "字.png"),
        ("filename*=utf-8''%E5%AD%97.png; filename=plain.png", "字.png"),
        ("filename*=iso-8859-1''caf%E9.png", "café.png"),
        ("filename*=\"utf-8''a%20b.png\"", "a b.png"),
        ("filename*=\"utf-8''字.png\"", "字.png"),
        ("filename*=utf-8''..%2F..%2Fetc%2Fpass%00wd", "passwd"),
        ("filename*=utf-8''" + "%41" * 999, "A" * 255),
        ("filename*=utf-8''a (1).png", "a (1).png"),
        ("filename*=utf8''gr%C3%BCn.png", "grün.png"),
        ("filename*0*=utf-8''gr%C3; filename*1*=%BCn; filename*2=%20.png", "grün%20.png"),
        ('filename*1="b.png"; filename*0="字 "; filename=plain.png', "字 b.png"),
        ("filename*1=b.png; filename=plain.png", "plain.png"),
        ("filename*0*=utf-8''%FF; filename=plain.png", "plain.png"),
        ("filename=plain.png; filename*=utf-8''%FF.png", "plain.png"),
        ("filename=plain.png; filename*=utf-7''a.png", "plain.png"),
        ("filename=plain.png; filename*=utf-8''", "plain.png"),
        ("filename=plain.png; filename*=a.png", "plain.png"),
        ("filename=plain.png; filename*=", "plain.png"),
        ("filename=a*b.png", "a*b.png"),
    ],
)
async def test_extended_file_name_is_read(parameters: str, kept: str) -> None:
    body = part('name="file"; ' + parameters) + b"--b--"
    assert await post(body, MULTIPART) == [Upload(b"x", kept)]


@pytest.mark.parametrize("fold", ["\r\n ", "\r\n\t \t"])
async def test_header_of_a_part_may_continue_on_further_lines(fold: str) -> None:  # as e-mail's
    body = part(f'{fold}name="file";{fold}filename="a.png"') + b"--b--"
    for step in (1, 5, len(body)):
        chunks = [body[at : at + step] for at in range(0, len(body), step)]
        assert await post(slowly(chunks), MULTIPART) == [Upload(b"x", "a.png")]


@pytest.mark.parametrize("size", [1000, 300_000])
async def test_part_in_base64_is_decoded(size: int) -> None:
    data = bytes(size - 1) + b"\xff"
    body = b"".join(
        requests.part(
            'name="file"; filename="a.png"',
            base64.encodebytes(data),
            f"content-transfer-encoding: {encoding}",
            boundary="a",
        )
        for encoding in ("base64", "BASE64")
    )
    assert await read_form(body + b"--a--") == [Upload(data, "a.png")] * 2


@pytest.mark.parametrize("encoding", ["binary", "8bit", "7BIT"])
async def test_part_that_is_not_encoded_is_read_as_it_is(encoding: str) -> None:
    header = f"Content-Transfer-Encoding: {encoding}"
    body = requests.part('name="file"', b"eA==", header, boundary="a") + b"--a--"
    assert await read_form(body) == [Upload(b"eA==")]


@pytest.mark.parametrize("encoding", ["quoted-printable", "x" * 999])
async def test_part_of_another_encoding_is_refused_by_its_name(encoding: str) -> None:
    header = f"Content-Transfer-Encoding: {encoding}"
    body = HEAD + b"x\r\n" + requests.part('name="file"', b"x", header, boundary="a") + b"--a--"
    with pytest.raises(UnsupportedMediaType, match=r"^part 1 has Content-Transfer-Enc") as caught:
        await read_form(body)
    assert encoding[:10] in str(caught.value)
    assert len(str(caught.value)) < 250


async def test_part_that_only_claims_base64_is_refused() -> None:
    header = "Content-Transfer-Encoding: base64"
    for data, error, message in (
        (b"\x89PNG", MalformedUpload, "^part 0 is not base64: "),
        (b"\r\n", EmptyUpload, "^part 0 is empty"),
    ):
        body = requests.part('name="file"', data, header, boundary="a") + b"--a--"
        with pytest.raises(error, match=message):
            await read_form(body)


async def test_truncated_part_in_base64_is_called_truncated() -> None:
    header = "Content-Transfer-Encoding: base64"
    body = requests.part('name="file"', b"eA==", header, boundary="a") + b"--a--"
    for end in range(body.index(b"eA=="), len(body)):
        with pytest.raises(MalformedUpload, match="multipart body ends before its closing"):
            await read_form(body[:end])


@pytest.mark.parametrize("preamble", [b"\r\n", b"A preamble.\r\n", b"-- a\r\n\n--\r\n\r\n"])
@pytest.mark.parametrize("epilogue", [b"", b"\r\n", b"\r\nAn epilogue.\r\n--a\r\n--a--"])
async def test_what_stands_around_a_form_is_passed_over(preamble: bytes, epilogue: bytes) -> None:
    body = preamble + HEAD + b"x\r\n--a--" + epilogue  # RFC 2046 (5.1.1)
    for step in range(1, len(body) + 1):
        assert await read_form(body, step) == [Upload(b"x")], step


@pytest.mark.parametrize("padding", [b" ", b"\t", b" \t" * (MAX_PADDING // 2)])
async def test_blanks_after_a_boundary_are_passed_over(padding: bytes) -> None:
    data = [b"x", b"\r\n--a" + padding + b"y", b"\r\n--a \n", b"z" + padding]
    begun = HEAD.replace(b"--a\r\n", b"--a" + padding + b"\r\n")
    body = b"".join(begun + item + b"\r\n" for item in data) + b"--a--" + padding + b"\r\n"
    for step in (1, 2, 3, 50, len(body)):
        assert await read_form(body, step) == [Upload(item) for item in data], step


async def test_json_images_are_decoded() -> None:
    text = base64.b64encode(b"\x00\xff\xfeabc").decode()
    found = await post_json({"images": [text, "data:image/png;base64," + text]})
    assert found == [Upload(b"\x00\xff\xfeabc")] * 2


@pytest.mark.parametrize(
    "head",
    [
        "data:image/png;base64,",
        "DATA:image/PNG;BASE64,",
        "data:;base64,",
        "data:application/octet-stream;base64,",
        "data:image/svg+xml;charset=utf-8;name=a.png; base64,",
        'data:image/png;name="a.png";base64,',
        "data:image/png;base64;charset=utf-8,",
        "data:image/png;BASE64;,",
        " \n\tdata:image/png;base64,",
        "\ufeffdata:image/png;base64,",
        "\ufeff",
        "",
    ],
)
@pytest.mark.parametrize(
    "data",
    [
        "/+8=",
        "%2F%2b8%3D",
        "%5F%2D8=",
        "%2f%2B%38%3d",
        "_-8%3d",
        "/+%0D%0A8=",
        "/%09+%208=",
        " /+8= \u00a0\u2028",
    ],
)
async def test_data_url_is_read_however_it_is_written(head: str, data: str) -> None:
    assert await post_json({"images": [head + data]}) == [Upload(b"\xff\xef")]


@pytest.mark.parametrize("media_type", ["text/html", "imagery/png", "x" * 1000])
async def test_data_url_of_another_type_is_refused_by_its_type(media_type: str) -> None:
    with pytest.raises(UnsupportedMediaType, match=r"^images\[0\] is a data URL of type") as caught:
        await post_json({"images": [f"data:{media_type};base64,eA=="]})
    assert media_type[:10] in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("text", ["_-8=", "/+8=", "/+8", " /+\r\n\t8=\n", "_-8", "_\n-8=="])
async def test_base64_is_read_however_it_is_written(text: str) -> None:
    assert await post_json({"images": [text]}) == [Upload(b"\xff\xef")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\t"])
async def test_json_strings_may_be_broken_into_lines(end: str) -> None:
    data = bytes(range(256))
    wrapped = base64.encodebytes(data).decode().replace("\n", end)
    body = f'{{\n\t"images":\n[{end}"{wrapped}",\n"data:image/png;base64,{end}{wrapped}"]\n}}\n'
    assert await post(body.encode(), "application/json") == [Upload(data)] * 2


async def test_byte_order_mark_before_json_is_passed_over() -> None:
    body = b'\xef\xbb\xbf{"images": ["eA=="]}'
    assert await post(body, "application/json") == [Upload(b"x")]


@pytest.mark.parametrize(
    "item",
    [
        "data:" + ";" * 2_000_000,
        "data:;base64," + "%2B" * 1_000_000 + "!",
        "data:;base64," + "%" * 3_000_000,
        "%41" * 1_000_000 + "!",
        "-\n" * 1_000_000 + "!",
    ],
)
async def test_hostile_json_string_takes_little_time(item: str) -> None:
    limits = UploadLimits(8_000_000, 1)
    body = json.dumps({"images": [item]}).encode()
    started = time.process_time()
    with pytest.raises(MalformedUpload):
        await post(body, "application/json", limits=limits)
    assert time.process_time() - started < 0.3


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "is not an object"),
        ("x", "is not an object"),
        ({}, "is not an object"),
        ({"images": ["eA=="], "model": "x"}, "JSON key 'model' is unknown"),
        ({"image": "eA=="}, "JSON key 'image' is unknown; only 'images' is allowed"),
        ({"": 1}, "JSON key '' is unknown"),
        ({"images": "eA=="}, "'images' is not a list"),
        ({"images": []}, "at least one"),
        ({"images": ["eA==", 7]}, r"images\[1\] is not a string"),
        ({"images": [None]}, r"images\[0\] is not a string"),
        ({"images": ["e"]}, r"images\[0\] is not base64: Invalid"),
        ({"images": ["eA==eA=="]}, r"images\[0\] is not base64"),
        ({"images": ["eA,="]}, r"images\[0\] is not base64"),
        ({"images": ["é"]}, r"images\[0\] is not base64: .* has the character 'é'$"),
        (
            {"images": ["https://a.b/c.png"]},
            "begins with 'https://a.b/c.png' and has the character ':'",
        ),
        ({"images": ["%89PNG%"]}, "begins with '%89PNG%' and has the character '%'$"),
        ({"images": ["eA==%253D"]}, r"images\[0\] is not base64"),
        ({"images": ["eA%25%25"]}, r"images\[0\] is not base64"),
        ({"images": ["eA=41%0A"]}, r"images\[0\] is not base64"),
        ({"images": ["data:eA=="]}, r"images\[0\] is a data URL without a comma in its first 1024"),
        ({"images": ["data:image/png" + ";a" * 999 + ";base64,eA=="]}, "without a comma in"),
        ({"images": ["data:image/png,%89PNG"]}, r"images\[0\] is a data URL without ';base64'"),
        ({"images": ["data:base64,eA=="]}, r"images\[0\] is a data URL without ';base64'"),
    ],
)
async def test_malformed_json_document_is_refused(document: object, message: str) -> None:
    with pytest.raises(MalformedUpload, match=message):
        await post_json(document)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "body is not JSON"),
        (b'{"images": ["eA=="], "images": ["eQ=="]}', "JSON key 'images' stands more than once"),
        (b'{"images": 1, "im\\u0061ges": ["eQ=="]}', "JSON key 'images' stands more than once"),
        (b'{"images":\n[x]}', "body is not JSON: .*: line 2 column 2"),
        (b'{"images": ["eA\0=="]}', "body is not JSON: unexpected control character"),
        (b"\xff\xfe", "JSON body is in UTF-16; send it in UTF-8"),
        (b'{"images": ["\xff"]}', "body is not JSON"),
        ('{"images": ["eA=="]}'.encode("utf-16"), "JSON body is in UTF-16; send it in UTF-8"),
        ('{"images": ["eA=="]}'.encode("utf-16-be"), "JSON body is in UTF-16-BE; send it in UTF-8"),
        ('{"images": ["eA=="]}'.encode("utf-32"), "JSON body is in UTF-32; send it in UTF-8"),
        (b'{"images": NaN}', "body is not JSON"),
        (b'{"images": [-Infinity]}', "body is not JSON"),
        (b'{"images": ' + b"1" * 100 + b"}", "'images' is not a list"),
        (b'{"images": [' + b"1" * 9000 + b"]}", "body is not JSON: number is infinity"),
        (b'{"images": [' + b"1" * 15_000 + b"]}", "body is not JSON: number is infinity"),
        (b"[" * 9000, "body is not JSON: depth limit exceeded"),
        (b'{"a":' * 2500, "body is not JSON: depth limit exceeded"),
        (b"[" + b"{}," * 6000, "has 12001 commas and opening brackets; the limit is 10000"),
    ],
)
async def test_malformed_json_text_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(MalformedUpload, match=message):
        await post(body, "application/json; charset=utf-8")


@pytest.mark.parametrize(("size", "in_thread"), [(1000, False), (300_000, True)])
async def test_large_json_is_parsed_in_a_thread(
    monkeypatch: pytest.MonkeyPatch, size: int, in_thread: bool
) -> None:
    threads: list[int] = []
    parse = json_body._parse_json

    def spy(body: bytes) -> list[Any]:
        threads.append(threading.get_ident())
        return parse(body)

    monkeypatch.setattr(json_body, "_parse_json", spy)
    limits = UploadLimits(1_000_000, 3)
    body = json.dumps({"images": [base64.b64encode(bytes(size)).decode()]}).encode()
    assert await post(body, "application/json", limits=limits) == [Upload(bytes(size))]
    assert (threads != [threading.get_ident()]) is in_thread


async def test_bytes_are_held_as_they_arrive() -> None:
    room, told = Bodies(1 << 30), list[int]()
    chunks = [b"abc", b"defgh"]
    messages: list[Message] = [
        {"type": "http.request", "body": chunk, "more_body": chunk != chunks[-1]}
        for chunk in chunks
    ]

    async def receive() -> Message:
        told.append(room.held)
        return messages.pop(0)

    headers = {b"content-length": b"8"}
    with room.hold() as hold:
        await read_files(headers, receive, LIMITS, hold)
        told.append(room.held)
    assert told == [0, 3, 8]  # bytes that are only announced are not held


@pytest.mark.parametrize("item", ["", "data:image/png;base64,"])
async def test_empty_json_image_is_named(item: str) -> None:
    with pytest.raises(EmptyUpload, match=r"images\[1\] is empty"):
        await post_json({"images": ["eA==", item]})


async def test_too_many_json_images_are_counted() -> None:
    with pytest.raises(TooManyImages, match="request has 4 images; the limit is 3"):
        await post_json({"images": ["eA=="] * 4})
