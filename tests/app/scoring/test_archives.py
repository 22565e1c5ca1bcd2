import bz2
import gzip
import io
import os
import stat
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.errors import ScoringError
from app.local import Failure
from app.scoring import archives
from app.scoring.archives import Member, members

LIMIT = 1000
TOO_LARGE = f"holds more than {LIMIT} bytes; CONVSCOPE_MAX_BODY_BYTES is the limit"
LINK = "a link, which is not followed"


def read(name: str, data: bytes) -> list[tuple[str, bytes | str]]:
    """Return the name of each member, and its bytes or the reason why there are none."""
    found: list[tuple[str, bytes | str]] = []
    for member in members(name, io.BytesIO(data), LIMIT):
        if isinstance(member, Failure):
            found.append((member.filename, member.error))
            continue
        try:
            found.append((member.name, member.read()))
        except ScoringError as exc:
            found.append((member.name, str(exc)))
    return found


def make_zip(
    *files: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_STORED
) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return buffer.getvalue()


def make_tar(*files: tuple[str | tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info.isreg():
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def make_parquet(table: pa.Table, rows: int = 1000) -> bytes:
    buffer = io.BytesIO()
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(table, buffer, row_group_size=rows, **plain)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.zip", make_zip(("x/1.png", b"one"), ("2.png", b"two"))),
        ("A.ZIP", make_zip(("x/1.png", b"one"), ("2.png", b"two"), method=zipfile.ZIP_DEFLATED)),
        ("a.tar", make_tar(("x/1.png", b"one"), ("2.png", b"two"))),
        ("a.tgz", gzip.compress(make_tar(("x/1.png", b"one"), ("2.png", b"two")))),
        (
            "a.parquet",
            make_parquet(
                pa.table(
                    {
                        "image": [
                            {"bytes": b"one", "path": "x/1.png"},
                            {"bytes": b"two", "path": "2.png"},
                        ],
                        "mask": [b"no", b"picture"],
                    }
                )
            ),
        ),
    ],
)
def test_members_come_in_their_order_with_name_and_bytes(name: str, data: bytes) -> None:
    assert read(name, data) == [("x/1.png", b"one"), ("2.png", b"two")]


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", "C:\\x.png"])
def test_a_hostile_name_is_a_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read("a.tar", make_tar((name, b"one"))) == [(name, b"one")]
    assert read("a.zip", make_zip((name, b"one"))) == [(name, b"one")]
    assert not list(tmp_path.iterdir())


def test_folders_and_hidden_files_do_not_count() -> None:
    hidden = [("x/", b""), ("x/.DS_Store", b"1"), (".git/a.png", b"2"), ("__MACOSX/._a.png", b"3")]
    folder = tarfile.TarInfo("x")
    folder.type = tarfile.DIRTYPE
    assert read("a.zip", make_zip(*hidden)) == []
    assert read("a.tar", make_tar((folder, b""), *hidden[1:])) == []


def test_members_over_the_limit_are_not_unpacked() -> None:
    bomb = bytes(200_000_000)
    tracemalloc.start()
    try:
        packed = make_zip(("bomb.png", bomb), ("1.png", b"one"), method=zipfile.ZIP_DEFLATED)
        tar = gzip.compress(make_tar(("bomb.png", bomb), ("1.png", b"one")), 1)
        del bomb
        tracemalloc.reset_peak()
        expected = [("bomb.png", TOO_LARGE), ("1.png", b"one")]
        assert read("a.zip", packed) == expected
        assert read("a.tar.gz", tar) == expected
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()


def test_a_zip_that_lies_about_a_size_gives_no_more_than_it_says() -> None:
    data = make_zip(("bomb.png", bytes(1_000_000)), method=zipfile.ZIP_DEFLATED)
    lie = data.replace(struct.pack("<L", 1_000_000), struct.pack("<L", 10))
    ((name, said),) = read("a.zip", lie)
    assert name == "bomb.png"
    assert said == "damaged in the ZIP: Bad CRC-32 for file 'bomb.png'"


def test_what_a_zip_holds_that_is_not_read_has_a_reason() -> None:
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    packed = zipfile.ZipInfo("packed.png")
    packed.compress_type = zipfile.ZIP_BZIP2
    data = bytearray(make_zip((link, b"/etc/passwd"), (packed, b"1"), ("secret.png", b"2")))
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.rfind(signature) + flags] |= 1
    assert read("a.zip", bytes(data)) == [
        ("link.png", LINK),
        ("packed.png", "compressed by method 12; 0 (stored) and 8 (deflated) are read"),
        ("secret.png", "encrypted, which is not read"),
    ]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_in_a_tar_are_not_followed(kind: bytes) -> None:
    link = tarfile.TarInfo("link.png")
    link.type, link.linkname = kind, "/etc/passwd"
    assert read("a.tar", make_tar((link, b""), ("1.png", b"one"))) == [
        ("link.png", LINK),
        ("1.png", b"one"),
    ]


def test_devices_in_a_tar_are_not_read() -> None:
    pipe = tarfile.TarInfo("pipe.png")
    pipe.type = tarfile.FIFOTYPE
    assert read("a.tar", make_tar((pipe, b""))) == [("pipe.png", "not a regular file")]


def test_a_damaged_member_of_a_zip_leaves_the_others() -> None:
    data = make_zip(("1.png", b"one"), ("2.png", b"two"), ("3.png", b"three"))
    assert read("a.zip", data.replace(b"two", b"twa")) == [
        ("1.png", b"one"),
        ("2.png", "damaged in the ZIP: Bad CRC-32 for file '2.png'"),
        ("3.png", b"three"),
    ]


def test_a_zip_without_its_directory_says_so() -> None:
    data = make_zip(("1.png", b"one"), ("2.png", b"two"))
    assert read("a.zip", data[:-30]) == [("a.zip", "not a sound ZIP: File is not a zip file")]


def test_a_zip_with_a_huge_directory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_DIRECTORY_BYTES", 80_000)
    data = make_zip(*((f"{number:0100}.png", b"") for number in range(1000)))
    ((name, said),) = read("a.zip", data)
    assert name == "a.zip"
    assert said == "not a sound ZIP: its directory has 150000 bytes; the limit is 80000"


TAR = make_tar(("1.png", b"one"), ("2.png", b"two"), ("3.png", b"three"))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (TAR[:1024] + b"\xff" * 512 + TAR[1536:], "at byte 1536 of the tar, after 1 files"),
        (TAR[:1600], "at byte 1600 of the tar, after 2 files: unexpected end of data"),
        (TAR[:1024], "at byte 1024 of the tar, after 1 files"),
        (TAR[:100], "at byte 100 of the tar, after 0 files"),
        (b"", "at byte 0 of the tar, after 0 files: empty file"),
    ],
)
def test_a_tar_that_is_damaged_says_where_after_what_was_read(data: bytes, said: str) -> None:
    *before, (name, reason) = read("a.tar", data)
    assert [entry[0] for entry in before] == ["1.png", "2.png", "3.png"][: len(before)]
    assert name == "a.tar"
    assert isinstance(reason, str)
    assert reason.startswith(f"damaged {said}")
    assert reason.endswith("; what follows cannot be read")


def test_a_tar_that_ends_within_its_compressed_bytes_says_so() -> None:
    random = os.urandom(900)
    data = gzip.compress(make_tar(*((f"{number}.png", random) for number in range(9))))
    *before, (name, reason) = read("a.tar.gz", data[:-30])
    assert before[0] == ("0.png", random)
    assert (name, "Compressed file ended" in str(reason)) == ("a.tar.gz", True)


def test_a_file_that_is_no_gzip_says_so() -> None:
    ((name, reason),) = read("a.tar.gz", bz2.compress(TAR))
    assert name == "a.tar.gz"
    assert "Not a gzipped file" in str(reason)


def test_a_tar_with_a_huge_header_is_refused_before_it_is_read() -> None:
    info = tarfile.TarInfo("1.png")
    info.pax_headers = {"comment": "x" * 100_000}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info)
    ((name, reason),) = read("a.tar", buffer.getvalue())
    assert name == "a.tar"
    assert "a header of more than 65536 bytes" in str(reason)


def test_a_tar_of_many_members_takes_no_more_memory() -> None:
    def peak(count: int) -> int:
        data = io.BytesIO(make_tar(*((f"{number}.png", b"") for number in range(count))))
        tracemalloc.start()
        try:
            assert sum(isinstance(each, Member) for each in members("a.tar", data, LIMIT)) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(4000) < peak(400) + 100_000


def test_cells_without_a_picture_have_a_reason() -> None:
    cells = pa.array([b"one", None, bytes(LIMIT + 1), bytes(LIMIT)])
    table = pa.table({"label": [0, 1, 2, 3], "png": cells})
    assert read("a.parquet", make_parquet(table)) == [
        ("row 0", b"one"),
        ("row 1", "no bytes"),
        ("row 2", TOO_LARGE),
        ("row 3", bytes(LIMIT)),
    ]


def test_a_null_picture_has_a_reason() -> None:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells = pa.array([None, {"bytes": None, "path": "1.png"}], kind)
    assert read("a.parquet", make_parquet(pa.table({"image": cells}))) == [
        ("row 0", "no bytes"),
        ("1.png", "no bytes"),
    ]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (pa.table({"label": [1]}), "of bytes are: none"),
        (pa.table({"one": [b"1"], "two": [b"2"]}), "of bytes are: one, two"),
    ],
)
def test_a_parquet_file_without_one_column_of_pictures_is_refused(
    table: pa.Table, said: str
) -> None:
    ((name, reason),) = read("a.parquet", make_parquet(table))
    assert name == "a.parquet"
    assert str(reason).endswith(said)


def test_a_parquet_file_that_is_damaged_says_at_which_row() -> None:
    cells = [f"picture {number}".encode() * 20 for number in range(4)]
    data = bytearray(make_parquet(pa.table({"image": cells}), rows=2))
    place = data.index(b"picture 2") - 30  # the header of the second row group's page
    data[place : place + 15] = b"\xff" * 15
    first, second, (name, reason) = read("a.parquet", bytes(data))
    assert (first, second) == (("row 0", cells[0]), ("row 1", cells[1]))
    assert name == "a.parquet"
    assert str(reason).startswith("not a sound Parquet file at row 2: ")


def test_a_parquet_file_with_a_huge_row_group_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_GROUP_BYTES", 100)
    ((name, reason),) = read("a.parquet", make_parquet(pa.table({"image": [bytes(900)]})))
    assert name == "a.parquet"
    assert "bytes of pictures; the limit is 100" in str(reason)


def test_what_is_no_parquet_file_says_so() -> None:
    ((name, reason),) = read("a.parquet", b"no such thing")
    assert name == "a.parquet"
    assert str(reason).startswith("not a sound Parquet file at row 0: ")
