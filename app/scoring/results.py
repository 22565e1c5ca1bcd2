"""The rows of a scoring run on disk: a part for each shard, and one file of them at the end.

Beside `results.parquet` stands the folder `results.parquet.parts` while a run is not at its end:
what it asks (`plan.json`), its input (`input`, a line a file) and a part for each shard that is
done. A part appears whole, by a rename; so a run that was killed goes on with the shards that have
none, and each picture has one row. At the end the parts become the results, by a rename too, and
the folder is removed.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from app.artifact.manifest import Task
from app.errors import ScoringError
from app.local import Failure
from app.machine import can_fork, lock

GROUP_BYTES = 16 << 20
"""Of a row group of the results, at least, before compression."""

_FINISHED = "finished"

_SIZE = pa.struct({"width": pa.int32(), "height": pa.int32()})
_CATEGORY = {"category": pa.string(), "category_id": pa.int64()}
_BOX = pa.list_(pa.float64())
_MASK = pa.struct({"size": pa.list_(pa.int32()), "counts": pa.string()})
_AREA = {"area": pa.int64(), "segmentation": _MASK}
_SCORE = {"score": pa.float64(), "bbox": _BOX}

ANSWER_COLUMNS: Mapping[Task, Mapping[str, pa.DataType]] = {
    "classification": {
        "label": pa.string(),
        "class_id": pa.int32(),
        "confidence": pa.float64(),
        "probabilities": pa.map_(pa.string(), pa.float64()),
        "prediction_set": pa.list_(pa.string()),
        "ood_score": pa.float64(),
        "out_of_distribution": pa.bool_(),
    },
    "detection": {
        "image": _SIZE,
        "detections": pa.list_(pa.struct({**_CATEGORY, **_SCORE})),
    },
    "segmentation": {
        "image": _SIZE,
        "classes": pa.list_(pa.struct({**_CATEGORY, **_AREA})),
        "instances": pa.list_(pa.struct({**_CATEGORY, **_SCORE, **_AREA})),
    },
}
"""The fields of an answer to `/predict`, `/detect` and `/segment`, as columns."""


def schema_of(task: Task) -> pa.Schema:
    """Return the columns of the results of a task."""
    names = {"picture": pa.int64(), "archive": pa.string(), "file": pa.string()}
    faults = {"warning": pa.string(), "error": pa.string()}
    return pa.schema({**names, **ANSWER_COLUMNS[task], **faults})


def as_table(
    task: Task, first: int, archives: Sequence[str | None], rows: Iterable[Any]
) -> pa.Table:
    """Return the rows of pictures as a table.

    Args:
        task: of the model.
        first: the number of the first picture.
        archives: of each picture.
        rows: answers as `app.local` has them, or failures.
    """
    schema = schema_of(task)
    return pa.Table.from_pylist(
        [
            {"picture": number, "archive": archive, "file": row.filename}
            | ({"error": row.error} if isinstance(row, Failure) else row.model_dump())
            for number, (archive, row) in enumerate(zip(archives, rows, strict=True), first)
        ],
        schema,
    )


class Results:
    """The results of one run, and its parts while it is not at its end.

    Attributes:
        folder: of the parts.
        done: the numbers of the shards that have a part.
        pictures: how many pictures have a row.
        failures: how many of them have no answer.
    """

    def __init__(self, out: Path, folder: Path) -> None:
        self.folder = folder
        self.done = set[int]()
        self.pictures = 0
        self.failures = 0
        self._out = out

    def begin(self, plan: Mapping[str, Any], walk: Iterator[str]) -> None:
        """Write the plan and the input of a new run, or compare them with those of an older one.

        Raises:
            ScoringError: the run that was begun has another plan or input.
        """
        path, listing = self.folder / "plan.json", self.folder / "input"
        digest = sha256()
        found = self.folder / "input.new"
        with found.open("w", encoding="utf-8") as file:
            for line in walk:
                file.write(f"{line}\n")
                digest.update(line.encode())
        plan = {**plan, "input": digest.hexdigest()}
        if not path.exists():
            found.replace(listing)
            self._write_whole(path, json.dumps(plan, indent=1).encode())
            return
        found.unlink()
        begun = json.loads(path.read_text())
        for name, value in plan.items():
            if begun.get(name) != value:
                raise ScoringError(_differs(self.folder, name, begun.get(name), value))
        for path in self.folder.glob("*.parquet"):
            with pq.ParquetFile(path) as part:
                self._count(part.read(["error"]))
            self.done.add(int(path.stem))

    def lines(self) -> Iterator[str]:
        """Yield the lines of the input."""
        with (self.folder / "input").open(encoding="utf-8") as file:
            yield from file

    def add(self, shard: int, table: pa.Table) -> None:
        """Write the rows of a shard."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        self._write_whole(self._part(shard), sink.getvalue())
        self.done.add(shard)
        self._count(table)

    def finish(self, schema: pa.Schema) -> None:
        """Make one file of all parts."""
        if self.done != set(range(len(self.done))):  # would be a fault of ours
            raise ScoringError(f"{self.folder}: parts are missing")
        merged = self.folder / "merged"
        waiting: list[pa.Table] = []
        with merged.open("wb") as file:
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                for shard in range(len(self.done)):
                    with pq.ParquetFile(self._part(shard)) as part:
                        waiting.append(part.read().replace_schema_metadata(schema.metadata))
                    if sum(table.nbytes for table in waiting) >= GROUP_BYTES:
                        writer.write_table(pa.concat_tables(waiting))
                        waiting.clear()
                if waiting:
                    writer.write_table(pa.concat_tables(waiting))
            file.flush()
            os.fsync(file.fileno())
        (self.folder / _FINISHED).touch()
        merged.replace(self._out)

    def _count(self, table: pa.Table) -> None:
        self.pictures += len(table)
        self.failures += len(table) - table["error"].null_count

    def _part(self, shard: int) -> Path:
        return self.folder / f"{shard:08}.parquet"

    def _write_whole(self, path: Path, data: Any) -> None:
        new = path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)


@contextmanager
def opened(out: Path) -> Iterator[Results]:
    """Open the results of a run that begins or goes on; without a fault, the run ends with this.

    Raises:
        ScoringError: the results are there already, or another process writes them.
    """
    folder = out.with_name(f"{out.name}.parts")
    if out.exists():
        if (folder / _FINISHED).exists():  # and was killed before it removed its folder
            shutil.rmtree(folder)
        raise ScoringError(f"{out} is already there; it is not overwritten")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        if can_fork() and not lock(file):
            raise ScoringError(f"{out}: another process writes it")
        try:
            yield Results(out, folder)
        except BaseException:
            if not (folder / "plan.json").exists():  # nothing is lost
                shutil.rmtree(folder)
            raise
    shutil.rmtree(folder)


def _differs(folder: Path, name: str, begun: Any, value: Any) -> str:
    if name == "input":
        said = "other input: files were added, removed or changed since, or others are named"
    else:
        said = f"{name} {begun}; now it is {value}"
    return (
        f"{folder} holds a run that was begun with {said}. "
        "Go on with what it was begun with, or remove the folder to begin anew"
    )
