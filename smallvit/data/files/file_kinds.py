"""What a file holds in place of an image or a table, told by its first bytes."""

import re
from pathlib import Path

from smallvit.core.errors import DataError

HTML = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head)", re.IGNORECASE)
_LFS = b"version https://git-lfs.github.com/spec/"


def what_instead(content: bytes) -> str | None:
    """Say what stands in place of a file, with what to do; ``None`` for anything else.

    Args:
        content: The file, or its first bytes.
    """
    if content.startswith(_LFS):
        return (
            "a pointer of Git LFS, the file itself was not fetched: run `git lfs pull` in that "
            "clone"
        )
    if content.lstrip()[:64].startswith(b"404:") or content.strip() in (b"404", b"Not Found"):
        return "a server's answer that the file is not there: download it again"
    if HTML.match(content[:512]):
        return "a web page, which a server sent in place of the file: download it again"
    return None


def refuse_stand_in(path: Path) -> None:
    """Refuse a file that holds something in place of its data.

    Raises:
        DataError: With what it holds and what to do.
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        instead = what_instead(file.read(512))
    if instead is not None:
        raise DataError(f"{path} is {instead}")


def kind_of(content: bytes) -> str:
    """Name the format of a file that is no image that is read."""
    if content[4:8] == b"ftyp":
        return "HEIC or another format"
    for start, name in _STARTS.items():
        if content.startswith(start):
            return f"{name}, of a format"
    return "no image, or of a format"


_STARTS = {
    b"PK\x03\x04": "a zip archive",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"<?xml": "XML or SVG",
    b"<svg": "SVG",
    b"\x00\x00\x00\x0cjP": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
    b"8BPS": "Photoshop",
    b"v/1\x01": "OpenEXR",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "HDF5",
    b"RIFF": "a RIFF file",
}
