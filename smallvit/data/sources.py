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

from smallvit.core.errors import DataError
from smallvit.data.images import IMAGE_SUFFIXES
from smallvit.data.registry import AutoAugmentPolicy


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
    """

    name: str
    key: str
    hflip: bool
    image_size: int | None
    list_images: Callable[[], Listing]
    autoaugment: AutoAugmentPolicy = "imagenet"


class FoundFile(NamedTuple):  # a tuple: there can be hundreds of thousands
    """A file below a dataset's folder, with what tells whether it changed.

    Attributes:
        name: Path below the folder, with forward slashes.
        size: Bytes.
        mtime_ns: Time of change.
    """

    name: str
    size: int
    mtime_ns: int


def find_files(root: Path, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> list[FoundFile]:
    """List the files below ``root`` by name; hidden files and folders are passed over.

    Args:
        root: Folder to search, with its sub-folders; links to folders are followed.
        suffixes: Lower-case endings that count, with their dot.

    Raises:
        DataError: If links of any name lead nowhere, or a link leads to a folder above it.
        OSError: If a folder cannot be read.
    """
    wanted = tuple(suffixes)
    found: list[FoundFile] = []
    dangling: list[str] = []
    stack: list[tuple[str, str, frozenset[tuple[int, int]]]] = [("", os.fspath(root), frozenset())]
    while stack:
        prefix, folder, above = stack.pop()
        status = os.stat(folder)  # noqa: PTH116 (far faster)
        here = (status.st_dev, status.st_ino)
        if here in above:
            raise DataError(f"{folder} is a link to a folder that holds it: remove it")
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    stack.append((f"{prefix}{entry.name}/", entry.path, above | {here}))
                elif entry.name.lower().endswith(wanted) and entry.is_file():
                    stat = entry.stat()
                    found.append(FoundFile(f"{prefix}{entry.name}", stat.st_size, stat.st_mtime_ns))
                elif entry.is_symlink() and not entry.is_file():
                    dangling.append(f"{prefix}{entry.name}")
    if dangling:
        raise DataError(
            f"{root} has links to nothing ({len(dangling)}; the first: {min(dangling)}): bring "
            "back what they point to, or remove them"
        )
    return sorted(found)


def printable(name: str) -> str:
    """Replace what is not UTF-8 in the name of a file, which nothing could print or write."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def files_key(files: Iterable[FoundFile]) -> str:
    """Hash names, sizes and times of change."""
    lines = (f"{file.name}\0{file.size}\0{file.mtime_ns}\n" for file in files)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
