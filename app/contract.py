"""The artifact contract: what a model directory holds, and the proof that it is sound.

An artifact is `<store>/<name>/<version>/` with a `manifest.json` that lists every other file with
its size and SHA-256. `training.export` writes artifacts; the service reads them. Nothing here
loads a graph: bytes come out of `Artifact.read`, which has checked their hash, and a backend's
answers go into `check_golden`.

This module does not know onnxruntime, torch or HTTP, and unpickles nothing.
"""

import hashlib
import io
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from app.errors import ArtifactError

Images = NDArray[np.uint8]
"""A batch of images, uint8 `[N,H,W,3]`, RGB."""

Probabilities = NDArray[np.float32]
"""Class probabilities, float32 `[N,classes]`; each row sums to one."""

MANIFEST = "manifest.json"
ONNX_GRAPH = "model.onnx"
TORCHSCRIPT_GRAPH = "model.ts"
GOLDEN = "golden.npz"
FILTERS = "filters.npz"
EVALUATION = "evaluation.json"
HISTORY = "history.json"

MAX_MANIFEST_BYTES = 1 << 20
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


class Frozen(BaseModel):
    """An immutable record that refuses fields it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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


class TestFigures(Frozen):
    """Figures on the test split. Cross-entropy is in nats; ECE has 15 bins (Guo et al. 2017).

    `calibrated` is with the fitted temperature, as the served probabilities are; `raw` is without.
    """

    accuracy: float
    cross_entropy_raw: float
    cross_entropy_calibrated: float
    ece_raw: float
    ece_calibrated: float


class Manifest(Frozen):
    """Everything that a server or a reader must know of a model before using it."""

    schema_version: Literal[1]
    name: Name
    version: Version
    architecture: str
    classes: tuple[str, ...] = Field(min_length=2)
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
    test: TestFigures
    temperature: Annotated[float, Field(gt=0)]
    golden_tolerance: dict[str, Annotated[float, Field(gt=0, lt=1)]]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images that the graph takes."""
        _, height, width, _ = self.input.shape
        return int(height), int(width)


class ClassFigures(Frozen):
    """Precision, recall and F1 of one class on the test split, and how many images it has."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


class Confusion(Frozen):
    """How many test images of the class `true` were predicted as `predicted`."""

    true: str
    predicted: str
    count: int


class Mistake(Frozen):
    """A test image, by its index in the test split, that was predicted wrongly."""

    index: int
    true: str
    predicted: str
    confidence: float


class Evaluation(Frozen):
    """`evaluation.json`: the figures measured on the test split.

    `confusion_matrix` is `[classes][classes]` counts, rows true, columns predicted.
    """

    classes: tuple[str, ...]
    images: int
    temperature: float
    test: TestFigures
    confusion_matrix: tuple[tuple[int, ...], ...]
    per_class: tuple[ClassFigures, ...]
    top_confusions: tuple[Confusion, ...]
    confident_mistakes: tuple[Mistake, ...]


@dataclass(frozen=True)
class Artifact:
    """A model directory whose manifest has been read and agrees with the directory's place."""

    path: Path
    manifest: Manifest

    def read(self, file_name: str) -> bytes:
        """Return a listed file's bytes, after their size and SHA-256 have been checked.

        Raises:
            ArtifactError: the file is not listed, is missing, or differs from its record.
        """
        path = self.path / file_name
        record = self.manifest.files.get(file_name)
        if record is None:
            raise ArtifactError(f"{path}: not listed in {MANIFEST}")
        data = _read_file(path, record.bytes)
        if len(data) != record.bytes:
            raise ArtifactError(f"{path}: holds {len(data)} bytes; {MANIFEST} says {record.bytes}")
        found = hashlib.sha256(data).hexdigest()
        if found != record.sha256:
            raise ArtifactError(f"{path}: sha256 is {found}; {MANIFEST} says {record.sha256}")
        return data

    def verify(self) -> None:
        """Check every file against its record, and that each that a server needs is listed.

        Raises:
            ArtifactError: naming the first file that differs.
        """
        for file_name in (ONNX_GRAPH, TORCHSCRIPT_GRAPH, GOLDEN, FILTERS, EVALUATION):
            if file_name not in self.manifest.files:
                raise ArtifactError(f"{self.path / file_name}: not listed in {MANIFEST}")
        for file_name in self.manifest.files:
            self.read(file_name)

    def arrays(self, file_name: str) -> dict[str, NDArray[Any]]:
        """Return the named arrays of a listed `.npz` file, in the file's order; never unpickles.

        Raises:
            ArtifactError: the file differs from its record or holds no plain arrays.
        """
        data = self.read(file_name)
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}
        except (ValueError, OSError, zipfile.BadZipFile) as exc:
            raise ArtifactError(f"{self.path / file_name}: not an archive of plain arrays") from exc

    def evaluation(self) -> Evaluation:
        """Return the figures measured on the test split.

        Raises:
            ArtifactError: the file differs from its record or from the schema.
        """
        data = self.read(EVALUATION)
        try:
            return Evaluation.model_validate_json(data)
        except ValidationError as exc:
            raise ArtifactError(f"{self.path / EVALUATION}: {_first_error(exc)}") from exc

    def check_golden(self, backend: str, predict: Callable[[Images], Probabilities]) -> float:
        """Compare a backend's probabilities for the golden images with those seen at export.

        Args:
            backend: the backend's name in the manifest's `golden_tolerance`.
            predict: uint8 `[N,H,W,3]` to float32 probabilities `[N,classes]`.

        Returns:
            The largest absolute difference.

        Raises:
            ArtifactError: the difference is over the tolerance, or the answer has another shape.
        """
        path = self.path / GOLDEN
        tolerance = self.manifest.golden_tolerance.get(backend)
        if tolerance is None:
            raise ArtifactError(f"{self.path / MANIFEST}: no golden tolerance for {backend}")
        golden = self.arrays(GOLDEN)
        if not {"images", "probabilities"} <= golden.keys():
            raise ArtifactError(f"{path}: holds no arrays `images` and `probabilities`")
        expected = golden["probabilities"]
        found = predict(golden["images"])
        if found.shape != expected.shape:
            raise ArtifactError(
                f"{path}: {backend} answers with shape {found.shape}, expected {expected.shape}"
            )
        difference = float(np.max(np.abs(found.astype(np.float64) - expected)))
        if not difference <= tolerance:
            raise ArtifactError(
                f"{path}: {backend} differs from the golden probabilities by {difference:.3g}; "
                f"the tolerance is {tolerance:.3g}"
            )
        return difference


def read_artifact(path: Path) -> Artifact:
    """Read the manifest in the directory `<store>/<name>/<version>`.

    Raises:
        ArtifactError: there is none, it does not follow the schema, or it names another model.
    """
    manifest_path = path / MANIFEST
    data = _read_file(manifest_path, MAX_MANIFEST_BYTES)
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as exc:
        raise ArtifactError(f"{manifest_path}: {_first_error(exc)}") from exc
    place = (path.parent.name, path.name)
    if (manifest.name, manifest.version) != place:
        raise ArtifactError(
            f"{manifest_path}: says {manifest.name}/{manifest.version}; "
            f"the directory is {'/'.join(place)}"
        )
    return Artifact(path, manifest)


def record_file(path: Path) -> FileRecord:
    """Return the record of a file as it is on disk."""
    data = path.read_bytes()
    return FileRecord(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _read_file(path: Path, limit: int) -> bytes:
    """Read at most one byte more than `limit`: enough to tell that a file is too long."""
    try:
        if not path.is_file():
            raise ArtifactError(f"{path}: no such file")
        with path.open("rb") as file:
            return file.read(limit + 1)
    except OSError as exc:
        raise ArtifactError(f"{path}: {exc.strerror}") from exc


def _first_error(exc: ValidationError) -> str:
    error = exc.errors(include_url=False)[0]
    where = ".".join(str(part) for part in error["loc"])
    return f"{where}: {error['msg']}" if where else error["msg"]
