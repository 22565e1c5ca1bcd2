"""The part of the artifact contract that says what a model is: `manifest.json`.

Who needs these records imports them from `contract`. Nothing here reads a file.
"""

import re
from pathlib import PurePath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from app.evaluation import Classes, Frozen, TestFigures, Views, Weights

Precision = Literal["float32", "int8"]

MAX_FILE_BYTES = 1 << 30


def _check_name(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", value):
        raise ValueError(
            f"{value!r} is not a name: 1 to 64 of a-z, 0-9, '.', '_', '-', not starting with a mark"
        )
    return value


def _check_file_name(value: str) -> str:
    if value in {"", ".", ".."} or PurePath(value).name != value or "\\" in value:
        raise ValueError(f"{value!r} is not a plain file name")
    return value


Name = Annotated[str, AfterValidator(_check_name)]
FileName = Annotated[str, AfterValidator(_check_file_name)]
Version = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class TensorSpec(Frozen):
    """Name, element type and shape of a graph's input or output; `"N"` is the batch size."""

    name: str
    dtype: Literal["uint8", "float32"]
    shape: tuple[Literal["N"] | Annotated[int, Field(ge=1)], ...]


class FileRecord(Frozen):
    """Size in bytes and SHA-256 of one file of the artifact."""

    bytes: Annotated[int, Field(ge=0, le=MAX_FILE_BYTES)]
    sha256: Digest


class DataRecord(Frozen):
    """What a model was trained on: the data set, its hash and the sizes of its splits in images."""

    name: str
    sha256: Digest
    train: Annotated[int, Field(ge=1)]
    heldout: Annotated[int, Field(ge=0)]
    test: Annotated[int, Field(ge=1)]


class Int8Record(Frozen):
    """The model's second ONNX graph, in int8: how it was made and what was measured with it.

    Accuracies are parts of one; cross-entropy is in nats; ECE has 15 bins. The test figures are of
    the probabilities as they are served, with the temperature that was fitted for float32.
    """

    file: str
    calibration_images: Annotated[int, Field(ge=1)]
    heldout_accuracy_float32: float
    heldout_accuracy: float
    test_accuracy: float
    test_cross_entropy: float
    test_ece: float
    golden_tolerance: Annotated[float, Field(gt=0, lt=1)]


class Manifest(Frozen):
    """Everything that a server or a reader must know of a model before using it.

    `views` is how many views of an image the graph averages (mirrored, moved by a pixel); `macs`
    counts them all. `weights` is what its kernels and matrices are stored as; they are computed
    with in float32.
    """

    schema_version: Literal[1]
    name: Name
    version: Version
    architecture: str
    classes: Classes
    input: TensorSpec
    outputs: tuple[TensorSpec, TensorSpec]
    opset: int
    files: dict[FileName, FileRecord]
    recipe: dict[str, Any]
    seed: int
    data: DataRecord
    libraries: dict[str, str]
    hardware: str
    training_seconds: float
    created: str
    git_commit: str
    parameters: int
    macs: int
    views: Annotated[Views, Field(exclude_if=lambda views: views == 1)] = 1
    weights: Annotated[Weights, Field(exclude_if=lambda weights: weights == "float32")] = "float32"
    test: TestFigures
    temperature: Annotated[float, Field(gt=0)]
    golden_tolerance: dict[str, Annotated[float, Field(gt=0, lt=1)]]
    int8: Annotated[Int8Record | None, Field(exclude_if=lambda record: record is None)] = None

    @model_validator(mode="after")
    def _tensors_fit(self) -> Self:
        """Images in, and a number for each class out; only the batch's size is open."""
        match self.input.shape:
            case ("N", int(), int(), 3) if self.input.dtype == "uint8":
                pass
            case shape:
                raise ValueError(
                    f"the input is {self.input.dtype} {shape}; it must be uint8 ('N', H, W, 3)"
                )
        expected = ("N", len(self.classes))
        for output in self.outputs:
            if (output.dtype, output.shape) != ("float32", expected):
                raise ValueError(
                    f"{output.name} is {output.dtype} {output.shape}; "
                    f"with {len(self.classes)} classes it must be float32 {expected}"
                )
        return self

    @model_validator(mode="after")
    def _int8_file_is_listed(self) -> Self:
        if self.int8 is not None and self.int8.file not in self.files:
            raise ValueError(f"int8.file is {self.int8.file!r}, which files does not list")
        return self

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """What the model can be served in."""
        return ("float32",) if self.int8 is None else ("float32", "int8")

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images that the graph takes."""
        _, height, width, _ = self.input.shape
        return int(height), int(width)
