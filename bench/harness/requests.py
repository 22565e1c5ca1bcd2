"""HTTP/1.1 requests as bytes, whole or in pieces, for benchmarks and tests."""

import http.client
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Address = tuple[str, int]
"""Host and port."""

BOUNDARY = "convscope-boundary"
"""Between the parts of a form, unless another is named."""

_TIMEOUT = 60


def head(line: str, *headers: str, host: str = "localhost") -> bytes:
    """Return a request without its body.

    Args:
        line: method and target, such as `POST /predict`.
        headers: each as `Name: value`; Host is added in front.
        host: value of the Host header.
    """
    lines = [f"{line} HTTP/1.1", f"Host: {host}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def message(line: str, body: bytes, *headers: str, host: str = "localhost") -> bytes:
    """Return a whole request: `head` with a Content-Length, then the body."""
    return head(line, *headers, f"Content-Length: {len(body)}", host=host) + body


def part(disposition: str, data: bytes, *headers: str, boundary: str = BOUNDARY) -> bytes:
    """Return one part of a form.

    Args:
        disposition: parameters of Content-Disposition, such as `name="file"; filename="a.png"`.
        data: content of the part.
        headers: more headers of the part, each as `Name: value`.
        boundary: without the leading `--`.
    """
    lines = [f"--{boundary}", f"Content-Disposition: form-data; {disposition}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data + b"\r\n"


def end_of_form(boundary: str = BOUNDARY) -> bytes:
    """Return the closing boundary of a form."""
    return f"--{boundary}--\r\n".encode()


def form_type(boundary: str = BOUNDARY) -> str:
    """Return the Content-Type of a form."""
    return f"multipart/form-data; boundary={boundary}"


def media_type(data: bytes) -> str:
    """Return the media type of a PNG or JPEG file."""
    return "image/png" if data.startswith(b"\x89PNG") else "image/jpeg"


@dataclass(frozen=True)
class Request:
    """A POST, or a GET if there is no body."""

    path: str
    body: bytes = b""
    content_type: str = "application/octet-stream"
    headers: Mapping[str, str] = field(default_factory=dict)

    def raw(self, address: Address) -> bytes:
        """Return the request's bytes, with keep-alive."""
        host = f"{address[0]}:{address[1]}"
        headers = ["Accept: application/json", *(f"{k}: {v}" for k, v in self.headers.items())]
        if not self.body:
            return head(f"GET {self.path}", *headers, host=host)
        headers.append(f"Content-Type: {self.content_type}")
        return message(f"POST {self.path}", self.body, *headers, host=host)


def form(name: str, files: Sequence[bytes], path: str = "/predict") -> Request:
    """Return a form whose parts have the same name; each file is called by its number."""
    parts = [
        part(f'name="{name}"; filename="{number}"', data, f"Content-Type: {media_type(data)}")
        for number, data in enumerate(files)
    ]
    return Request(path, b"".join(parts) + end_of_form(), form_type())


def ask(address: Address, request: Request) -> tuple[int, bytes]:
    """Send one request on a connection of its own; return status and body.

    Raises:
        OSError: there was no answer.
    """
    connection = http.client.HTTPConnection(*address, timeout=_TIMEOUT)
    try:
        method = "POST" if request.body else "GET"
        headers = {"Content-Type": request.content_type} if request.body else {}
        connection.request(method, request.path, request.body or None, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except http.client.HTTPException as exc:
        raise OSError(f"no HTTP answer: {exc!r}") from exc
    finally:
        connection.close()
