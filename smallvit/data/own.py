"""Readers of the user's own images: folders and CSV tables; ``parquet.py`` reads parquet files.

Everything is checked before an image is decoded: a file that is missing or named twice, an image
that belongs to no class or split, a class that a split lacks. Nothing is left out in silence.
"""

import csv
import hashlib
import io
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from smallvit.core.errors import ConfigError, DataError
from smallvit.data.class_lists import (
    SPLIT_NAMES,
    check_class_lists,
    check_enough_classes,
    check_every_class,
    order_classes,
    plural,
    read_split_name,
    some,
)
from smallvit.data.images import IMAGE_SUFFIXES, UNREAD_SUFFIXES, open_image
from smallvit.data.parquet import list_parquet, parquet_splits
from smallvit.data.sources import (
    FoundFile,
    Listing,
    Source,
    SourceSplit,
    files_key,
    find_files,
    printable,
)

READER_VERSION = 1


def open_path(
    path: Path, *, image_column: str | None = None, label_column: str | None = None
) -> Source:
    """Open the user's images: a folder, a ``.csv`` file, a ``.parquet`` file or a folder of them.

    **Class folders**, with or without split folders above them (train, val | valid | validation and
    test, in any case of letters). A class is the first folder below the split and takes the images
    of deeper folders too; classes are in alphabetical order. Every class needs an image in every
    split. Images that lie beside class folders, or outside the split folders, are refused, and so
    are images in a format that is not read. Hidden files and files whose suffix is no image's are
    passed over.

    **Images without class folders** are unlabelled: no class names, all labels -1. Where the train
    folder is such a folder, it alone is read and val and test folders are not.

    **CSV**: UTF-8 with a header and the columns ``image_path`` (relative to the CSV's folder, or
    absolute), ``label`` (any text) and, if wanted, ``split`` (as the folders' names); separated by
    commas, semicolons or tabs; other columns are ignored. Classes are in alphabetical order, or in
    numerical order where all are integers. Without a label column the images are unlabelled and
    only the rows of train are read. The content of a file decides its format, whatever its suffix.

    **Parquet**: see ``list_parquet``. In a folder, file names or else sub-folders that begin with
    train, val or test give the split; where none does, all is train.

    Args:
        path: The folder or file.
        image_column: Column of the images in a table; ``None`` is ``image_path`` in a CSV and the
            one column of images in parquet files.
        label_column: Column of the labels in a table; ``None`` is ``label`` in a CSV, and in
            parquet files the one column that says it holds class labels, else ``label``.

    Raises:
        ConfigError: If a column is given that is not there or of no use, or none is given where
            several would do.
        DataError: If there is nothing at ``path``, or what is there cannot be used whole.
    """
    columns = _Columns(image=image_column, label=label_column)
    suffix = path.suffix.lower()
    try:
        if path.is_dir():
            return _open_directory(path, columns)
        if path.is_file() and suffix == ".csv":
            return _open_csv(path, columns)
        if path.is_file() and suffix == ".parquet":
            return _parquet_source(
                path.stem, path.parent, [_found(path)], {"train": [path]}, columns
            )
    except OSError as error:
        raise DataError(f"cannot read {error.filename or path}: {error.strerror}") from error
    what = f"{path} is another kind of file" if path.exists() else f"nothing is at {path}"
    raise DataError(f"{what}: --data takes a folder of images, a .csv file or parquet files")


class _Columns(NamedTuple):
    """Columns that the user named."""

    image: str | None
    label: str | None


def _open_directory(path: Path, columns: _Columns) -> Source:
    files = find_files(path, IMAGE_SUFFIXES | {".parquet"})
    tables = [file for file in files if file.name.lower().endswith(".parquet")]
    if tables and len(tables) < len(files):
        raise DataError(
            f"{path} holds {plural(len(files) - len(tables), 'image')} and "
            f"{plural(len(tables), 'parquet file')}: give a folder of the one or the other"
        )
    if tables:
        return _parquet_source(
            path.resolve().name, path, tables, parquet_splits(path, tables), columns
        )
    if columns.image is not None or columns.label is not None:
        raise ConfigError(
            f"{path} is a folder of images, and --data.image-column and --data.label-column are "
            "for CSV and parquet files: leave them out"
        )
    return _open_images(path, files)


def _open_images(path: Path, files: Sequence[FoundFile]) -> Source:
    unread = find_files(path, UNREAD_SUFFIXES)
    if unread:
        raise DataError(
            f"{path} has {plural(len(unread), 'image')} in a format that is not read (such as "
            f"{unread[0].name}): convert to PNG or JPEG, or remove"
        )
    if not files:
        raise DataError(
            f"{path} has no images{_other_files(path)}: give a folder with a folder of images for "
            f"each class{_tables_beside(path)}"
        )
    roots = _split_folders(path)
    split_of = {folder: split for split, folder in roots.items()}
    classes: dict[str, dict[str, list[str]]] = {split: {} for split in roots}
    loose: dict[str, list[str]] = {split: [] for split in roots}
    outside: list[str] = []
    for name, _, _ in files:
        folder, _, rest = ("", "", name) if "" in split_of else name.partition("/")
        split = split_of.get(folder)
        if split is None or not rest:
            outside.append(name)
            continue
        label, slash, _ = rest.partition("/")
        if slash:
            classes[split].setdefault(label, []).append(name)
        else:
            loose[split].append(name)
    if outside:
        raise DataError(
            f"{path} has split folders ({', '.join(roots.values())}) and "
            f"{plural(len(outside), 'image')} outside them (such as {outside[0]}): remove "
            "them, or put all class folders into train, val and test folders"
        )
    if loose["train"] and not classes["train"]:
        classes, class_names = {"train": {"": loose["train"]}}, ()
    else:
        class_names = _check_class_folders(path, roots, classes, loose)
    name_lists = {
        split: [found[label] for label in sorted(found)] for split, found in classes.items()
    }

    def list_images() -> Listing:
        splits = {}
        for split, lists in name_lists.items():
            names = [name for part in lists for name in part]
            labels = np.repeat(np.arange(len(lists)), [len(part) for part in lists])
            splits[split] = _file_split(path, names, labels if class_names else None)
        return Listing(class_names=tuple(map(printable, class_names)), splits=splits)

    return Source(
        name=printable(path.resolve().name),
        key=_key("folder", files_key(files)),
        hflip=True,
        image_size=None,
        list_images=list_images,
    )


def _split_folders(path: Path) -> dict[str, str]:
    """Return the folder of each split, or ``{"train": ""}`` where there are no split folders."""
    found: dict[str, list[str]] = {}
    for name in sorted(folder.name for folder in path.iterdir() if folder.is_dir()):
        if (split := SPLIT_NAMES.get(name.lower())) is not None:
            found.setdefault(split, []).append(name)
    for names in found.values():
        if len(names) > 1:
            raise DataError(f"{path} has both {' and '.join(names)}: keep one of them")
    if found and "train" not in found:
        there = ", ".join(sorted(name for names in found.values() for name in names))
        raise DataError(f"{path} has {there} but no train folder: add one")
    return {split: found[split][0] for split in ("train", "val", "test") if split in found} or {
        "train": ""
    }


def _check_class_folders(
    path: Path,
    roots: Mapping[str, str],
    classes: Mapping[str, Mapping[str, Sequence[str]]],
    loose: Mapping[str, Sequence[str]],
) -> tuple[str, ...]:
    for split, folder in roots.items():
        root = path / folder
        if loose[split]:
            raise DataError(
                f"{root} has {plural(len(loose[split]), 'image')} in no class folder (such as "
                f"{PurePosixPath(loose[split][0]).name}): move each into the folder of its class"
            )
        for entry in sorted(root.iterdir()):
            if (
                entry.is_dir()
                and not entry.name.startswith(".")
                and entry.name not in classes[split]
            ):
                raise DataError(
                    f"{root}: class folder {entry.name!r} has no image{_other_files(entry)}: add "
                    f"images of {entry.name!r} to {split}, or remove that folder from every split"
                )
    names = tuple(sorted(classes["train"]))
    if len(names) < 2:
        root = path / roots["train"]
        itself = "".join(
            f"; or give the sub-folder itself, {root / name}, for images without labels"
            for name in names
        )
        raise DataError(
            f"{root} has {plural(len(names), 'class folder')} with images; at least 2 are needed, "
            f"one folder a class{itself}{_tables_beside(path)}"
        )
    check_class_lists(str(path), names, {split: set(found) for split, found in classes.items()})
    return names


def _other_files(folder: Path) -> str:
    """Say which other files a folder has: these may be images in a format that is not read."""
    every = find_files(folder, ("",))
    suffixes = sorted({PurePosixPath(file.name).suffix.lower() for file in every} - {""})
    return f" but files that are not read ({some(suffixes)})" if suffixes else ""


def _tables_beside(path: Path) -> str:
    tables = sorted(path.glob("*.csv"))
    return f"; or give the table, --data {tables[0]}" if tables else ""


def _file_split(path: Path, names: Sequence[str], labels: np.ndarray | None) -> SourceSplit:
    """List files by their paths below a folder; an absolute one stays as it is."""
    root = os.fspath(path)
    return SourceSplit(
        names=list(map(printable, names)),
        labels=np.full(len(names), -1) if labels is None else labels,
        read=lambda i: open_image(os.path.join(root, names[i])),  # noqa: PTH118 (far faster)
    )


class _Row(NamedTuple):
    line: int
    image: str
    label: str
    split: str


def _open_csv(path: Path, columns: _Columns) -> Source:
    content = path.read_bytes()
    rows, labelled = _read_csv(path, content, columns)
    if not labelled:
        rows = [row for row in rows if row.split == "train"]
    _check_repeated(path, rows)
    found = _find_images(path, rows)
    by_split: dict[str, list[_Row]] = {}
    for row in rows:
        by_split.setdefault(row.split, []).append(row)
    if "train" not in by_split:
        raise DataError(f"{path}: no row has the split train")
    class_names = order_classes({row.label for row in rows}) if labelled else ()
    number = {name: i for i, name in enumerate(class_names)}
    splits = {}
    for split in (name for name in ("train", "val", "test") if name in by_split):
        labels = [number[row.label] for row in by_split[split]] if labelled else None
        splits[split] = _file_split(
            path.parent,
            [row.image for row in by_split[split]],
            None if labels is None else np.asarray(labels, dtype=np.int64),
        )
    listing = Listing(class_names=class_names, splits=splits)
    if labelled:
        check_enough_classes(str(path), class_names)
        check_every_class(str(path), listing)
    return Source(
        name=printable(path.stem),
        key=_key("csv", hashlib.sha256(content).hexdigest(), files_key(found), *columns),
        hflip=True,
        image_size=None,
        list_images=lambda: listing,
    )


def _read_csv(path: Path, content: bytes, columns: _Columns) -> tuple[list[_Row], bool]:
    """Read the rows of a table and whether it has labels."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    image_column = columns.image or "image_path"
    label_column = columns.label or "label"
    line = io.StringIO(text, newline=None).readline()
    try:
        headers = {each: next(csv.reader([line], delimiter=each), []) for each in ",;\t"}
    except csv.Error as error:
        raise DataError(f"{path}, line 1: {error}") from None
    headers = {each: [cell.strip() for cell in cells] for each, cells in headers.items()}
    delimiter = max(headers, key=lambda each: (image_column in headers[each], len(headers[each])))
    header = headers[delimiter]
    needed = {image_column, columns.label}
    for name in (image_column, label_column, "split"):
        if header.count(name) > 1 or (name not in header and name in needed):
            raise DataError(
                f"{path} has {'more than one' if name in header else 'no'} column {name!r}; "
                f"its columns: {', '.join(header)}: name the right ones with --data.image-column "
                "and --data.label-column"
            )
    rows = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        next(reader)
        for cells in reader:
            if cells:
                rows.append(_row(path, reader.line_num, cells, header, image_column, label_column))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from None
    if not rows:
        raise DataError(f"{path} has a header and no rows")
    return rows, label_column in header


def _row(
    path: Path,
    line: int,
    cells: Sequence[str],
    header: Sequence[str],
    image_column: str,
    label_column: str,
) -> _Row:
    if len(cells) != len(header):
        raise DataError(
            f"{path}, line {line}: {len(cells)} cells under {len(header)} columns: put cells with "
            "a separator in them in double quotes"
        )
    named = dict(zip(header, cells, strict=True))  # names in use are not repeated
    image = named[image_column].strip()
    label = named.get(label_column, "").strip()
    for name, value in ((image_column, image), (label_column, label)):
        if not value and name in named:
            raise DataError(f"{path}, line {line}: no {name}: fill the cell or remove the row")
    split = "train"
    if "split" in named:
        split = read_split_name(named["split"], f"{path}, line {line}")
    return _Row(line, image, label, split)


def _find_images(path: Path, rows: Sequence[_Row]) -> list[FoundFile]:
    found, missing = [], []
    for row in rows:
        try:
            found.append(_found(path.parent / row.image, row.image))
        except (OSError, ValueError):  # ValueError: a null character in the path
            missing.append(f"{row.image} (line {row.line})")
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {plural(len(rows), 'file')} not found: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}: paths are relative to "
            f"{path.parent}, or absolute"
        )
    return found


def _check_repeated(path: Path, rows: Sequence[_Row]) -> None:
    seen: dict[str, _Row] = {}
    root = os.fspath(path.parent)
    for row in rows:
        file = os.path.normpath(os.path.join(root, row.image))  # noqa: PTH118 (far faster)
        first = seen.setdefault(file, row)
        if first is row:
            continue
        what = "twice"
        if first.label != row.label:
            what = f"with two labels, {first.label!r} and {row.label!r}"
        elif first.split != row.split:
            what = f"in two splits, {first.split} and {row.split}"
        raise DataError(
            f"{path} names {row.image} {what} (lines {first.line} and {row.line}): keep one row"
        )


def _parquet_source(
    name: str,
    root: Path,
    found: Sequence[FoundFile],
    files: Mapping[str, Sequence[Path]],
    columns: _Columns,
) -> Source:
    return Source(
        name=printable(name),
        key=_key("parquet", files_key(found), *columns),
        hflip=True,
        image_size=None,
        list_images=lambda: list_parquet(
            files, image_column=columns.image, label_column=columns.label
        ),
    )


def _found(path: Path, name: str | None = None) -> FoundFile:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(path)
    return FoundFile(path.name if name is None else name, status.st_size, status.st_mtime_ns)


def _key(*parts: str | None) -> str:
    return hashlib.sha256(repr((READER_VERSION, *parts)).encode()).hexdigest()
