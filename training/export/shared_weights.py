"""ONNX graphs whose weights lie in the TorchScript file beside them, so that both store them once.

A TorchScript file is a zip archive that holds each tensor uncompressed; ONNX allows a tensor's
values to be a range of bytes of another file in the same folder ("external data").
"""

import hashlib
import io
import struct
import zipfile

import onnx
from onnx import TensorProto

LEAST_BYTES = 1024  # of a tensor; smaller ones stay in the graph

_HEADER = struct.Struct("<26xHH")
"""Of a zip archive's member: the lengths of its name and of the extra field, which follow."""


def share_weights(graph: bytes, file_name: str, script: bytes) -> bytes:
    """Return an ONNX graph that refers to a TorchScript file for the weights that both hold.

    Args:
        graph: an ONNX model.
        file_name: the TorchScript file's, beside the graph.
        script: its bytes.
    """
    places = _places(script)
    model = onnx.load_from_string(graph)
    for tensor in model.graph.initializer:
        place = places.get(hashlib.sha256(tensor.raw_data).digest())
        if place is None:
            continue
        values = {"location": file_name, "offset": place, "length": len(tensor.raw_data)}
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in values.items():
            tensor.external_data.add(key=key, value=str(value))
    return bytes(model.SerializeToString())


def _places(script: bytes) -> dict[bytes, int]:
    """Return where each tensor's bytes begin in the file, by their SHA-256."""
    places: dict[bytes, int] = {}
    with zipfile.ZipFile(io.BytesIO(script)) as archive:
        for member in archive.infolist():
            if member.compress_type == zipfile.ZIP_STORED and member.file_size >= LEAST_BYTES:
                start = member.header_offset
                place = start + _HEADER.size + sum(_HEADER.unpack_from(script, start))
                values = script[place : place + member.file_size]
                places[hashlib.sha256(values).digest()] = place
    return places
