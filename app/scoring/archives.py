"""The pictures in ZIP, tar and Parquet files, one after the other, in constant memory.

Archives come from strangers. A member's name is only a name: no path is made of it. Sizes are
checked before bytes are read; links are not followed; nothing is written. What a file stores a
second way (bzip2, xz, sparse files) is refused, since it may unpack to thousands of times its size
at once.

A member that cannot be read is a `Failure` in its place. Damage that hides all that follows is a
`Failure` with the archive's own name, the last one; it says where the damage is.
"""

import gzip
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, cast

from app.errors import ScoringError
from app.local import Failure, too_large

MAX_DIRECTORY_BYTES = 128 << 20
"""Of a ZIP's directory, which is held in memory: some hundred bytes for each member."""

MAX_HEADER_BYTES = 64 << 10
"""Of what stands in a tar between two members' bytes: names and attributes."""

MAX_GROUP_BYTES = 2 << 30
"""Of a Parquet file's row group, unpacked."""

BATCH_BYTES = 16 << 20
"""Of a Parquet file's pictures that are unpacked at a time, if they are equally large."""

BATCH_ROWS = 256

_SKIPPED_AT_ONCE = 1 << 20
_IMAGE = "image"
_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".parquet")


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Attributes:
        name: within the archive.
        size: in bytes.
        read: returns its bytes, until the next member is asked for; raises ScoringError if it is
            damaged.
    """

    name: str
    size: int
    read: Callable[[], bytes]


def is_archive(name: str) -> bool:
    """Return whether a file is an archive, by its name."""
    return name.lower().endswith(_SUFFIXES)


def members(name: str, file: IO[bytes], limit: int) -> Iterator[Member | Failure]:
    """Yield the files in an archive in their order, without folders and hidden ones.

    Args:
        name: of the archive.
        file: the archive, opened for reading at any place.
        limit: the most bytes of a member.
    """
    kind = name.lower()
    try:
        if kind.endswith(".zip"):
            yield from _in_zip(file, limit)
        elif kind.endswith(".parquet"):
            yield from _in_parquet(file, limit)
        else:
            yield from _in_tar(name, file, limit, packed=kind.endswith("gz"))
    except _DamagedArchive as exc:
        yield Failure(name, str(exc))


class _DamagedArchive(Exception):
    """An archive cannot be read on."""


def _is_hidden(name: str) -> bool:
    return "/." in f"/{name}" and any(
        part.startswith(".") and part not in {".", ".."} for part in name.split("/")
    )


class _Directory:
    """A ZIP that is read at most a directory's size at a time: `zipfile` reads it as a whole."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            size = MAX_DIRECTORY_BYTES + 1
        if size > MAX_DIRECTORY_BYTES + 1:
            raise zipfile.BadZipFile(
                f"its directory has {size} bytes; the limit is {MAX_DIRECTORY_BYTES}"
            )
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _in_zip(file: IO[bytes], limit: int) -> Iterator[Member | Failure]:
    try:
        archive = zipfile.ZipFile(cast(IO[bytes], _Directory(file)))
    except Exception as exc:  # zipfile raises many kinds for hostile bytes
        raise _DamagedArchive(f"not a sound ZIP: {exc or type(exc).__name__}") from exc
    with archive:
        for info in archive.infolist():
            name = info.filename
            if info.is_dir() or _is_hidden(name):
                continue
            if reason := _refused_in_zip(info):
                yield Failure(name, reason)
            elif info.file_size > limit:
                yield Failure(name, str(too_large(limit)))
            else:
                yield Member(name, info.file_size, _of_zip(archive, info))


def _refused_in_zip(info: zipfile.ZipInfo) -> str | None:
    if info.flag_bits & 0x1:
        return "encrypted, which is not read"
    if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        return f"compressed by method {info.compress_type}; 0 (stored) and 8 (deflated) are read"
    mode = info.external_attr >> 16
    return "a link, which is not followed" if stat.S_ISLNK(mode) else None


def _of_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            with archive.open(info) as member:
                return member.read(info.file_size + 1)
        except Exception as exc:
            raise ScoringError(f"damaged in the ZIP: {exc or type(exc).__name__}") from exc

    return read


class _Forward:
    """A file that is read from its beginning to its end, so much at a time.

    Attributes:
        allowance: how many bytes may be read.
        last: the bytes that were read last.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._at = 0
        self.allowance = MAX_HEADER_BYTES
        self.last = b""

    def check_end(self) -> None:
        """Raise ReadError if the last block is no end marker: `tarfile` just stops there."""
        if self.last.strip(b"\0") or not self.last:
            raise tarfile.ReadError("neither a header nor the end marker")

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        if size > self.allowance:
            raise tarfile.ReadError(f"a header of more than {MAX_HEADER_BYTES} bytes")
        self.allowance -= size
        self.last = self._file.read(size)
        self._at += len(self.last)
        return self.last

    def seek(self, place: int) -> None:
        while self._at < place:
            skipped = len(self._file.read(min(place - self._at, _SKIPPED_AT_ONCE)))
            if not skipped:
                return
            self._at += skipped


def _in_tar(name: str, file: IO[bytes], limit: int, *, packed: bool) -> Iterator[Member | Failure]:
    stream = _Forward(cast(IO[bytes], gzip.GzipFile(fileobj=file)) if packed else file)
    found = 0
    try:
        archive: Any = tarfile.TarFile(name, fileobj=cast(IO[bytes], stream))
        while member := archive.next():
            archive.members.clear()  # it would keep them all
            archive.pax_headers.clear()
            if not member.isdir() and not _is_hidden(member.name):
                found += 1
                yield _of_tar(archive, stream, member, limit)
            stream.allowance = MAX_HEADER_BYTES
        stream.check_end()
    except GeneratorExit:
        raise
    except Exception as exc:  # tarfile, gzip and zlib raise many kinds for hostile bytes
        raise _DamagedArchive(
            f"damaged at byte {stream.tell()} of the tar, after {found} files: "
            f"{exc or type(exc).__name__}; what follows cannot be read"
        ) from exc


def _of_tar(
    archive: Any, stream: _Forward, member: tarfile.TarInfo, limit: int
) -> Member | Failure:
    name = member.name
    if member.issym() or member.islnk():
        return Failure(name, "a link, which is not followed")
    if not member.isfile() or member.issparse():
        return Failure(name, "not a regular file")
    if member.size > limit:
        return Failure(name, str(too_large(limit)))

    def read() -> bytes:
        stream.allowance = member.size
        try:
            return cast(IO[bytes], archive.extractfile(member)).read()
        except Exception as exc:
            raise ScoringError(f"damaged in the tar: {exc or type(exc).__name__}") from exc

    return Member(name, member.size, read)


def _in_parquet(file: IO[bytes], limit: int) -> Iterator[Member | Failure]:
    import pyarrow.parquet as pq

    row = 0
    try:
        table = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
        column = _picture_column(table.schema_arrow)
        for group in range(table.num_row_groups):
            size = _size_of(table.metadata.row_group(group), column)
            rows = table.metadata.row_group(group).num_rows
            batch_rows = min(max(BATCH_BYTES * rows // max(size, 1), 1), BATCH_ROWS)
            for batch in table.iter_batches(
                batch_rows, row_groups=[group], columns=[column], use_threads=False
            ):
                for member in _in_cells(batch.column(0), row, limit):
                    row += 1
                    yield member
    except GeneratorExit:
        raise
    except Exception as exc:
        reason = str(exc).partition("\n")[0] or type(exc).__name__
        raise _DamagedArchive(f"not a sound Parquet file at row {row}: {reason}") from exc


def _picture_column(schema: Any) -> str:
    """Return the name of the column of pictures: `image`, or else the only one of bytes."""
    import pyarrow.types as kinds

    def holds_bytes(kind: Any) -> bool:
        if kinds.is_struct(kind):  # as Hugging Face's data sets have it
            return kind.get_field_index("bytes") >= 0 and holds_bytes(kind.field("bytes").type)
        return bool(kinds.is_binary(kind) or kinds.is_large_binary(kind))

    able = [field.name for field in schema if holds_bytes(field.type)]
    if _IMAGE in able:
        return _IMAGE
    if len(able) == 1:
        return cast(str, able[0])
    raise ValueError(
        f"pictures stand in a column `{_IMAGE}` or in the only one of bytes; of bytes are: "
        f"{', '.join(able) or 'none'}"
    )


def _size_of(group: Any, column: str) -> int:
    """Return the unpacked size of a column in a row group, in bytes; refuse a huge one."""
    chunks = (group.column(index) for index in range(group.num_columns))
    size = sum(
        int(chunk.total_uncompressed_size)
        for chunk in chunks
        if chunk.path_in_schema.partition(".")[0] == column
    )
    if size > MAX_GROUP_BYTES:
        raise ValueError(
            f"a row group has {size} bytes of pictures; the limit is {MAX_GROUP_BYTES}"
        )
    return size


def _in_cells(cells: Any, first: int, limit: int) -> Iterator[Member | Failure]:
    import pyarrow as pa
    import pyarrow.compute as pc

    names = pa.nulls(len(cells), pa.string())
    if pa.types.is_struct(cells.type):
        if cells.type.get_field_index("path") >= 0:
            names = pc.struct_field(cells, "path")
        cells = pc.struct_field(cells, "bytes")
    for row, (cell, path) in enumerate(zip(cells, names, strict=True), first):
        name = str(path.as_py() or f"row {row}")
        buffer = cell.as_buffer() if cell.is_valid else None
        if buffer is None:
            yield Failure(name, "no bytes")
        elif buffer.size > limit:
            yield Failure(name, str(too_large(limit)))
        else:
            yield Member(name, buffer.size, buffer.to_pybytes)
