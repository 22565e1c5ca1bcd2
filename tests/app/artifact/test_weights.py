import random
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from app.artifact.weights import OnnxGraph, inlined

KERNELS = np.random.default_rng(0).normal(size=(8, 3, 5, 5)).astype(np.float32)
CONVOLUTION = helper.make_node("Conv", ["image", "weight"], ["output"])
LIMIT = 1 << 20
MODEL_TS = b"".join([b"before", KERNELS.tobytes(), KERNELS[0].tobytes(), b"after"])


def _message(number: int, content: bytes) -> bytes:
    """Return a field of bytes as Protocol Buffers encode it."""
    size = bytearray()
    left = len(content)
    while left > 127:
        size.append(left & 127 | 128)
        left >>= 7
    return bytes([number << 3 | 2, *size, left]) + content


def _model(*tensors: TensorProto, nodes: tuple[onnx.NodeProto, ...] = (CONVOLUTION,)) -> bytes:
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "graph", [], [output], tensors, doc_string="a graph")
    return bytes(helper.make_model(graph, producer_name="a test").SerializeToString())


def _file(_: str) -> bytes:
    return MODEL_TS


def _weights(model: bytes) -> NDArray[Any]:
    return OnnxGraph(model, _file).weights_behind("output")


def _tensor(values: NDArray[Any] = KERNELS, name: str = "weight") -> TensorProto:
    return numpy_helper.from_array(values, name)


def _moved(**where: Any) -> TensorProto:
    """Return a tensor whose values lie elsewhere."""
    tensor = _tensor()
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in where.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


@pytest.mark.parametrize(
    "kernels",
    [KERNELS, KERNELS.astype(np.float16), KERNELS[:, :1], KERNELS.reshape(8, 75)],
    ids=["float32", "float16", "grouped", "matrix"],
)
def test_weights_are_read_as_they_were_written(kernels: NDArray[Any]) -> None:
    found = _weights(_model(_tensor(kernels)))
    assert (found.dtype, found.shape) == (kernels.dtype, kernels.shape)
    np.testing.assert_array_equal(found, kernels)


def test_values_may_be_a_list_of_numbers() -> None:
    tensor = helper.make_tensor("weight", TensorProto.FLOAT, KERNELS.shape, KERNELS.ravel())
    assert not tensor.raw_data
    np.testing.assert_array_equal(_weights(_model(tensor)), KERNELS)


def test_numbers_of_a_shape_may_be_packed() -> None:
    alone, packed = b"\x08\x08\x08\x03\x08\x05\x08\x05", b"\x0a\x04\x08\x03\x05\x05"
    tensor = _tensor().SerializeToString()
    assert tensor.startswith(alone)
    graph = _message(5, packed + tensor[len(alone) :]) + _message(
        1, CONVOLUTION.SerializeToString()
    )
    found = _weights(_message(7, graph))
    np.testing.assert_array_equal(found, KERNELS)


def test_graph_in_two_pieces_is_one() -> None:
    found = _weights(_model(_tensor()) + _model(nodes=()))
    np.testing.assert_array_equal(found, KERNELS)


def test_weights_are_found_through_a_cast_and_behind_nodes_that_cut_the_output() -> None:
    nodes = (
        helper.make_node("Cast", ["weight_float16"], ["weight"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["image", "weight", "bias"], ["views"]),
        helper.make_node("Slice", ["views", "starts", "ends"], ["first"]),
        helper.make_node("Identity", ["first"], ["output"]),
    )
    narrow = KERNELS.astype(np.float16)
    model = _model(_tensor(narrow, "weight_float16"), nodes=nodes)
    np.testing.assert_array_equal(_weights(model), narrow)


CIRCLE = (
    helper.make_node("Identity", ["there"], ["output"]),
    helper.make_node("Identity", ["output"], ["there"]),
)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_model(), "no initializer 'weight'"),
        (_model(_tensor(), nodes=()), "no weights lead to 'output'"),
        (_model(_tensor(), nodes=CIRCLE), "no weights lead to 'output'"),
        (_model(nodes=(helper.make_node("Conv", [], ["output"]),)), "no weights lead to 'output'"),
        (_model(_tensor(KERNELS.astype(np.float64))), r"data type is \[11\]; it must be 1"),
        (_model(TensorProto(name="weight")), r"data type is \[\]"),
        (_model(TensorProto(name="weight", data_type=1)), "'weight': holds values in 0 places"),
        (_model(_moved(location="model.ts", offset=5000)), "which holds 2711"),
        (_model(_moved(location="model.ts")), "2711 bytes do not fit"),
        (
            _model(TensorProto(name="weight", data_type=1, dims=[2, 3], raw_data=bytes(20))),
            r"20 bytes do not fit the shape \[2, 3\]",
        ),
        (
            _model(TensorProto(name="weight", data_type=1, dims=[-1, 5], raw_data=bytes(20))),
            r"20 bytes do not fit the shape \[18446744073709551615, 5\]",
        ),
        (
            _model(TensorProto(name="weight", data_type=1, dims=[1] * 9, raw_data=bytes(4))),
            "more than 8 values in field 1",
        ),
    ],
)
def test_weights_that_cannot_be_read_are_named(model: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _weights(model)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (b"\x3a", "no integer at byte 1"),
        (b"\x3a\x05\x0a", "ends 4 bytes too early"),
        (b"\x3a" + b"\xff" * 9 + b"\x01", "bytes too early"),
        (b"\xff" * 11, "no integer at byte 0"),
        (b"\x3b", "wire type 3 at byte 0"),
        (b"\x39\0\0", "ends 6 bytes too early"),
        (_message(7, _message(5, _message(8, b"\xff"))), "can't decode"),
        (_message(7, b"\x08\x00" * 65537), "more than 65536 fields"),
    ],
)
def test_bytes_that_are_no_model_are_refused(model: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OnnxGraph(model, _file)


def test_no_damage_ends_in_another_error() -> None:
    sound = _model(_tensor(KERNELS[:1, :, :1, :1]), _moved(location="a", offset=3, length=5))
    generator = random.Random(0)
    for _ in range(1000):
        damaged = bytearray(sound)
        for _ in range(generator.randint(1, 3)):
            damaged[generator.randrange(len(sound))] = generator.randrange(256)
        cut = bytes(damaged[: generator.choice([len(sound), generator.randrange(len(sound))])])
        for attempt in (
            _weights,
            lambda model: inlined(model, lambda name: name.encode() * 9, LIMIT),
        ):
            try:
                attempt(cut)
            except ValueError:
                continue


def test_model_gets_its_weights_from_another_file() -> None:
    sound = _model(_tensor(), _tensor(KERNELS[0], "bias"))
    asked: list[str] = []

    def read(name: str) -> bytes:
        asked.append(name)
        return MODEL_TS

    bias = _moved(location="model.ts", offset=6 + KERNELS.nbytes, length=KERNELS[0].nbytes)
    bias.name = "bias"
    del bias.dims[0]
    moved = _moved(location="model.ts", offset=6, length=KERNELS.nbytes)
    model = _model(moved, bias)
    assert len(model) < 500
    assert inlined(model, read, LIMIT) == sound
    assert asked == ["model.ts"]


def test_weights_in_another_file_are_read_there() -> None:
    moved = _moved(location="model.ts", offset=6, length=KERNELS.nbytes)
    np.testing.assert_array_equal(_weights(_model(moved)), KERNELS)


def test_model_that_holds_its_weights_stays_as_it_is() -> None:
    sound = _model(_tensor())
    assert inlined(sound, lambda _: b"", LIMIT) == sound


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"offset": 5, "length": 6}, "'weight' has 6 bytes at byte 5 of a, which holds 10"),
        ({"offset": 11}, "at byte 11 of a"),
        ({"offset": -1, "length": 1}, "at byte -1"),
        ({"length": -1}, "has -1 bytes"),
        ({"length": "many"}, "invalid literal"),
        ({"length": "9" * 5000}, "Exceeds the limit"),
    ],
)
def test_weights_outside_of_their_file_are_refused(where: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inlined(_model(_moved(location="a", **where)), lambda _: bytes(10), LIMIT)


def test_model_that_becomes_too_large_is_refused() -> None:
    tensors = [_moved(location="a") for _ in range(100)]
    with pytest.raises(ValueError, match=r"it has 100\d{5} bytes; the limit is 1048576"):
        inlined(_model(*tensors), lambda _: bytes(100_000), LIMIT)
