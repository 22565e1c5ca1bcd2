"""app.server.chunks: where a chunked body ends, and the work of finding it."""

import tracemalloc

import pytest

from app.server.chunks import ChunkedBody

EMPTY_LINES = b"\r\n0\r\n\r\n" * 1000
BODY = b"5;name=value\r\nhello\r\n%X\r\n%b\r\n0\r\ntrailer: 1\r\n\r\n" % (
    len(EMPTY_LINES),
    EMPTY_LINES,
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_body_ends_where_its_last_chunk_does(size: int) -> None:
    sent, body, taken = BODY + b"GET / HTTP/1.1\r\n", ChunkedBody(), 0
    for start in range(0, len(sent), size):
        piece = sent[start : start + size]
        end = body.end_in(piece)
        taken += end
        if end < len(piece) or taken == len(BODY):
            break
    assert taken == len(BODY)


def test_line_without_an_end_is_not_kept() -> None:
    body = ChunkedBody()
    tracemalloc.start()
    try:
        for _ in range(100):
            assert body.end_in(b"1;" + bytes(100_000)) == 100_002
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert body.end_in(b"\r\nx\r\n0\r\n\r\nGET") == 10


@pytest.mark.parametrize("damage", [b"x\r\n", b"-1\r\n", b"\r\n"])
def test_damaged_size_leaves_all_bytes_to_the_parser(damage: bytes) -> None:
    assert ChunkedBody().end_in(damage + b"hello") == len(damage) + 5


@pytest.mark.parametrize("cut", [1, 63, 64, 65, 80, 81, 82, 83])
def test_zeros_before_a_size_are_counted_in_any_packets(cut: int) -> None:
    body, sent = ChunkedBody(), b"0" * 80 + b"10\r\n" + b"\r\n" * 8 + b"\r\n0\r\n\r\nGET"
    assert body.end_in(sent[:cut]) == cut
    assert body.end_in(sent[cut:]) == len(sent) - cut - 3


def test_content_that_looks_like_an_end_is_passed_over_at_once() -> None:
    """A cut at each of them would cost a call of the parser for four bytes of content."""
    content = BODY[: BODY.index(b"trailer")]
    assert ChunkedBody().end_in(content) == len(content)
