"""The records of `manifest.json` and `evaluation.json`. Nothing here reads a file."""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from app.artifact.tensors import OOD_SCORE
from app.images.placement import CROP, Resize

BackendName = Literal["onnx-cpu", "torch-cpu", "torch-cuda"]
"""A runtime and the device that it computes on."""

Precision = Literal["float32", "int8"]
"""The numbers that a graph computes with."""

PRECISIONS: Mapping[BackendName, tuple[Precision, ...]] = {
    "onnx-cpu": ("float32", "int8"),
    "torch-cpu": ("float32",),
    "torch-cuda": ("float32",),
}
"""The precisions that each backend can compute in."""

WeightFormat = Literal["float32", "float16"]
"""How kernels and matrices are stored; they are computed with in float32."""

Task = Literal["classification", "detection", "segmentation"]
"""What a model's outputs mean."""

SetMethod = Literal["lac", "aps", "class-conditional"]
Views = Literal[1, 2, 6]

MAX_FILE_BYTES = 1 << 30

FEATURES = "features"
"""The graph's output before global average pooling, float32 `[N,C,h,w]`, if the network has it."""


def composed(label: str) -> str:
    """Return a class's name in NFC: letters with marks have several spellings that look the same.

    It takes time that grows with the square of the length.
    """
    return unicodedata.normalize("NFC", label)


def _check_distinct(labels: tuple[str, ...]) -> tuple[str, ...]:
    label, count = Counter(labels).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{label!r} stands there {count} times; once is allowed")
    return labels


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
ClassName = Annotated[str, AfterValidator(composed)]
Classes = Annotated[tuple[ClassName, ...], Field(min_length=2), AfterValidator(_check_distinct)]


class Frozen(BaseModel):
    """An immutable record that refuses fields it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorSpec(Frozen):
    """Name, element type and shape of a graph's input or output; `"N"` is the batch size."""

    name: str
    dtype: Literal["uint8", "float32", "int64"]
    shape: tuple[Literal["N"] | Annotated[int, Field(ge=1)], ...]


class FileRecord(Frozen):
    """Size in bytes and SHA-256 of one file of the artifact."""

    bytes: Annotated[int, Field(ge=0, le=MAX_FILE_BYTES)]
    sha256: Digest


class DataRecord(Frozen):
    """The training data: the data set, its hash and the sizes of its splits in images."""

    name: str
    sha256: Digest
    train: Annotated[int, Field(ge=1)]
    heldout: Annotated[int, Field(ge=0)]
    test: Annotated[int, Field(ge=1)]


class Int8Graph(Frozen):
    """The model's second ONNX graph, in int8, and the number of images that set its steps."""

    file: str
    calibration_images: Annotated[int, Field(ge=1)]
    golden_tolerance: Annotated[float, Field(gt=0, lt=1)]


class Int8Record(Int8Graph):
    """The int8 graph of a classifier, with its measured figures.

    Accuracies are fractions; cross-entropy is in nats; ECE has 15 bins. The test figures are of the
    served probabilities. Without a temperature of its own, the graph has that of float32.
    """

    temperature: Annotated[float, Field(gt=0)] | None = None
    heldout_accuracy_float32: float
    heldout_accuracy: float
    test_accuracy: float
    test_cross_entropy: float
    test_ece: float


class Coverage(Frozen):
    """The measured coverage of one kind of prediction sets on the test split.

    `wanted` is the coverage that was asked for, `found` the fraction of sets that held the true
    class. `classes` is the mean number of classes in a set, `empty` the fraction of empty sets.
    `worst_class` is as `found`, for the class whose images' sets hold it least often.
    """

    method: SetMethod
    wanted: float
    found: float
    classes: float
    empty: float
    worst_class: Annotated[float | None, Field(exclude_if=lambda part: part is None)] = None


Thresholds = Annotated[tuple[float, ...], Field(min_length=99, max_length=99)]
"""Of prediction sets: the first is for a coverage of 1%, the last for 99%."""


class Conformal(Frozen):
    """Thresholds of each method of prediction sets; `class_conditional` has them for each class."""

    lac: Thresholds
    aps: Thresholds
    class_conditional: Annotated[
        tuple[Thresholds, ...], Field(exclude_if=lambda classes: not classes)
    ] = ()
    measured: tuple[Coverage, ...]


class OutOfDistribution(Frozen):
    """The detection of foreign images, which show no class of the model: a score over a threshold.

    False alarms are fractions of the held-out and of the test images. `auroc` compares test images
    with each kind of foreign images (0.5 is chance); `detected` is the fraction of foreign images
    above the threshold.
    """

    threshold: float
    heldout_false_alarms: float
    test_false_alarms: float
    auroc: dict[str, float]
    detected: dict[str, float]


class Confidence(Frozen):
    """The thresholds of one of the model's graphs, fitted on held-out images."""

    heldout_images: Annotated[int, Field(ge=1)]
    conformal: Conformal
    out_of_distribution: OutOfDistribution


class Window(Frozen):
    """The window of a convolution or pooling; sides and steps are in pixels of its input.

    A convolution's channels are divided into `groups`: each group of outputs sees one group of
    inputs.
    """

    kernel: Annotated[int, Field(ge=1)]
    stride: Annotated[int, Field(ge=1)]
    padding: Annotated[int, Field(ge=0)] = 0
    groups: Annotated[int, Field(ge=1)] = 1


class LayerRecord(Frozen):
    """One layer of the network, as it works on one image.

    `source` is the layer whose output it takes, `pixels` for the normalised image. It is None if
    several outputs are joined before the layer; `addends` names them if they are added. `shape` is
    the output's shape without the batch: channels, height and width, or units. `receptive_field` is
    the side in pixels of the part of the image that one value depends on; None is the whole image.
    The first value's part begins `effective_padding` pixels outside the image, and each further
    part `effective_stride` pixels later.
    """

    name: str
    kind: str
    source: str | None
    addends: Annotated[tuple[str, ...], Field(exclude_if=lambda names: not names)] = ()
    shape: tuple[Annotated[int, Field(ge=1)], ...]
    parameters: int
    macs: int
    receptive_field: int | None
    effective_stride: int = 1
    effective_padding: int = 0
    window: Annotated[Window | None, Field(exclude_if=lambda window: window is None)] = None

    @property
    def is_convolution(self) -> bool:
        """Whether the layer has filters that move over its input."""
        return self.window is not None and self.parameters > 0


class TestFigures(Frozen):
    """Figures on the test split. Cross-entropy is in nats; ECE has 15 bins (Guo et al. 2017).

    `calibrated` figures have the fitted temperature, as the served probabilities do; `raw` ones do
    not.
    """

    accuracy: float
    cross_entropy_raw: float
    cross_entropy_calibrated: float
    ece_raw: float
    ece_calibrated: float


class Manifest(Frozen):
    """`manifest.json`: a model's tensors, files and training; each task's has more (below).

    `task` is what the outputs mean. `layers` are in the order in which they run; layers that only
    pass numbers on are left out. `weights` is the format in which kernels and matrices are stored.
    `lineage` has the hashes of the weights that training began with (`start`) and learned from
    (`teacher`); `training_seconds` includes the training of the former. `resize` makes pictures of
    other sizes as large as the input; a manifest without it means the centred part, by a bicubic
    filter.
    """

    schema_version: Literal[1]
    task: Task
    name: Name
    version: Version
    architecture: str
    classes: Annotated[tuple[ClassName, ...], Field(min_length=1), AfterValidator(_check_distinct)]
    input: TensorSpec
    resize: Annotated[Resize, Field(exclude_if=lambda resize: resize == CROP)] = CROP
    outputs: tuple[TensorSpec, ...]
    opset: int
    files: dict[FileName, FileRecord]
    recipe: dict[str, Any]
    seed: int
    lineage: Annotated[dict[str, Digest], Field(exclude_if=lambda lineage: not lineage)] = {}
    data: DataRecord
    libraries: dict[str, str]
    hardware: str
    training_seconds: float
    created: str
    git_commit: str
    parameters: int
    macs: int
    weights: Annotated[WeightFormat, Field(exclude_if=lambda weights: weights == "float32")] = (
        "float32"
    )
    layers: Annotated[tuple[LayerRecord, ...], Field(exclude_if=lambda layers: not layers)] = ()
    golden_tolerance: dict[str, Annotated[float, Field(gt=0, lt=1)]]
    int8: Annotated[Int8Graph | None, Field(exclude_if=lambda record: record is None)] = None

    @model_validator(mode="after")
    def _takes_images(self) -> Self:
        """Only the batch's size is open."""
        match self.input.shape:
            case ("N", int(), int(), 3) if self.input.dtype == "uint8":
                return self
            case shape:
                raise ValueError(
                    f"the input is {self.input.dtype} {shape}; it must be uint8 ('N', H, W, 3)"
                )

    @model_validator(mode="after")
    def _int8_file_is_listed(self) -> Self:
        if self.int8 is not None and self.int8.file not in self.files:
            raise ValueError(f"int8.file is {self.int8.file!r}, which files does not list")
        return self

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions in which the model can be served."""
        return ("float32",) if self.int8 is None else ("float32", "int8")

    def images_within(self, macs: int) -> int:
        """Return how many images take at most `macs` multiply-accumulates; at least one."""
        return max(1, macs // max(1, self.macs))

    @property
    def predicted(self) -> list[str]:
        """The names of the outputs that an answer is made of; a graph may have more."""
        return [output.name for output in self.outputs]

    @property
    def averages_features(self) -> bool:
        """Whether the last layer follows global average pooling of the last feature map."""
        return any(output.name == FEATURES for output in self.outputs)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the graph's input in pixels."""
        _, height, width, _ = self.input.shape
        return int(height), int(width)


class ClassifierManifest(Manifest):
    """Of a classifier: an image in, a probability for each class out.

    The graph's first two outputs are logits and probabilities. `views` is the number of views of an
    image that the graph averages (mirrored, shifted by a pixel); `macs` counts all of them.
    """

    task: Annotated[
        Literal["classification"], Field(exclude_if=lambda task: task == "classification")
    ] = "classification"
    classes: Classes
    outputs: Annotated[tuple[TensorSpec, ...], Field(min_length=2, max_length=4)]
    views: Annotated[Views, Field(exclude_if=lambda views: views == 1)] = 1
    test: TestFigures
    temperature: Annotated[float, Field(gt=0)]
    int8: Annotated[Int8Record | None, Field(exclude_if=lambda record: record is None)] = None
    confidence: Annotated[
        dict[Precision, Confidence], Field(exclude_if=lambda records: not records)
    ] = {}

    @model_validator(mode="after")
    def _tells_of_each_class(self) -> Self:
        expected = ("N", len(self.classes))
        for output in self.outputs[:2]:
            if (output.dtype, output.shape) != ("float32", expected):
                raise ValueError(
                    f"{output.name} is {output.dtype} {output.shape}; "
                    f"with {len(self.classes)} classes it must be float32 {expected}"
                )
        return self

    @model_validator(mode="after")
    def _every_class_has_thresholds(self) -> Self:
        for precision, confidence in self.confidence.items():
            found = len(confidence.conformal.class_conditional)
            if found not in {0, len(self.classes)}:
                raise ValueError(
                    f"confidence.{precision}.conformal.class_conditional has thresholds of {found} "
                    f"classes; there are {len(self.classes)}"
                )
        return self

    @property
    def predicted(self) -> list[str]:
        """Probabilities, then the score if there is one."""
        scores = [output.name for output in self.outputs[2:] if output.name == OOD_SCORE]
        return [self.outputs[1].name, *scores]


class ClassFigures(Frozen):
    """Precision, recall and F1 of one class on the test split, and how many images it has."""

    label: ClassName
    precision: float
    recall: float
    f1: float
    support: int


class Confusion(Frozen):
    """The number of test images of the class `true` that were predicted as `predicted`."""

    true: ClassName
    predicted: ClassName
    count: int


class Mistake(Frozen):
    """A test image, by its index in the test split, that was predicted wrongly."""

    index: int
    true: ClassName
    predicted: ClassName
    confidence: float


class Evaluation(Frozen):
    """`evaluation.json`: the figures measured on the test split.

    `confusion_matrix` holds counts `[classes][classes]`, rows true, columns predicted. `views` and
    `weights` are as in the manifest.
    """

    classes: Classes
    images: int
    views: Annotated[Views, Field(exclude_if=lambda views: views == 1)] = 1
    weights: Annotated[WeightFormat, Field(exclude_if=lambda weights: weights == "float32")] = (
        "float32"
    )
    temperature: float
    test: TestFigures
    confusion_matrix: tuple[tuple[Annotated[int, Field(ge=0)], ...], ...]
    per_class: tuple[ClassFigures, ...]
    top_confusions: tuple[Confusion, ...]
    confident_mistakes: tuple[Mistake, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the rows and columns of the confusion matrix."""
        return self.classes

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        classes = len(self.classes)
        if [len(row) for row in self.confusion_matrix] != [classes] * classes:
            raise ValueError(f"the confusion matrix is not {classes}x{classes}, as classes are")
        if tuple(figures.label for figures in self.per_class) != self.classes:
            raise ValueError("per_class does not have the classes in their order")
        return self
