"""A model directory: its manifest, and its files, which are read only as the manifest lists them.

An artifact is `<store>/<name>/<version>/` with a `manifest.json` that lists every other file with
its size and SHA-256. `training.export` writes artifacts; the service reads them. `Artifact.read`
checks a file's hash before it returns the bytes. Nothing here loads a graph or unpickles anything.
"""

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from app.artifact.detection import DetectionEvaluation, DetectorManifest
from app.artifact.files import (
    EVALUATION,
    FILTERS,
    GOLDEN,
    LAYER_OUTPUT,
    MANIFEST,
    ONNX_GRAPH,
    TORCHSCRIPT_GRAPH,
)
from app.artifact.manifest import (
    MAX_FILE_BYTES,
    ClassifierManifest,
    Evaluation,
    FileRecord,
    LayerRecord,
    Manifest,
    Precision,
    Task,
)
from app.artifact.segmentation import SegmentationEvaluation, SegmenterManifest
from app.artifact.weights import OnnxGraph, inlined
from app.errors import ArtifactError, WrongTask

MAX_MANIFEST_BYTES = 1 << 20
MAX_ARRAY_BYTES = 1 << 28  # of one file, unpacked

_MANIFESTS: Mapping[Task, type[Manifest]] = {
    "classification": ClassifierManifest,
    "detection": DetectorManifest,
    "segmentation": SegmenterManifest,
}
AnyEvaluation = Evaluation | DetectionEvaluation | SegmentationEvaluation
"""The figures of a model of any task."""

_EVALUATIONS: Mapping[Task, type[AnyEvaluation]] = {
    "classification": Evaluation,
    "detection": DetectionEvaluation,
    "segmentation": SegmentationEvaluation,
}


M = TypeVar("M", bound=Manifest)


class _TaskOnly(BaseModel):
    task: Task = "classification"


@dataclass(frozen=True, eq=False)
class Artifact:
    """A model directory whose manifest has been read and agrees with the directory's path.

    Artifacts are compared by identity, so that a cache of their files can use them as keys.
    """

    path: Path
    manifest: Manifest

    @property
    def ref(self) -> str:
        """The model's name and version as `name/version`, unique in a store."""
        return f"{self.manifest.name}/{self.manifest.version}"

    @property
    def classifier(self) -> ClassifierManifest:
        """The manifest of a classifier; WrongTask is raised for any other model."""
        return self._manifest_of(ClassifierManifest, "classify")

    @property
    def detector(self) -> DetectorManifest:
        """The manifest of a detector; WrongTask is raised for any other model."""
        return self._manifest_of(DetectorManifest, "detect objects")

    @property
    def segmenter(self) -> SegmenterManifest:
        """The manifest of a segmenter; WrongTask is raised for any other model."""
        return self._manifest_of(SegmenterManifest, "segment pictures")

    def _manifest_of(self, kind: type[M], verb: str) -> M:
        if not isinstance(self.manifest, kind):
            raise WrongTask(f"{self.ref} does not {verb}; its task is {self.manifest.task}")
        return self.manifest

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

    def read_graph(self, file_name: str) -> bytes:
        """Return an ONNX graph that holds all of its weights, also those of other files.

        Raises:
            ArtifactError: a file differs from its record or is not listed, or the graph is damaged.
        """
        try:
            return inlined(self.read(file_name), self.read, MAX_FILE_BYTES)
        except ValueError as exc:
            raise ArtifactError(f"{self.path / file_name}: does not load: {exc}") from exc

    def verify(self) -> None:
        """Check every file against its record, and the shown files against their schema.

        Whether the graphs give the golden answers is for `check_golden` to prove.

        Raises:
            ArtifactError: names the first file that is missing, differs or makes no sense.
        """
        for file_name in (ONNX_GRAPH, TORCHSCRIPT_GRAPH, GOLDEN, EVALUATION):
            if file_name not in self.manifest.files:
                raise ArtifactError(f"{self.path / file_name}: not listed in {MANIFEST}")
        for file_name in self.manifest.files:
            self.read(file_name)
        self.filters()
        self.any_evaluation()

    def arrays(self, file_name: str) -> dict[str, NDArray[Any]]:
        """Return the arrays of a listed `.npz` file by name, in the file's order.

        Nothing is unpickled.

        Raises:
            ArtifactError: the file differs from its record or holds no plain arrays.
        """
        data = self.read(file_name)
        try:
            return _unpack(data)
        except Exception as exc:  # zipfile, zlib and numpy raise many kinds for hostile bytes
            reason = str(exc).partition("\n")[0]
            raise ArtifactError(
                f"{self.path / file_name}: not an archive of plain arrays: {reason}"
            ) from exc

    def filters(self) -> dict[str, NDArray[np.float32]]:
        """Return the weights to look at by layer, float32 `[filters,channels,height,width]`.

        They are the kernels of every convolution; of a fully connected first layer, a picture of
        the input's size for each unit. Older artifacts have a file of them; of others they are
        read out of the ONNX graph.

        Raises:
            ArtifactError: a file differs from its record or holds anything else.
        """
        kept = FILTERS in self.manifest.files
        layers = self.arrays(FILTERS) if kept else self._weights_in_graph()
        path = self.path / (FILTERS if kept else ONNX_GRAPH)
        for layer, weights in layers.items():
            if (
                weights.dtype not in (np.float32, np.float16)
                or weights.ndim != 4
                or not weights.size
            ):
                raise ArtifactError(
                    f"{path}: {layer!r} is {weights.dtype} {weights.shape}; "
                    "it must be float32 or float16 of four dimensions"
                )
        size = 4 * sum(weights.size for weights in layers.values())
        if size > MAX_ARRAY_BYTES:
            raise ArtifactError(
                f"{path}: the weights to look at have {size} bytes; the limit is {MAX_ARRAY_BYTES}"
            )
        return {layer: weights.astype(np.float32, order="C") for layer, weights in layers.items()}

    def _weights_in_graph(self) -> dict[str, NDArray[Any]]:
        looked_at = [layer for layer in self.manifest.layers if layer.is_convolution]
        if self.manifest.layers and len(self.manifest.layers[0].shape) == 1:
            looked_at.insert(0, self.manifest.layers[0])
        if not looked_at:
            return {}
        model = self.read(ONNX_GRAPH)
        try:
            graph = OnnxGraph(model, self.read)
            return {layer.name: self._weights_of(layer, graph) for layer in looked_at}
        except ValueError as exc:
            raise ArtifactError(f"{self.path / ONNX_GRAPH}: {exc}") from exc

    def _weights_of(self, layer: LayerRecord, graph: OnnxGraph) -> NDArray[Any]:
        weights = graph.weights_behind(LAYER_OUTPUT.format(layer.name))
        if weights.shape[:1] != layer.shape[:1]:
            raise ValueError(
                f"{layer.name!r} has weights {weights.shape}; {MANIFEST} says {layer.shape[:1]}"
            )
        if weights.ndim == 2:
            return weights.reshape(-1, 3, *self.manifest.image_size)
        return weights

    def evaluation(self) -> Evaluation:
        """Return the figures of a classifier on the test split.

        Raises:
            ArtifactError: the file differs from its record, the schema or the manifest's classes.
            WrongTask: the model does not classify.
        """
        evaluation = self.any_evaluation()
        if not isinstance(evaluation, Evaluation):
            raise WrongTask(f"{self.ref} does not classify; its task is {self.manifest.task}")
        return evaluation

    def any_evaluation(self) -> AnyEvaluation:
        """Return the figures measured on the test split, as the model's task has them.

        Raises:
            ArtifactError: the file differs from its record, the schema or the manifest's classes.
        """
        data = self.read(EVALUATION)
        try:
            evaluation = _EVALUATIONS[self.manifest.task].model_validate_json(data)
        except ValidationError as exc:
            raise ArtifactError(f"{self.path / EVALUATION}: {first_error(exc)}") from exc
        if evaluation.classes != self.manifest.classes:
            raise ArtifactError(f"{self.path / EVALUATION}: has other classes than {MANIFEST}")
        return evaluation

    def onnx_graph(self, precision: Precision) -> str:
        """Return the name of the file that holds the ONNX graph of a precision.

        Raises:
            ArtifactError: the model was exported without it.
        """
        if precision == "float32":
            return ONNX_GRAPH
        if self.manifest.int8 is None:
            raise ArtifactError(
                f"{self.path}: holds no int8 graph, which CONVSCOPE_PRECISION=int8 asks for; "
                "`convscope-train export --int8` makes one, CONVSCOPE_MODELS can leave it out"
            )
        return self.manifest.int8.file


@lru_cache(maxsize=4)
def recent_arrays(artifact: Artifact, file_name: str) -> dict[str, NDArray[Any]]:
    """Return `Artifact.arrays` from a cache of the last few files. Do not change the arrays."""
    return artifact.arrays(file_name)


@lru_cache(maxsize=2)
def recent_filters(artifact: Artifact) -> dict[str, NDArray[np.float32]]:
    """Return `Artifact.filters` from a cache of the last models. Do not change the arrays."""
    return artifact.filters()


def read_artifact(path: Path) -> Artifact:
    """Read the manifest in the directory `<store>/<name>/<version>`.

    Raises:
        ArtifactError: there is none, it does not follow the schema, or it names another model.
    """
    manifest_path = path / MANIFEST
    data = _read_file(manifest_path, MAX_MANIFEST_BYTES)
    try:
        manifest = parse_manifest(data)
    except ValidationError as exc:
        raise ArtifactError(f"{manifest_path}: {first_error(exc)}") from exc
    artifact = Artifact(path, manifest)
    place = f"{path.parent.name}/{path.name}"
    if artifact.ref != place:
        raise ArtifactError(f"{manifest_path}: says {artifact.ref}; the directory is {place}")
    return artifact


def parse_manifest(data: bytes) -> Manifest:
    """Return the manifest of a model of any task; one that names none is a classifier's.

    Raises:
        ValidationError: the data do not follow the task's schema.
    """
    task = _TaskOnly.model_validate_json(data).task
    return _MANIFESTS[task].model_validate_json(data)


def rewritten(artifact: Artifact) -> Artifact:
    """Write an unfinished artifact's manifest into its directory; return the artifact."""
    (artifact.path / MANIFEST).write_text(
        artifact.manifest.model_dump_json(indent=1), encoding="utf-8"
    )
    return artifact


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


def _unpack(data: bytes) -> dict[str, NDArray[Any]]:
    """Return the arrays of an `.npz` file; raise anything if it is not one."""
    with zipfile.ZipFile(io.BytesIO(data)) as members:
        size = sum(member.file_size for member in members.infolist())
    if size > MAX_ARRAY_BYTES:
        raise ValueError(f"unpacked it has {size} bytes; the limit is {MAX_ARRAY_BYTES}")
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray):  # numpy gives the bytes of what it does not know
            raise TypeError(f"{key!r} is not an array")
    return arrays


def first_error(exc: ValidationError) -> str:
    """Return the place and the sentence of the first of pydantic's errors, in one line."""
    error = exc.errors(include_url=False)[0]
    where = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
