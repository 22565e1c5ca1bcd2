"""The official CIFAR-10 files (Krizhevsky 2009): their hashes, and the parsers of both layouts.

The python layout is pickled. Its files are read only after their hash was checked, by an unpickler
that can build nothing but plain containers and numpy arrays.
"""

import hashlib
import io
import pickle
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from training.errors import DataError
from training.vision import import_torchvision

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
ARCHIVE_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
RECORD_BYTES = 1 + 3 * 32 * 32

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


@dataclass(frozen=True)
class Layout:
    """One of the two forms in which CIFAR-10 is published.

    Attributes:
        folder: the folder's official name.
        train: the files of the training split, in order.
        test: the file of the test split.
        algorithm: the name of the hash.
        digests: the known hash of every file.
        parse: turns a file's bytes into planes, uint8 `[N,3072]`, and labels, int64 `[N]`.
    """

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    algorithm: str
    digests: dict[str, str]
    parse: Callable[[bytes], Arrays]

    def verify(self, folder: Path) -> str:
        """Check every file against its known hash and return the SHA-256 over all of them.

        Raises:
            DataError: a file is missing or differs; the message names the first, with both hashes.
        """
        overall = hashlib.sha256()
        for name in self.train + self.test:
            overall.update(hashlib.sha256(self._read_verified(folder / name)).digest())
        return overall.hexdigest()

    def read(self, folder: Path, files: tuple[str, ...]) -> Arrays:
        """Return images uint8 `[N,32,32,3]` and labels int64 `[N]` of some of the files.

        Raises:
            DataError: a file is missing or differs from its known hash.
        """
        parts = [self.parse(self._read_verified(folder / name)) for name in files]
        planes = np.concatenate([part[0] for part in parts]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([part[1] for part in parts])
        return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels

    def _read_verified(self, path: Path) -> bytes:
        expected = self.digests[path.name]
        try:
            data = path.read_bytes()
        except OSError as exc:
            raise DataError(
                f"{path}: {exc.strerror}; expected {self.algorithm} {expected}"
            ) from exc
        found = hashlib.new(self.algorithm, data, usedforsecurity=False).hexdigest()
        if found != expected:
            raise DataError(
                f"{path}: holds {len(data)} bytes with {self.algorithm} {found}; "
                f"expected {expected}"
            )
        return data


def download(place: Path) -> None:
    """Fetch the official binary archive into `place`, check it and unpack it.

    Raises:
        DataError: the archive cannot be fetched or stored, or differs from its known hash.
    """
    utils = import_torchvision().datasets.utils
    archive = place / ARCHIVE_URL.rpartition("/")[2]
    existed = place.exists()
    try:
        utils.download_and_extract_archive(ARCHIVE_URL, str(place), md5=ARCHIVE_MD5)
    except (OSError, RuntimeError, HTTPException) as exc:
        reason = str(exc)
        if archive.is_file():
            found = utils.calculate_md5(archive)
            reason += f" ({archive} has md5 {found}; expected {ARCHIVE_MD5})"
        elif not existed:
            with suppress(OSError):
                place.rmdir()
        raise DataError(
            f"{place}: holds no data set, and CIFAR-10 cannot be downloaded from {ARCHIVE_URL}: "
            f"{reason}"
        ) from exc


class _ArrayUnpickler(pickle.Unpickler):
    """Builds the classes of the official files, and refuses every other class."""

    ALLOWED: ClassVar = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _parse_binary(data: bytes) -> Arrays:
    records = np.frombuffer(data, np.uint8).reshape(-1, RECORD_BYTES)
    return records[:, 1:], records[:, 0].astype(np.int64)


def _parse_python(data: bytes) -> Arrays:
    try:
        content = _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
        return content[b"data"], np.array(content[b"labels"], np.int64)
    except (pickle.UnpicklingError, KeyError, TypeError, ValueError) as exc:
        raise DataError(f"not a CIFAR-10 batch: {exc}") from exc


BINARY = Layout(
    folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test=("test_batch.bin",),
    algorithm="sha256",
    digests={
        "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
        "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
        "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
        "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
        "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
        "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
    },
    parse=_parse_binary,
)

# torchvision and the archive's own page publish MD5 sums for these files, no SHA-256.
PYTHON = Layout(
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test=("test_batch",),
    algorithm="md5",
    digests={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
    parse=_parse_python,
)
