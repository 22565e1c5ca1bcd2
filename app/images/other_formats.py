"""Formats of pictures by their first bytes: AVIF, and those that are refused by name."""

import re

MAX_HEAD_BYTES = 1024
"""The most bytes in which a format is looked for; only that of SVG may stand behind a comment."""

MAX_BRAND_BYTES = 256
"""The most bytes in which the brands of a HEIF or AVIF are looked for; about thirty are usual."""

HEIC = "HEIC"

_FORMATS = {
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n",
    "JPEG 2000": rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n",
    "JPEG XR": rb"II\xbc",
    "Camera raw": rb"II\*\0\x10\0\0\0CR|FUJIFILMCCD|IIR[OS]|MMOR|IIU\0|FOVb|\0MRM|II\x1a\0.{2}HEAP",
    "PSD": rb"8BPS",
    "XCF": rb"gimp xcf",
    "SVG": rb"(?:\xef\xbb\xbf)?\s*<(?:svg|[?!].*?<svg)[\s/>]",
    "PDF": rb"%PDF-",
    "PostScript": rb"%!PS|\xc5\xd0\xd3\xc6",
    "ICO": rb"\0\0[\1\2]\0[^\0]",
    "ICNS": rb"icns",
    "Netpbm": rb"P[1-7]\s",
    "OpenEXR": rb"\x76\x2f\x31\x01",
    "Radiance HDR": rb"#\?RADIANCE",
    "DICOM": rb".{128}DICM",
    "DDS": rb"DDS ",
    "QOI": rb"qoif",
    "MNG": rb"\x8a[MJ]NG\r\n|\x8bJNG\r\n",
}
_SIGNATURES = {name: re.compile(pattern, re.DOTALL) for name, pattern in _FORMATS.items()}

_HEIF = frozenset(
    {b"mif1", b"mif2", b"mif3", b"msf1", b"miaf", b"MiHE", b"MiPr"}
    | {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
    | {b"avci", b"avcs", b"jpeg", b"jpgs", b"j2ki", b"j2is", b"vvic", b"vvis", b"unif"}
)
_AVIF = frozenset({b"avif", b"avis"})
_CAMERA_RAW = frozenset({b"crx "})


def is_avif(data: bytes) -> bool:
    """Return whether a file names AVIF among its brands."""
    return bool(_brands(data) & _AVIF)


def name_of(data: bytes) -> str | None:
    """Return the name of the format of a file that is in none of the formats that are read.

    None means that it is in none of these formats either.
    """
    brands = _brands(data)
    if brands:
        return HEIC if brands & _HEIF else "Camera raw" if brands & _CAMERA_RAW else None
    head = data[:MAX_HEAD_BYTES]
    return next((name for name, each in _SIGNATURES.items() if each.match(head)), None)


def _brands(data: bytes) -> set[bytes]:
    """Return the brands of a file that begins with a box `ftyp` (ISO 14496-12, 4.3)."""
    if data[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(data[:4], "big"), MAX_BRAND_BYTES)
    return {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}
