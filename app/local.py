"""Answers for files, without a server: from the names of files and folders to a row for each.

`find_files` yields files, `FileReader` reads them and asks the model, and a class for each task
makes rows of the answers and prints them: `Classes`, `Objects`, `Masks`. Memory is bounded: files
are found, read and decoded a batch at a time.
"""

import csv
import errno
import io
import json
import os
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from glob import glob
from itertools import count, islice
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from app.api.schemas import (
    Instance,
    PictureDetections,
    PictureSegments,
    Prediction,
    Predictions,
    Region,
)
from app.artifact.directory import Artifact
from app.artifact.manifest import Task
from app.artifact.tensors import Outputs
from app.commands import as_unicode, printable
from app.errors import ImageError, UploadError, UploadTooLarge
from app.explore.boxes import draw_found
from app.explore.masks import draw_masks
from app.explore.pictures import DRAWN_SIDE
from app.images import RgbImage
from app.images.decode import decode_placed, decode_whole, warning_of
from app.images.placement import Placement
from app.inference.backends import batch_limit, open_backend
from app.settings import PREFIX, Settings
from app.tasks import classification, detection, segmentation
from app.tasks.classification import whole_percent

STANDARD_INPUT = "-"

COVERAGE = 0.9
"""Of the sets that are printed by default, as on the page."""

UNFAMILIAR = "unlike anything it was trained on: probability and set promise nothing here"
"""The page has the same words."""


@dataclass(frozen=True)
class Failure:
    """A file or folder that has no answer, and the reason."""

    filename: str
    error: str


@dataclass(frozen=True)
class File:
    """A file whose bytes are at hand, for example one of an archive."""

    filename: str
    data: bytes


@dataclass(frozen=True)
class Picture:
    """A file that is read.

    Attributes:
        filename: as it is shown.
        data: the file's bytes, if a drawing needs them.
        image: uint8 `[H,W,3]`, of the model's size.
        placement: of the picture in `image`.
        warning: the file's fault, if it has one.
    """

    filename: str
    data: bytes
    image: RgbImage
    placement: Placement
    warning: str | None


@dataclass(frozen=True)
class Options:
    """What a command line asks for beyond the files; None where it says nothing.

    Attributes:
        top_k: the number of classes to show.
        coverage: of prediction sets.
        threshold: the least score of an object.
        draw: the folder for drawings.
    """

    top_k: int | None = None
    coverage: float | None = None
    threshold: float | None = None
    draw: Path | None = None

    @property
    def given(self) -> list[str]:
        """The names of those that the command line gives."""
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]


def find_files(names: Sequence[str], left_out: Path | None = None) -> Iterator[str | Failure]:
    """Yield the files that the words of a command line name, in the order of the words.

    A folder stands for the files in it and below it, sorted, without hidden ones; linked folders
    count, each once. A pattern such as `*.png` stands for what it matches, unless it is the name of
    a file. A folder below a named one is left out if it is `left_out`.
    """
    for name in names:
        is_there = name == STANDARD_INPUT or os.path.lexists(name)
        matches = [] if is_there else sorted(glob(name, recursive=True))  # noqa: PTH207 - of text
        if "**" in name:  # it matches the files in the folders too
            matches = [match for match in matches if not is_folder(match)]
        for match in matches or [name]:
            if is_folder(match):
                yield from _files_in(match, left_out)
            else:
                yield _found(match) if matches else match


def is_folder(name: str) -> bool:
    """Whether a word of the command line is the name of a folder."""
    return os.path.isdir(name)  # noqa: PTH112 - Path raises for a name that is too long


def _files_in(folder: str, left_out: Path | None) -> Iterator[str | Failure]:
    failures: list[Failure] = []
    found = False
    whole = Path(folder).resolve()
    entered = {whole} if left_out is None else {whole, left_out.resolve()}

    def is_new(path: Path) -> bool:
        target = path.resolve()
        if target in whole.parents:
            failures.append(Failure(str(path), "a link to a folder above, which is not read"))
        elif target not in entered:
            entered.add(target)
            return True
        return False

    for place, folders, files in os.walk(
        folder,
        onerror=lambda exc: failures.append(Failure(exc.filename, str(exc.strerror))),
        followlinks=True,
    ):
        visible = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in visible if is_new(Path(place, name))]
        beginning = os.path.join(Path(place), "") if Path(place) != Path() else ""  # noqa: PTH118
        for name in sorted(name for name in files if not name.startswith(".")):
            found = True
            yield _found(beginning + name)
    if not found and not failures:
        failures.append(Failure(folder, "holds no files"))
    yield from failures


def _found(path: str) -> str | Failure:
    """Return a file that nobody named: to open a named pipe would wait for a writer."""
    is_file = os.path.isfile(path)  # noqa: PTH113 - a folder may hold very many
    return path if is_file else Failure(path, "not a regular file")


RowT = TypeVar("RowT", bound=Prediction | PictureDetections | PictureSegments)


class Answers(ABC, Generic[RowT]):
    """The rows of one task: what a graph's outputs say of files, as text, CSV and JSON.

    Attributes:
        takes: the names of the options that make sense for the task.
        columns: of the CSV, which begins with `file` and ends with `warning` and `error`.
        keeps_bytes: whether pictures are needed with their bytes.
    """

    takes: ClassVar[frozenset[str]]
    columns: ClassVar[tuple[str, ...]]
    keeps_bytes = False

    @classmethod
    def takes_with(cls, artifact: Artifact) -> frozenset[str]:  # noqa: ARG003 - of all tasks
        """Return the names of the options that make sense for one model of the task."""
        return cls.takes

    @abstractmethod
    def __init__(
        self, artifact: Artifact, settings: Settings, options: Options, *, brief: bool = False
    ) -> None:
        """Check the options, before a file is read.

        Args:
            artifact: the model, of this task.
            settings: of the service.
            options: that are in `takes`.
            brief: whether rows are lines for a reader.

        Raises:
            InvalidParameter: an option does not fit the model.
            NothingToSee: likewise.
        """

    @abstractmethod
    def rows(self, outputs: Outputs, pictures: Sequence[Picture]) -> Sequence[RowT | Failure]:
        """Return a row for each picture of a batch."""

    @abstractmethod
    def text(self, row: RowT) -> str:
        """Return what a line says after the name of the file."""

    @abstractmethod
    def cells(self, row: RowT) -> Iterable[Mapping[str, object]]:
        """Yield the cells of a row's lines of CSV, by column, without those that all tasks have."""

    @abstractmethod
    def as_json(self, rows: Iterable[RowT | Failure]) -> Iterator[str]:
        """Yield the lines of one JSON value."""


class Classes(Answers[Prediction]):
    """A classifier's rows: the likeliest classes, and the set that holds the true one."""

    takes = frozenset({"top_k", "coverage"})
    columns = (
        "file",
        "label",
        "probability",
        "prediction_set",
        "ood_score",
        "out_of_distribution",
        "warning",
        "error",
    )
    """The members of a set are separated by `|`."""

    def __init__(
        self, artifact: Artifact, settings: Settings, options: Options, *, brief: bool = False
    ) -> None:
        """Check the options; a brief row has one class unless they say more."""
        self._manifest = artifact.classifier
        self._coverage = options.coverage
        if self._coverage is None and settings.precision in self._manifest.confidence:
            self._coverage = COVERAGE
        self._interpreter = classification.Interpreter(
            artifact,
            settings.precision,
            top_k=1 if brief and options.top_k is None else options.top_k,
            coverage=self._coverage,
        )

    def rows(self, outputs: Outputs, pictures: Sequence[Picture]) -> list[Prediction]:
        """Return a prediction for each picture."""
        images = np.array([picture.image for picture in pictures])
        names = [picture.filename for picture in pictures]
        warnings = [picture.warning for picture in pictures]
        answer = self._interpreter.render(outputs, images, names, warnings)
        return Predictions.model_validate_json(answer).predictions

    def text(self, row: Prediction) -> str:
        """Return classes, set and warnings, in the words of the page."""
        likely = row.probabilities.items()
        parts = [", ".join(f"{label} {value:.1%}" for label, value in likely)]
        if self._coverage is not None and row.prediction_set is not None:
            members = ", ".join(row.prediction_set)
            parts.append(f"{whole_percent(self._coverage)}% set: {members}")
        if row.out_of_distribution:
            parts.append(UNFAMILIAR)
        return "; ".join(parts)

    def cells(self, row: Prediction) -> Iterator[Mapping[str, object]]:
        """Yield one line for a picture."""
        yield {
            **row.model_dump(exclude_none=True),
            "probability": row.confidence,
            "prediction_set": "|".join(row.prediction_set or ()),
        }

    def as_json(self, rows: Iterable[Prediction | Failure]) -> Iterator[str]:
        """Yield the answer of `POST /predict` with a row a line.

        A failure is an object with `filename` and `error`.
        """
        head = json.dumps({"model": self._manifest.name, "version": self._manifest.version})
        yield f'{head[:-1]}, "predictions": ['
        yield from _in_list(
            json.dumps({"filename": row.filename, "error": row.error}, ensure_ascii=False)
            if isinstance(row, Failure)
            else row.model_dump_json(exclude_none=True)
            for row in rows
        )
        yield "]}"


class FileDetections(PictureDetections):
    """The objects in a file's picture, and where their drawing is."""

    drawing: str | None = None


class Objects(Answers[FileDetections]):
    """A detector's rows: the objects in a picture, and drawings of them if they are wanted."""

    takes = frozenset({"threshold", "draw"})
    columns = (
        "file",
        "category",
        "score",
        "x",
        "y",
        "width",
        "height",
        "drawing",
        "warning",
        "error",
    )

    def __init__(
        self,
        artifact: Artifact,
        settings: Settings,
        options: Options,
        *,
        brief: bool = False,  # noqa: ARG002 - of all tasks
    ) -> None:
        """Check the options."""
        self._classes = artifact.manifest.classes
        self._settings = settings
        self._interpreter = detection.Interpreter(artifact, score_threshold=options.threshold)
        self._folder = options.draw
        self.keeps_bytes = self._folder is not None

    def rows(self, outputs: Outputs, pictures: Sequence[Picture]) -> list[FileDetections]:
        """Return the objects in each picture, and draw them."""
        placements = [picture.placement for picture in pictures]
        found = self._interpreter.find(outputs, placements)
        return [self._row(*each) for each in zip(pictures, found, strict=True)]

    def _row(self, picture: Picture, found: detection.Found) -> FileDetections:
        row = FileDetections.model_validate(
            self._interpreter.describe(found, picture.placement, picture.filename, picture.warning)
        )
        if self._folder is not None:
            row.drawing = self._draw(self._folder, picture, found)
        return row

    def _draw(self, folder: Path, picture: Picture, found: detection.Found) -> str:
        whole = _shown(picture, self._settings)
        size = picture.placement.picture
        drawing = draw_found(whole, size, found.boxes, found.labels, found.scores, self._classes)
        return as_unicode(_write_new(folder, picture.filename, drawing))

    def text(self, row: FileDetections) -> str:
        """Return how many objects of each class there are, and their scores."""
        scores: dict[str, list[float]] = {}
        for one in row.detections:
            scores.setdefault(one.category, []).append(one.score)
        said = ", ".join(f"{len(of)} {name} ({_span(of)})" for name, of in scores.items())
        said = said or "no objects"
        return said if row.drawing is None else f"{said}; drawn in {row.drawing}"

    def cells(self, row: FileDetections) -> Iterator[Mapping[str, object]]:
        """Yield a line for each object; a picture without objects has one all the same."""
        for one in row.detections:
            place = zip(("x", "y", "width", "height"), one.bbox, strict=True)
            named = {"category": one.category, "score": one.score}
            yield {**named, **dict(place), "drawing": row.drawing}
        if not row.detections:
            yield {"drawing": row.drawing}

    def as_json(self, rows: Iterable[FileDetections | Failure]) -> Iterator[str]:
        """Return COCO's list of results, an object a line; `image_id` counts the files from 1.

        A failure is an object with `image_id`, `file_name` and `error`.
        """
        return _as_coco(rows, _boxes)


class FileSegments(PictureSegments):
    """The masks of a file's picture, and where their drawing is."""

    drawing: str | None = None


class Masks(Answers[FileSegments]):
    """A segmenter's rows: the objects in a picture, or else the regions of its classes."""

    takes = frozenset({"threshold", "draw"})
    columns = (
        "file",
        "category",
        "score",
        "x",
        "y",
        "width",
        "height",
        "area",
        "drawing",
        "warning",
        "error",
    )

    @classmethod
    def takes_with(cls, artifact: Artifact) -> frozenset[str]:
        """Return the names of the options: objects that are not told apart have no scores."""
        return cls.takes - ({"threshold"} if artifact.segmenter.instances is None else set())

    def __init__(
        self,
        artifact: Artifact,
        settings: Settings,
        options: Options,
        *,
        brief: bool = False,  # noqa: ARG002 - of all tasks
    ) -> None:
        """Check the options."""
        segmentation.check_library([artifact])
        self._settings = settings
        self._interpreter = segmentation.Interpreter(artifact, score_threshold=options.threshold)
        self._folder = options.draw
        self.keeps_bytes = self._folder is not None

    def rows(self, outputs: Outputs, pictures: Sequence[Picture]) -> list[FileSegments | Failure]:
        """Return the masks of each picture, and draw them."""
        return [
            self._row(outputs.part(index, 1), picture) for index, picture in enumerate(pictures)
        ]

    def _row(self, outputs: Outputs, picture: Picture) -> FileSegments | Failure:
        try:
            described = self._interpreter.describe(
                outputs, picture.placement, picture.filename, picture.warning
            )
        except ImageError as exc:  # it is too large for masks
            return Failure(picture.filename, str(exc))
        row = FileSegments.model_validate(described.content)
        if self._folder is not None:
            row.drawing = self._draw(self._folder, picture, outputs)
        return row

    def _draw(self, folder: Path, picture: Picture, outputs: Outputs) -> str:
        whole = _shown(picture, self._settings)
        placement = picture.placement.reduced((whole.shape[1], whole.shape[0]))
        segmented = self._interpreter.segment(outputs, placement)
        drawing = draw_masks(whole, *segmented.regions)
        return as_unicode(_write_new(folder, picture.filename, drawing))

    def text(self, row: FileSegments) -> str:
        """Return how many objects of each class there are, or the part that each class covers."""
        if row.instances is None:
            pixels = row.image.width * row.image.height
            parts = [f"{one.category} {one.area / pixels:.1%}" for one in row.classes]
            said = ", ".join(parts) or "nothing but background"
        else:
            found = Counter(one.category for one in row.instances)
            said = ", ".join(f"{number} {name}" for name, number in found.items()) or "no objects"
        return said if row.drawing is None else f"{said}; drawn in {row.drawing}"

    def cells(self, row: FileSegments) -> Iterator[Mapping[str, object]]:
        """Yield a line for each object or region; a picture without any has one all the same."""
        for one in _found_in(row):
            cells = one.model_dump(exclude={"segmentation"})
            place = zip(("x", "y", "width", "height"), cells.pop("bbox", ()), strict=False)
            yield {**cells, **dict(place), "drawing": row.drawing}
        if not _found_in(row):
            yield {"drawing": row.drawing}

    def as_json(self, rows: Iterable[FileSegments | Failure]) -> Iterator[str]:
        """Return COCO's list of results, a mask a line, as `Objects.as_json` does."""
        return _as_coco(rows, _masks)


def _found_in(row: FileSegments) -> Sequence[Instance | Region]:
    """Return the objects of a row, or else the regions of its classes."""
    return row.classes if row.instances is None else row.instances


def _masks(row: FileSegments) -> list[dict[str, Any]]:
    """Return the objects of a row, or else the regions of its classes, as COCO's results."""
    warning = {} if row.warning is None else {"warning": row.warning}
    return [one.model_dump(mode="json") | warning for one in _found_in(row)]


def _shown(picture: Picture, settings: Settings) -> RgbImage:
    """Return a picture as it is drawn on."""
    return decode_whole(
        picture.data, DRAWN_SIDE, settings.max_pixels, max_pixels_whole=settings.max_pixels_whole
    )


def _boxes(row: FileDetections) -> list[dict[str, Any]]:
    """Return the objects of a row as COCO's results."""
    warning = {} if row.warning is None else {"warning": row.warning}
    return [
        {
            "category_id": one.category_id,
            "category": one.category,
            "bbox": one.bbox,
            "score": one.score,
            **warning,
        }
        for one in row.detections
    ]


def _as_coco(
    rows: Iterable[RowT | Failure], results: Callable[[RowT], Iterable[Mapping[str, object]]]
) -> Iterator[str]:
    """Yield the lines of COCO's list of results, in the order of the rows."""
    yield "["
    yield from _in_list(
        json.dumps({"image_id": number, "file_name": row.filename, **result}, ensure_ascii=False)
        for number, row in enumerate(rows, 1)
        for result in ([{"error": row.error}] if isinstance(row, Failure) else results(row))
    )
    yield "]"


def _span(scores: Sequence[float]) -> str:
    """Return the scores of objects, the best first, as `90.0%` or `60.0% to 90.0%`."""
    low, high = f"{scores[-1]:.1%}", f"{scores[0]:.1%}"
    return low if low == high else f"{low} to {high}"


def _write_new(folder: Path, filename: str, data: bytes) -> str:
    """Write a file that is not there yet, named like another; return its path."""
    stem = "standard-input" if filename == STANDARD_INPUT else Path(filename).stem
    for number in count(1):
        path = folder / (f"{stem}.png" if number == 1 else f"{stem}-{number}.png")
        try:
            with path.open("xb") as file:
                file.write(data)
        except FileExistsError:
            continue
        return str(path)
    raise AssertionError  # the numbers do not end


def _in_list(lines: Iterable[str]) -> Iterator[str]:
    """Begin each line but the first with the comma that separates it from the one before."""
    comma = " "
    for line in lines:
        yield comma + line
        comma = ","


ANSWERS: Mapping[Task, type[Answers[Any]]] = {
    "classification": Classes,
    "detection": Objects,
    "segmentation": Masks,
}
"""The rows of each task."""


class FileReader(Generic[RowT]):
    """Reads files and asks one model about them.

    Attributes:
        failures: the number of files and folders so far that have no answer.
    """

    def __init__(self, artifact: Artifact, settings: Settings, answers: Answers[RowT]) -> None:
        """Open the model.

        Raises:
            ArtifactError: the model is damaged.
        """
        self.failures = 0
        self._settings = settings
        self._manifest = artifact.manifest
        self._answers = answers
        self._batch = batch_limit(artifact, settings.backend, settings.max_batch)
        self._backend = open_backend(
            artifact, settings.backend, settings.threads, settings.precision
        )

    def rows(self, files: Iterable[str | File | Failure]) -> Iterator[RowT | Failure]:
        """Yield a row for each file, in their order.

        Raises:
            BackendFailed: the runtime failed.
        """
        remaining = iter(files)
        while batch := list(islice(remaining, self._batch)):
            pictures = [self._read(file) for file in batch]
            sound = [picture for picture in pictures if not isinstance(picture, Failure)]
            answers = iter(self._ask(sound))
            for picture in pictures:
                row = picture if isinstance(picture, Failure) else next(answers)
                self.failures += isinstance(row, Failure)
                yield row

    def _read(self, file: str | File | Failure) -> Picture | Failure:
        name = as_unicode(file if isinstance(file, str) else file.filename)
        if isinstance(file, Failure):
            return Failure(name, file.error)
        settings = self._settings
        try:
            limit = settings.max_body_bytes
            data = _read_bytes(file, limit) if isinstance(file, str) else file.data
            if len(data) > limit:
                raise too_large(limit)
            image, placement = decode_placed(
                data,
                self._manifest.image_size,
                settings.max_pixels,
                max_pixels_whole=settings.max_pixels_whole,
                resize=self._manifest.resize,
            )
        except OSError as exc:
            return Failure(name, exc.strerror or str(exc))
        except (ImageError, UploadError) as exc:
            return Failure(name, str(exc))
        kept = data if self._answers.keeps_bytes else b""
        return Picture(name, kept, image, placement, warning_of(data))

    def _ask(self, pictures: Sequence[Picture]) -> Sequence[RowT | Failure]:
        if not pictures:
            return []
        images = np.array([picture.image for picture in pictures])
        return self._answers.rows(self._backend.predict(images), pictures)


def _read_bytes(name: str, limit: int) -> bytes:
    """Return a file's bytes; read at most one more than the limit."""
    if name == STANDARD_INPUT:
        if sys.stdin is None:
            raise OSError(errno.EBADF, "standard input is closed")
        return sys.stdin.buffer.read(limit + 1)
    with open(name, "rb") as file:  # noqa: PTH123 - takes a third of the time
        # To ask for the limit would reserve that much memory for each file.
        size = os.fstat(file.fileno()).st_size or limit  # pipes have no size
        return file.read(min(size, limit) + 1)


def too_large(limit: int) -> UploadTooLarge:
    """Return the error of a file that holds more bytes than the limit."""
    return UploadTooLarge(f"holds more than {limit} bytes; {PREFIX}MAX_BODY_BYTES is the limit")


def as_text(rows: Iterable[RowT | Failure], answers: Answers[RowT]) -> Iterator[str]:
    """Yield a line for each row: a name, then the answer, then the file's fault if it has one."""
    for row in rows:
        if isinstance(row, Failure):
            said = f"error: {row.error}"
        else:
            said = "; ".join(filter(None, (answers.text(row), row.warning)))
        yield printable(f"{row.filename}: {said}")


def as_csv(rows: Iterable[RowT | Failure], answers: Answers[RowT]) -> Iterator[str]:
    """Yield a header, and a line of CSV or several for each row."""
    yield ",".join(answers.columns)
    for row in rows:
        if isinstance(row, Failure):
            lines: Iterable[Mapping[str, object]] = [{"error": row.error}]
        else:
            lines = ({**cells, "warning": row.warning} for cells in answers.cells(row))
        for line in lines:
            text = io.StringIO()
            writer = csv.DictWriter(text, answers.columns, extrasaction="ignore")
            writer.writerow({**line, "file": row.filename})
            yield text.getvalue().removesuffix("\r\n")
