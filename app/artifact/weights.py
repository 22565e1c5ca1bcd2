"""The weights of an ONNX model, read from its bytes; serving needs no `onnx` package.

An ONNX model is a Protocol Buffers message. Only the fields that hold weights, or lead from a
layer's output to its weights, are read; all others are skipped by their length. Field numbers are
those of onnx.proto; https://protobuf.dev/programming-guides/encoding/ describes the encoding.
"""

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

_GRAPH = 7  # of a model
_NODES, _INITIALIZERS = 1, 5  # of a graph
_INPUTS, _OUTPUTS, _OPERATOR = 1, 2, 4  # of a node
_DIMENSIONS, _DATA_TYPE, _FLOATS, _NAME, _RAW = 1, 2, 4, 8, 9  # of a tensor
_EXTERNAL, _DATA_LOCATION = 13, 14  # likewise, of one whose values lie in another file
_KEY, _VALUE = 1, 2  # of an entry of `_EXTERNAL`
_DATA_TYPES: dict[int, np.dtype[np.floating]] = {1: np.dtype("<f4"), 10: np.dtype("<f2")}
_OPERATORS = ("Conv", "Gemm")  # whose second input is the weights

_MOST_FIELDS = 1 << 16
"""Of one message. The graph of EfficientNet-B0, with 81 convolutions, has 900."""
_MOST_DIMENSIONS = 8
_LONGEST_INTEGER = 10  # bytes

Message = dict[int, list[int | memoryview]]
"""The values of a message's fields by number: integers, and bytes as they are encoded."""


Read = Callable[[str], bytes]
"""Return the bytes of a file beside the model, by its name."""


class OnnxGraph:
    """The nodes and initializers of an ONNX model. It keeps the bytes of the files that hold it."""

    def __init__(self, model: bytes, read: Read) -> None:
        """Find the nodes and initializers.

        Args:
            model: an ONNX model. Some of its weights may lie in other files, as ONNX allows.
            read: called once a file, when weights in it are asked for.

        Raises:
            ValueError: the bytes are no ONNX model.
        """
        self._read = cache(read)
        self._producers: dict[str, tuple[str, list[str]]] = {}
        self._initializers: dict[str, memoryview] = {}
        for graph in _views(_parse(memoryview(model)), _GRAPH):
            message = _parse(graph)
            for initializer in _views(message, _INITIALIZERS):
                self._initializers[_text(_parse(initializer), _NAME)] = initializer
            for view in _views(message, _NODES):
                node = _parse(view)
                inputs = [str(name, "utf-8") for name in _views(node, _INPUTS)[:2]]
                self._producers[_text(node, _OUTPUTS)] = _text(node, _OPERATOR), inputs

    def weights_behind(self, tensor: str) -> NDArray[np.floating]:
        """Return the weights of the convolution or matrix product that gives a tensor.

        Nodes between the two are passed over by their first input: they cut the views of an image
        apart.

        Args:
            tensor: its name in the graph.

        Returns:
            float32 or float16 `[out,in,height,width]`, or `[out,in]` of a matrix product: a view of
            the bytes of a file.

        Raises:
            ValueError: there is no such tensor, it has no such weights, or their file does not
                hold them.
        """
        name = tensor
        for _ in self._producers:  # a path without a circle is no longer
            operator, inputs = self._producers.get(name, ("", []))
            if operator in _OPERATORS and len(inputs) == 2:
                return self._initializer(inputs[1])
            if not inputs:
                break
            name = inputs[0]
        raise ValueError(f"no weights lead to {tensor!r}")

    def _initializer(self, name: str) -> NDArray[np.floating]:
        operator, inputs = self._producers.get(name, ("", []))
        if operator == "Cast" and inputs:  # of float16 weights
            name = inputs[0]
        if name not in self._initializers:
            raise ValueError(f"no initializer {name!r}")
        try:
            return _array(_parse(self._initializers[name]), self._read)
        except ValueError as exc:
            raise ValueError(f"initializer {name!r}: {exc}") from exc


def inlined(model: bytes, read: Read, most_bytes: int) -> bytes:
    """Return a model that holds its weights itself.

    Args:
        model: as for `OnnxGraph`.
        read: likewise; called once a file.
        most_bytes: the limit of the model's size.

    Raises:
        ValueError: the bytes are no ONNX model, it is too large, or a file does not hold its
            weights.
    """
    parts = _inlined(memoryview(model), (_GRAPH, _INITIALIZERS), cache(read))
    size = sum(map(len, parts))
    if size > most_bytes:
        raise ValueError(f"with its weights it has {size} bytes; the limit is {most_bytes}")
    return b"".join(parts)


def _inlined(message: memoryview, path: tuple[int, ...], read: Read) -> list[bytes | memoryview]:
    """Return a message in parts; the tensors at the end of a path of fields hold their values."""
    if not path:
        return _with_values(message, read)
    parts: list[bytes | memoryview] = []
    for number, value, encoded in _fields(message):
        if number == path[0] and isinstance(value, memoryview):
            inner = _inlined(value, path[1:], read)
            parts += [_head(number, sum(map(len, inner))), *inner]
        else:
            parts.append(encoded)
    return parts


def _with_values(tensor: memoryview, read: Read) -> list[bytes | memoryview]:
    message = _parse(tensor)
    if _EXTERNAL not in message:
        return [tensor]
    values = _external(message, read)
    moved = (_EXTERNAL, _DATA_LOCATION)
    kept = [encoded for number, _, encoded in _fields(tensor) if number not in moved]
    return [*kept, _head(_RAW, len(values)), values]


def _external(tensor: Message, read: Read) -> memoryview:
    """Return a tensor's values in another file."""
    entries = [_parse(view) for view in _views(tensor, _EXTERNAL)]
    where = {_text(entry, _KEY): _text(entry, _VALUE) for entry in entries}
    location = where.get("location", "")
    data = memoryview(read(location))
    start, size = int(where.get("offset", 0)), int(where.get("length", len(data)))
    if not 0 <= start <= start + size <= len(data):
        raise ValueError(
            f"initializer {_text(tensor, _NAME)!r} has {size} bytes at byte {start} of "
            f"{location}, which holds {len(data)}"
        )
    return data[start : start + size]


def _head(number: int, size: int) -> bytes:
    """Return the bytes before the value of a field that has so many bytes."""
    encoded = bytearray()
    for integer in (number << 3 | 2, size):
        while integer > 127:
            encoded.append(integer & 127 | 128)
            integer >>= 7
        encoded.append(integer)
    return bytes(encoded)


def _array(tensor: Message, read: Read) -> NDArray[np.floating]:
    """Return a tensor's values, which stand in one of two fields or in another file."""
    codes, shape = _integers(tensor, _DATA_TYPE), _integers(tensor, _DIMENSIONS)
    if len(codes) != 1 or codes[0] not in _DATA_TYPES:
        raise ValueError(f"data type is {codes}; it must be 1 (float32) or 10 (float16)")
    values = [*_views(tensor, _RAW), *_views(tensor, _FLOATS)]
    if _EXTERNAL in tensor:
        values.append(_external(tensor, read))
    if len(values) != 1:
        raise ValueError(f"holds values in {len(values)} places; it must be one")
    try:
        return np.frombuffer(values[0], _DATA_TYPES[codes[0]]).reshape(shape)
    except (ValueError, OverflowError) as exc:
        raise ValueError(f"{len(values[0])} bytes do not fit the shape {shape}") from exc


def _integers(message: Message, number: int) -> list[int]:
    """Return the values of a field of integers, which stand alone or packed in one run of bytes."""
    found: list[int] = []
    for value in message.get(number, []):
        if isinstance(value, int):
            found.append(value)
            continue
        place = 0
        while place < len(value) and len(found) <= _MOST_DIMENSIONS:
            integer, place = _integer(value, place)
            found.append(integer)
    if len(found) > _MOST_DIMENSIONS:
        raise ValueError(f"more than {_MOST_DIMENSIONS} values in field {number}")
    return found


def _text(message: Message, number: int) -> str:
    """Return the first value of a field of text, or nothing."""
    return next((str(view, "utf-8") for view in _views(message, number)), "")


def _views(message: Message, number: int) -> list[memoryview]:
    return [value for value in message.get(number, []) if isinstance(value, memoryview)]


def _parse(data: memoryview) -> Message:
    """Return the fields of a message.

    Raises:
        ValueError: see `_fields`.
    """
    message: Message = {}
    for number, value, _ in _fields(data):
        message.setdefault(number, []).append(value)
    return message


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview, memoryview]]:
    """Yield each field of a message: its number, its value, and all its bytes.

    Raises:
        ValueError: the bytes are no message, or it has too many fields.
    """
    place = count = 0
    while place < len(data):
        count += 1
        if count > _MOST_FIELDS:
            raise ValueError(f"a message has more than {_MOST_FIELDS} fields")
        start = place
        key, place = _integer(data, place)
        value: int | memoryview
        match key & 7:
            case 0:
                value, place = _integer(data, place)
            case 1:
                value, place = data[place : place + 8], place + 8
            case 2:
                size, place = _integer(data, place)
                value, place = data[place : place + size], place + size
            case 5:
                value, place = data[place : place + 4], place + 4
            case kind:
                raise ValueError(f"wire type {kind} at byte {start} of a message")
        if place > len(data):
            raise ValueError(f"a message ends {place - len(data)} bytes too early")
        yield key >> 3, value, data[start:place]


def _integer(data: memoryview, place: int) -> tuple[int, int]:
    """Return the integer of variable length at a place, and the place after it."""
    integer = 0
    for index, byte in enumerate(data[place : place + _LONGEST_INTEGER]):
        integer |= (byte & 127) << (7 * index)
        if byte < 128:
            return integer, place + index + 1
    raise ValueError(f"no integer at byte {place} of a message")
