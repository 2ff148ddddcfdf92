"""What every reader returns: the images of a dataset, listed by split and not yet decoded.

``official.py`` reads the datasets known by name, ``own.py`` folders and tables of the user's;
``store.py`` decodes each image once.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from smallvit.data.config import AutoAugmentPolicy
from smallvit.data.files.images import IMAGE_SUFFIXES, open_image
from smallvit.data.files.walk import FoundFile, walk

READER_VERSION = 1  # of the readers of the user's own data


@dataclass(frozen=True, kw_only=True)
class SourceSplit:
    """The undecoded images of one split, in a fixed order.

    Attributes:
        names: Name of each image, for messages; a file's path below the dataset's folder.
        labels: Class index of each image, int64; all -1 where images carry no labels.
        read: Opens image ``i``, which may be decoded later; raises any exception where that file
            is broken. Called from several threads at once.
    """

    names: Sequence[str]
    labels: np.ndarray
    read: Callable[[int], Image.Image]


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The images of a dataset.

    Attributes:
        class_names: Names in the order of the labels; empty where images carry no labels.
        splits: By name (``"train"``, ``"val"``, ``"test"``); ``"train"`` alone where the dataset
            comes in one piece.
    """

    class_names: tuple[str, ...]
    splits: dict[str, SourceSplit]


class Columns(NamedTuple):
    """Columns of the images and labels of a table that the user named."""

    image: str | None = None
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """A dataset before packing.

    Attributes:
        name: Name in run folders and result tables.
        key: Hash of what would be read, so that a changed source is packed anew; cheap, since it
            is formed whenever the dataset is opened.
        hflip: Whether a mirrored image keeps its class.
        image_size: Side that the dataset is usually packed at, in pixels; ``None`` where the
            images decide.
        list_images: Lists the images; called when they are packed, and may take seconds.
        autoaugment: Which of AutoAugment's published policies suits it.
        kind: How the images were read, in a few words; empty for a dataset known by name.
        notes: What was passed over or left out, a line each.
        by_content: Whether its images are put in the order of their contents; those of a known
            dataset keep their published order, which other archives are aligned to.
    """

    name: str
    key: str
    hflip: bool
    image_size: int | None
    list_images: Callable[[], Listing]
    autoaugment: AutoAugmentPolicy = "imagenet"
    kind: str = ""
    notes: tuple[str, ...] = ()
    by_content: bool = False


def file_split(
    root: Path, names: Sequence[str], labels: Sequence[int] | np.ndarray | None = None
) -> SourceSplit:
    """List image files by their paths below a folder; an absolute one stays as it is."""
    top = os.fspath(root)
    return SourceSplit(
        names=list(map(printable, names)),
        labels=_as_labels(labels, len(names)),
        read=lambda i: open_image(os.path.join(top, names[i])),  # noqa: PTH118 (far faster)
    )


def array_split(
    names: Sequence[str], pixels: np.ndarray, labels: Sequence[int] | np.ndarray | None = None
) -> SourceSplit:
    """List the images of an array.

    Args:
        names: Name of each image.
        pixels: Grey values (N, H, W) of any number of bits, or bytes (N, H, W, 3).
        labels: Class index of each image; ``None`` where they carry none.
    """
    # PIL's modes for grey of more than 8 bits.
    wide = np.float32 if pixels.dtype.kind == "f" else np.int32
    kind = pixels.dtype if pixels.dtype in (np.uint8, np.uint16) else wide
    return SourceSplit(
        names=names,
        labels=_as_labels(labels, len(names)),
        read=lambda i: Image.fromarray(np.ascontiguousarray(pixels[i]).astype(kind, copy=False)),
    )


def _as_labels(labels: Sequence[int] | np.ndarray | None, num: int) -> np.ndarray:
    return np.full(num, -1) if labels is None else np.asarray(labels, dtype=np.int64)


def find_files(root: Path, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> list[FoundFile]:
    """List the files below ``root`` by name, as ``walk.walk`` does.

    Args:
        root: Folder to search, with its sub-folders; links to folders are followed.
        suffixes: Lower-case endings that count, with their dot.

    Raises:
        DataError: If links of any name lead nowhere, or a link leads to a folder above it.
        OSError: If a folder cannot be read.
    """
    return walk(root, suffixes).files


def printable(name: str) -> str:
    """Replace what is not UTF-8 in the name of a file, which nothing could print or write."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def files_key(files: Iterable[FoundFile]) -> str:
    """Hash names, sizes and times of change."""
    lines = (f"{file.name}\0{file.size}\0{file.mtime_ns}\n" for file in files)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def source_key(*parts: object) -> str:
    """Hash what the user's own data is read from and how."""
    return hashlib.sha256(repr((READER_VERSION, *parts)).encode()).hexdigest()


def own_source(
    path: Path,
    kind: str,
    key: Iterable[object],
    list_images: Callable[[], Listing],
    *,
    layout: object = None,
    notes: Iterable[str] = (),
) -> Source:
    """Describe images of the user's.

    Args:
        path: File or folder, whose name the dataset gets.
        kind: How they are read, in a few words.
        key: What tells whether they changed.
        list_images: Lists them.
        layout: As the user named it, if at all.
        notes: What was passed over or left out, a line each.
    """
    return Source(
        name=printable(path.name if path.is_dir() else path.stem),
        key=source_key(*key, *([] if layout is None else [repr(layout)])),
        hflip=True,
        image_size=None,
        list_images=list_images,
        kind=kind,
        notes=tuple(notes),
    )
