"""The end of a chunked body (RFC 9112, 7.1), found while its bytes arrive in pieces of any size."""

_LINE_BYTES = 64  # kept of a line without its leading zeros; a size has at most 16 digits


class ChunkedBody:
    """Walks from chunk to chunk; the parser checks the syntax and gives out the content."""

    def __init__(self) -> None:
        self._left = 0  # bytes of the chunk that are still to come, with its line end
        self._line = b""  # the start of a line whose end has not arrived
        self._in_trailer = False

    def end_in(self, data: bytes) -> int:
        """Return how many of the next bytes belong to the body: all of them, or up to its end."""
        place = 0
        while place < len(data):
            if self._left:
                step = min(self._left, len(data) - place)
                self._left -= step
                place += step
                continue
            end = data.find(b"\n", place) + 1
            if not end:
                self._line = (self._line + data[place:]).lstrip(b"0")[:_LINE_BYTES] or b"0"
                break
            line = (self._line + data[place:end]).strip()
            place, self._line = end, b""
            if self._in_trailer:
                if not line:
                    return place
                continue
            try:
                size = int(line.partition(b";")[0], 16)
            except ValueError:  # a size that the parser refuses
                break
            self._left, self._in_trailer = size + 2 if size else 0, size == 0
        return len(data)
