"""The input of a scoring run: from the words of a command line to shards of pictures.

`walk` finds files; its lines are kept beside the results, so that a run that goes on has the same
input. `read_shards` makes shards of them, in an order and with bounds that depend on nothing else.
The pictures of archives travel with their bytes, all others by name, and are read where they are
scored. Places with `://` are read by pyarrow's file systems.
"""

import json
import os
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from glob import glob
from os.path import abspath, lexists
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, cast

from app.commands import as_unicode
from app.errors import ScoringError
from app.local import STANDARD_INPUT, Failure, File, find_files
from app.scoring.archives import Member, is_archive, members

SHARD_PICTURES = 512
SHARD_BYTES = 16 << 20
"""A shard ends before the picture with which it would be larger."""

_REMOTE = "://"


class Remote(NamedTuple):
    """A file that one of pyarrow's file systems reads.

    Attributes:
        uri: of the place that the command line names; it may hold credentials.
        name: of the file, without them.
    """

    uri: str
    name: str


Item = str | Remote | File | Failure
"""A picture: the path of a local file, a file elsewhere, bytes, or the reason why there are none.
"""


@dataclass(frozen=True)
class Shard:
    """Pictures that are scored together.

    Attributes:
        number: of the shard, from 0.
        first: the number of its first picture in the whole input.
        items: the pictures.
        archives: of each picture, the name of the archive that holds it.
    """

    number: int
    first: int
    items: Sequence[Item]
    archives: Sequence[str | None]


def absolute(word: str) -> str:
    """Return a word of the command line as it means the same in every process."""
    return word if _REMOTE in word or word == STANDARD_INPUT else abspath(word)  # noqa: PTH100 - keeps links


def walk(words: Sequence[str], left_out: Path) -> Iterator[str]:
    """Yield a line for each file that words name: the number of the word, name, size, time.

    A file or folder that cannot be read has the reason instead of size and time.

    Args:
        words: files, folders, patterns and URIs.
        left_out: a folder whose files do not count.

    Raises:
        ScoringError: a word names nothing.
    """
    for number, word in enumerate(words):
        for entry in _walk_remote(word) if _REMOTE in word else _walk_local(word, left_out):
            yield json.dumps([number, *entry])


def count_pictures(lines: Iterable[str]) -> int | None:
    """Return the number of pictures that lines of `walk` name; None if some are in archives."""
    count = 0
    for line in lines:
        if is_archive(json.loads(line)[1]):
            return None
        count += 1
    return count


def _walk_local(word: str, left_out: Path) -> Iterator[tuple[object, ...]]:
    if word == STANDARD_INPUT:
        raise ScoringError("-: standard input cannot be read a second time; name a file")
    if not lexists(word) and not glob(word, recursive=True):  # noqa: PTH207 - of text
        raise ScoringError(f"{word}: no such file or folder")
    for found in find_files([word], left_out):
        try:
            if isinstance(found, str):
                status = os.stat(found)  # noqa: PTH116 - there may be very many
                yield found, status.st_size, status.st_mtime_ns
            else:
                yield found.filename, found.error
        except OSError as exc:
            yield cast(str, found), exc.strerror or str(exc)


def _walk_remote(uri: str) -> Iterator[tuple[object, ...]]:
    from pyarrow.fs import FileSelector, FileType

    system, path = _file_system(uri)
    scheme = uri.partition(_REMOTE)[0]
    try:
        (info,) = system.get_file_info([path])
        if info.type == FileType.NotFound:
            raise ScoringError(f"{scheme}{_REMOTE}{path}: no such file or folder")
        whole = FileSelector(path, recursive=True)
        infos = [info] if info.type == FileType.File else system.get_file_info(whole)
    except OSError as exc:
        raise ScoringError(f"{scheme}{_REMOTE}{path}: {exc}") from exc
    for info in sorted(infos, key=lambda info: cast(str, info.path)):
        below = PurePosixPath(info.path.removeprefix(path))
        if info.type == FileType.File and not any(part.startswith(".") for part in below.parts):
            yield f"{scheme}{_REMOTE}{info.path}", info.size, info.mtime_ns


@lru_cache
def _file_system(uri: str) -> tuple[Any, str]:
    from pyarrow.fs import FileSystem

    try:
        return cast(tuple[Any, str], FileSystem.from_uri(uri))
    except (OSError, ValueError) as exc:
        scheme = uri.partition(_REMOTE)[0]
        raise ScoringError(f"{scheme}{_REMOTE}…: {str(exc).replace(uri, '…')}") from exc


def fetch(item: Item, limit: int) -> str | File | Failure:
    """Return an item as a local path or with its bytes; read at most one byte more than a limit."""
    if not isinstance(item, Remote):
        return item
    try:
        with _open(item) as file:
            return File(item.name, file.read(limit + 1))
    except (OSError, ScoringError) as exc:
        return Failure(item.name, str(exc))


def _open(item: str | Remote) -> IO[bytes]:
    if isinstance(item, str):
        return Path(item).open("rb")
    system, _ = _file_system(item.uri)
    return cast(IO[bytes], system.open_input_file(item.name.partition(_REMOTE)[2]))


class _Picture(NamedTuple):
    """A picture before it is read: its archive, its size in bytes, and how to get it."""

    archive: str | None
    size: int
    item: Callable[[], Item]


def read_shards(
    lines: Iterable[str], words: Sequence[str], done: Container[int], limit: int
) -> Iterator[Shard]:
    """Yield the shards that are not done yet.

    Args:
        lines: of `walk`.
        words: of the command line.
        done: the numbers of shards that are left out; little of them is read.
        limit: the most bytes of a picture.
    """
    number = first = count = size = 0
    items: list[Item] = []
    archives: list[str | None] = []
    for picture in _pictures(lines, words, limit):
        if count == SHARD_PICTURES or (count and size + picture.size > SHARD_BYTES):
            if items:
                yield Shard(number, first, items, archives)
            number, first, count, size = number + 1, first + count, 0, 0
            items, archives = [], []
        if number not in done:
            items.append(picture.item())
            archives.append(None if picture.archive is None else as_unicode(picture.archive))
        count, size = count + 1, size + picture.size
    if items:
        yield Shard(number, first, items, archives)


def _pictures(lines: Iterable[str], words: Sequence[str], limit: int) -> Iterator[_Picture]:
    for line in lines:
        number, name, *about = json.loads(line)
        if len(about) == 1:
            yield _failed(None, Failure(name, about[0]))
            continue
        place = Remote(words[number], name) if _REMOTE in words[number] else name
        if is_archive(name):
            yield from _in_archive(name, place, limit)
        else:
            # A larger file is not read.
            yield _Picture(None, about[0] if about[0] <= limit else 0, _constant(place))


def _in_archive(name: str, place: str | Remote, limit: int) -> Iterator[_Picture]:
    try:
        file = _open(place)
    except OSError as exc:
        yield _failed(None, Failure(name, exc.strerror or str(exc)))
        return
    with file:
        for member in members(name, file, limit):
            if isinstance(member, Failure):
                yield _failed(None if member.filename == name else name, member)
            else:
                yield _Picture(name, member.size, partial(_read, member))


def _read(member: Member) -> File | Failure:
    try:
        return File(member.name, member.read())
    except ScoringError as exc:
        return Failure(member.name, str(exc))


def _failed(archive: str | None, failure: Failure) -> _Picture:
    return _Picture(archive, 0, _constant(failure))


def _constant(item: Item) -> Callable[[], Item]:
    return lambda: item
