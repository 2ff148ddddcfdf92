"""The files below a folder of the user's: which count, and which are passed over and why.

Folders that systems and devices leave, hidden ones, and what this package wrote are never data.
"""

import os
import tomllib
from collections import Counter
from collections.abc import Iterable, Set
from pathlib import Path
from typing import NamedTuple

from smallvit.core import places
from smallvit.core.errors import DataError
from smallvit.data.files.registry import DATASETS

_NAMES = tomllib.loads(Path(__file__).with_name("passed_over.toml").read_text("utf-8"))
LEFT_BY_SYSTEMS = frozenset(_NAMES["left_by_systems"])
# What tells a folder that this package wrote: any of these sets of files.
MARKER = ".smallvit"
_WRITTEN = (
    frozenset({MARKER}),
    frozenset({"run.lock"}),
    frozenset({"recipe.yaml", "result.json"}),
    frozenset({"leaderboard.json", "leaderboard.html"}),
    frozenset({"config.json", "model.safetensors"}),
    frozenset({"manifest.json", "train.images.npy"}),
)
# The folder of downloads, by the locks that fetching leaves.
_FETCHED = tuple(frozenset({f".{name}.lock"}) for name in DATASETS)
_MARKS = frozenset().union(*_WRITTEN, *_FETCHED)
# A picture of results can lie alone beside images: it has one of these names, and says who drew it.
PICTURES = frozenset(f"{name}.png" for name in _NAMES["pictures"])
_DRAWN_BY = (b"Software\0smallvit", b"Software\0Matplotlib")
_HEAD = 512  # bytes of a PNG in which its first texts are


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


class Walk(NamedTuple):
    """What lies below a folder.

    Attributes:
        files: Those that count, by name.
        passed: How many folders or files of each name or kind are passed over.
        written: Folders that this package wrote, by their paths below the folder.
        drawn: Folders with pictures of results, alone or beside images.
    """

    files: list[FoundFile]
    passed: dict[str, int]
    written: list[str]
    drawn: list[str]

    @property
    def notes(self) -> tuple[str, ...]:
        """What is passed over, in one line; none where nothing is."""
        parts = [f"{name} ({count})" for name, count in sorted(self.passed.items())]
        if self.written:
            more = len(self.written) - 1
            shown = f"{self.written[0]} and {more} more" if more else self.written[0]
            parts.append(f"{shown}, written by smallvit")
        return (f"passed over: {'; '.join(parts)}",) if parts else ()


def walk(root: Path, suffixes: Iterable[str]) -> Walk:
    """List the files below ``root``, without what is hidden, left by a system or written here.

    Args:
        root: Folder to search, with its sub-folders; links to folders are followed.
        suffixes: Lower-case endings that count, with their dot.

    Raises:
        DataError: If links of any name lead nowhere, or a link leads to a folder above it.
        OSError: If a folder cannot be read.
    """
    wanted = tuple(suffixes)
    found: list[FoundFile] = []
    passed: Counter[str] = Counter()
    written: list[str] = []
    drawn: set[str] = set()
    dangling: list[str] = []
    ours = _places_below(root)
    stack: list[tuple[str, str, frozenset[tuple[int, int]]]] = [("", os.fspath(root), frozenset())]
    while stack:
        prefix, folder, above = stack.pop()
        status = os.stat(folder)  # noqa: PTH116 (far faster)
        here = (status.st_dev, status.st_ino)
        if here in above:
            raise DataError(f"{folder} is a link to a folder that holds it: remove it")
        with os.scandir(folder) as scan:
            entries = list(scan)
        marks = {entry.name for entry in entries if entry.name in _MARKS}
        if prefix and marks and (is_written(marks) or any(each <= marks for each in _FETCHED)):
            written.append(prefix.rstrip("/"))
            continue
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                if entry.is_dir():
                    passed[f"folder {name}"] += 1
                elif name.lower().endswith(wanted):
                    passed["files ._*" if name.startswith("._") else "hidden files"] += 1
            elif entry.is_dir():
                if name.lower() in LEFT_BY_SYSTEMS:
                    passed[f"folder {name}"] += 1
                elif f"{prefix}{name}" in ours:
                    written.append(f"{prefix}{name}")
                else:
                    stack.append((f"{prefix}{name}/", entry.path, above | {here}))
            elif name.lower().endswith(wanted) and entry.is_file():
                if name in PICTURES and is_drawn(Path(entry.path)):
                    passed["pictures drawn by smallvit"] += 1
                    drawn.add(prefix.rstrip("/"))
                    continue
                stat = entry.stat()
                found.append(FoundFile(f"{prefix}{name}", stat.st_size, stat.st_mtime_ns))
            elif entry.is_symlink() and not entry.is_file():
                dangling.append(f"{prefix}{name}")
    if dangling:
        raise DataError(
            f"{root} has links to nothing ({len(dangling)}; the first: {min(dangling)}): bring "
            "back what they point to, or remove them"
        )
    return Walk(sorted(found), dict(passed), sorted(written), sorted(drawn))


def _places_below(root: Path) -> frozenset[str]:
    """Return this machine's folders of packed data and downloads, where they lie below."""
    top = root.resolve()
    folders = [each.resolve() for each in (places.cache_dir(), places.data_dir())]
    below = [each.relative_to(top).as_posix() for each in folders if each.is_relative_to(top)]
    return frozenset(below) - {"."}


def is_written(names: Set[str]) -> bool:
    """Tell from the names of its files whether this package wrote a folder."""
    return any(marks <= names for marks in _WRITTEN)


def is_drawn(path: Path) -> bool:
    """Tell whether a PNG is a picture of results, by the name of the program in its head."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    return any(text in head for text in _DRAWN_BY)


def mark_folder(folder: Path) -> None:
    """Mark a folder that is empty as written by this package, so that it is never read as data.

    One that holds anything else is left as it is: it may be the user's.

    Raises:
        OSError: If it cannot be written.
    """
    if not any(folder.iterdir()):
        (folder / MARKER).write_text("Written by smallvit, and never read as images.\n")
