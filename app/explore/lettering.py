r"""Names of classes as they are written in pictures: any two of them look different.

A name is written in the first font that has all of its letters: Pillow's own, one that is shipped,
and those of the system. A letter that no font has, or that leaves no ink, is written as its escape
in Python, such as `\u5b57`; so is the backslash itself.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont, features

MAX_LABEL = 24
"""The most characters of a name in a picture."""

SHIPPED = str(Path(__file__).with_name("fonts") / "DejaVuSans.woff")
SYSTEM = (
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf",
    "PingFang.ttc",
    "msyh.ttc",
    "Arial Unicode.ttf",
    "unifont.otf",
)
"""Files that Pillow looks for in the folders of the system's fonts. Most are for Chinese, Japanese
and Korean, whose letters are too many to ship."""

_PROBE_SIZE = 16
_NO_CHARACTER = "\uffff"


@dataclass(frozen=True)
class Label:
    """A name as it is written."""

    text: str
    font: ImageFont.FreeTypeFont


def write_labels(names: Sequence[str], size: int) -> list[Label]:
    """Return the names as they are written, each of at most about `MAX_LABEL` characters.

    Args:
        names: any text.
        size: of the letters in pixels.
    """
    written = [_write(name) for name in names]
    seen = [" ".join(text.split()) for text, _ in written]  # nobody sees how many blanks there are
    times = Counter(seen)
    return [
        Label(text if times[look] == 1 else f"{text} ({index})", load_font(size, file))
        for index, ((text, file), look) in enumerate(zip(written, seen, strict=True))
    ]


@lru_cache(64)
def load_font(size: int, file: str | None = None) -> ImageFont.FreeTypeFont:
    """Return a font; without a file it is Pillow's own, which is the same on every machine.

    Raises:
        OSError: there is no such file, or it is no font of this size.
    """
    font = ImageFont.truetype(file, size) if file else ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise TypeError("Pillow was built without FreeType")
    return font


def _write(name: str) -> tuple[str, str | None]:
    """Return a name, shortened and with escapes, and the file of its font."""
    letters = list(name[: MAX_LABEL + 1])
    for file in _files():
        if all(_has(file, letter) for letter in letters):
            return _shortened(letters), file
    escaped = [letter if _has(SHIPPED, letter) else _escape(letter) for letter in letters]
    return _shortened(escaped), SHIPPED


def _files() -> Iterator[str | None]:
    yield None
    yield SHIPPED
    yield from _system_files()


@lru_cache(1)
def _system_files() -> list[str]:
    files = []
    for file in SYSTEM:
        try:
            load_font(_PROBE_SIZE, file)
        except OSError:
            continue
        files.append(file)
    return files


@lru_cache(4096)
def _has(file: str | None, letter: str) -> bool:
    """Return whether a font has a letter, as an image of its own that is not empty."""
    if letter == " ":
        return True
    if letter == "\\" or not letter.isprintable():
        return False
    # Without this library, which Pillow may lack, they would stand in the wrong order.
    if unicodedata.bidirectional(letter) in {"R", "AL"} and not features.check("raqm"):
        return False
    font = load_font(_PROBE_SIZE, file)
    image, missing = font.getmask(letter), font.getmask(_NO_CHARACTER)
    return image.getbbox() is not None and bytes(image) != bytes(missing)


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


def _shortened(pieces: list[str]) -> str:
    if len("".join(pieces)) <= MAX_LABEL:
        return "".join(pieces)
    while len("".join(pieces)) >= MAX_LABEL:
        pieces = pieces[:-1]
    return "".join(pieces) + "…"
