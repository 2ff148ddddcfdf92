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

from smallvit.data.images import IMAGE_SUFFIXES


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
    """

    name: str
    key: str
    hflip: bool
    image_size: int | None
    list_images: Callable[[], Listing]


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
    """
    wanted = tuple(suffixes)
    found: list[FoundFile] = []
    stack = [("", os.fspath(root))]
    while stack:
        prefix, folder = stack.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    stack.append((f"{prefix}{entry.name}/", entry.path))
                elif entry.name.lower().endswith(wanted) and entry.is_file():
                    stat = entry.stat()
                    found.append(FoundFile(f"{prefix}{entry.name}", stat.st_size, stat.st_mtime_ns))
    return sorted(found)


def files_key(files: Iterable[FoundFile]) -> str:
    """Hash names, sizes and times of change."""
    lines = (f"{file.name}\0{file.size}\0{file.mtime_ns}\n" for file in files)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
