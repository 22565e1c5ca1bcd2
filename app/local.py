"""Predictions for files, without a server: from the names of files and folders to a row for each.

Memory is bounded: files are found, read and decoded a batch at a time.
"""

import csv
import errno
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from glob import glob
from itertools import islice
from pathlib import Path

import numpy as np

from app.api.schemas import Prediction, Predictions
from app.artifact.directory import Artifact
from app.artifact.manifest import Manifest
from app.commands import as_unicode, printable
from app.errors import ImageError, UploadError, UploadTooLarge
from app.images import RgbImage
from app.images.decode import decode, warning_of
from app.inference.backends import batch_limit, open_backend
from app.settings import PREFIX, Settings
from app.tasks.classification import Interpreter, whole_percent

STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Failure:
    """A file or folder that cannot be classified, and the reason."""

    filename: str
    error: str


@dataclass(frozen=True)
class _Picture:
    """A file that is read: its name as it is shown, its image, and its fault if it has one."""

    filename: str
    image: RgbImage
    warning: str | None


Row = Prediction | Failure

UNFAMILIAR = "unlike anything it was trained on: probability and set promise nothing here"
"""The page has the same words."""


def find_files(names: Sequence[str]) -> Iterator[str | Failure]:
    """Yield the files that the words of a command line name, in the order of the words.

    A folder stands for the files in it and below it, sorted, without hidden ones; linked folders
    count, each once. A pattern such as `*.png` stands for what it matches, unless it is the name of
    a file.
    """
    for name in names:
        is_there = name == STANDARD_INPUT or os.path.lexists(name)
        matches = [] if is_there else sorted(glob(name, recursive=True))  # noqa: PTH207 - of text
        if "**" in name:  # it matches the files in the folders too
            matches = [match for match in matches if not is_folder(match)]
        for match in matches or [name]:
            if is_folder(match):
                yield from _files_in(match)
            else:
                yield _found(match) if matches else match


def is_folder(name: str) -> bool:
    """Whether a word of the command line is the name of a folder."""
    return os.path.isdir(name)  # noqa: PTH112 - Path raises for a name that is too long


def _files_in(folder: str) -> Iterator[str | Failure]:
    failures: list[Failure] = []
    found = False
    whole = Path(folder).resolve()
    entered = {whole}

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
        for name in sorted(name for name in files if not name.startswith(".")):
            found = True
            yield _found(str(Path(place, name)))
    if not found and not failures:
        failures.append(Failure(folder, "holds no files"))
    yield from failures


def _found(path: str) -> str | Failure:
    """Return a file that nobody named: to open a named pipe would wait for a writer."""
    return path if Path(path).is_file() else Failure(path, "not a regular file")


class FileClassifier:
    """Classifies files with one model.

    Attributes:
        failures: the number of files and folders so far that could not be classified.
    """

    def __init__(
        self, artifact: Artifact, settings: Settings, *, top_k: int | None, coverage: float | None
    ) -> None:
        """Check the parameters, as `Interpreter` does, and open the model.

        Raises:
            ArtifactError: the model is damaged.
            InvalidParameter: `top_k` is larger than the number of classes.
            NothingToSee: the model has no prediction sets.
        """
        self.failures = 0
        self._settings = settings
        self._manifest = artifact.manifest
        self._interpreter = Interpreter(
            artifact, settings.precision, top_k=top_k, coverage=coverage
        )
        self._batch = batch_limit(artifact, settings.backend, settings.max_batch)
        self._backend = open_backend(
            artifact, settings.backend, settings.threads, settings.precision
        )

    def rows(self, files: Iterable[str | Failure]) -> Iterator[Row]:
        """Yield a row for each file, in their order.

        Raises:
            BackendFailed: the runtime failed.
        """
        remaining = iter(files)
        while batch := list(islice(remaining, self._batch)):
            pictures = [self._read(file) for file in batch]
            sound = [picture for picture in pictures if not isinstance(picture, Failure)]
            predictions = iter(self._predict(sound))
            for picture in pictures:
                if isinstance(picture, Failure):
                    self.failures += 1
                    yield picture
                else:
                    yield next(predictions)

    def _read(self, file: str | Failure) -> _Picture | Failure:
        if isinstance(file, Failure):
            return Failure(as_unicode(file.filename), file.error)
        settings = self._settings
        try:
            data = _read_bytes(file, settings.max_body_bytes)
            image = decode(
                data,
                self._manifest.image_size,
                settings.max_pixels,
                max_pixels_whole=settings.max_pixels_whole,
                resize=self._manifest.resize,
            )
        except OSError as exc:
            return Failure(as_unicode(file), exc.strerror or str(exc))
        except (ImageError, UploadError) as exc:
            return Failure(as_unicode(file), str(exc))
        return _Picture(as_unicode(file), image, warning_of(data))

    def _predict(self, pictures: Sequence[_Picture]) -> list[Prediction]:
        if not pictures:
            return []
        images = np.array([picture.image for picture in pictures])
        names = [picture.filename for picture in pictures]
        warnings = [picture.warning for picture in pictures]
        answer = self._interpreter.render(self._backend.predict(images), images, names, warnings)
        return Predictions.model_validate_json(answer).predictions


def _read_bytes(name: str, limit: int) -> bytes:
    """Return a file's bytes; read at most one more than the limit."""
    if name == STANDARD_INPUT:
        if sys.stdin is None:
            raise OSError(errno.EBADF, "standard input is closed")
        data = sys.stdin.buffer.read(limit + 1)
    else:
        with Path(name).open("rb") as file:
            data = file.read(limit + 1)
    if len(data) > limit:
        raise UploadTooLarge(f"holds more than {limit} bytes; {PREFIX}MAX_BODY_BYTES is the limit")
    return data


def as_text(rows: Iterable[Row], coverage: float | None) -> Iterator[str]:
    """Yield a line for each row: a name, then the answer in the words of the page."""
    for row in rows:
        said = f"error: {row.error}" if isinstance(row, Failure) else _described(row, coverage)
        yield printable(f"{row.filename}: {said}")


def _described(prediction: Prediction, coverage: float | None) -> str:
    likely = prediction.probabilities.items()
    parts = [", ".join(f"{label} {value:.1%}" for label, value in likely)]
    if coverage is not None and prediction.prediction_set is not None:
        members = ", ".join(prediction.prediction_set)
        parts.append(f"{whole_percent(coverage)}% set: {members}")
    if prediction.out_of_distribution:
        parts.append(UNFAMILIAR)
    if prediction.warning is not None:
        parts.append(prediction.warning)
    return "; ".join(parts)


COLUMNS = (
    "file",
    "label",
    "probability",
    "prediction_set",
    "ood_score",
    "out_of_distribution",
    "warning",
    "error",
)
"""Of the CSV. The members of a set are separated by `|`."""


def as_csv(rows: Iterable[Row]) -> Iterator[str]:
    """Yield a header, and a line of CSV for each row."""
    yield ",".join(COLUMNS)
    for row in rows:
        cells = row.model_dump(exclude_none=True) if isinstance(row, Prediction) else asdict(row)
        cells["file"] = row.filename
        if isinstance(row, Prediction):
            cells["probability"] = row.confidence
            cells["prediction_set"] = "|".join(row.prediction_set or ())
        text = io.StringIO()
        csv.DictWriter(text, COLUMNS, extrasaction="ignore").writerow(cells)
        yield text.getvalue().removesuffix("\r\n")


def as_json(rows: Iterable[Row], manifest: Manifest) -> Iterator[str]:
    """Yield the lines of one JSON object, the answer of `POST /predict` with a row a line.

    A failure is an object with `filename` and `error`.
    """
    head = json.dumps({"model": manifest.name, "version": manifest.version})
    yield f'{head[:-1]}, "predictions": ['
    comma = " "
    for row in rows:
        if isinstance(row, Failure):
            yield comma + json.dumps(asdict(row))
        else:
            yield comma + row.model_dump_json(exclude_none=True)
        comma = ","
    yield "]}"
