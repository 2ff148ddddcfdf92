"""Reader of tables that list images with their classes: comma, semicolon or tab between cells."""

import csv
import hashlib
import io
import os
import re
import stat
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from smallvit.core.errors import ConfigError, DataError, explained
from smallvit.data.files.class_lists import make_listing, plural, some
from smallvit.data.files.file_kinds import refuse_stand_in
from smallvit.data.files.images import IMAGE_SUFFIXES
from smallvit.data.files.layout import Layout, refuse_classes, rows_by_split
from smallvit.data.files.sources import (
    Columns,
    FoundFile,
    Source,
    file_split,
    files_key,
    own_source,
)
from smallvit.data.files.walk import LEFT_BY_SYSTEMS

TABLE_SUFFIXES = (".csv", ".tsv", ".tab", ".txt")
MOST_SEARCHED = 500  # folders beside a table in which its images are looked for
# What other tools call these columns.
IMAGE_HEADERS = "image file filename file_name filepath path img image_id image_name id id_code"
LABEL_HEADERS = "class category class_name label_name labels target species breed diagnosis y"
_IMAGES = tuple(IMAGE_SUFFIXES)


class _Row(NamedTuple):
    line: int
    image: str
    label: str
    split: str


def open_table(path: Path, columns: Columns, layout: Layout | None) -> Source:
    """Open a table of images.

    Args:
        path: The table.
        columns: Those that the user named.
        layout: What the column ``split`` calls each split; ``None`` takes the usual names.

    Raises:
        ConfigError: If a column or split is named that is not there.
        DataError: If the table or what it names cannot be used whole.
    """
    refuse_classes(layout, f"{path} is a table")
    content = path.read_bytes()
    table = _read(path, content, columns)
    notes: list[str] = []
    rows = _split_rows(path, table, layout, notes)
    labelled = table.label in table.header and (layout is None or layout.kind != "unlabelled")
    if not labelled:
        rows = [row for row in rows if row.split == "train"]
        if table.label not in table.header:
            notes.append(_why_unlabeled(table))
    rows, found = _find_images(path, rows, notes)
    _check_repeated(path, rows)
    if labelled:
        _check_one_label(path, rows)
    splits, texts = {}, {}
    for split in ("train", "val", "test"):
        part = [row for row in rows if row.split == split]
        if part:
            splits[split] = file_split(path.parent, [row.image for row in part])
            texts[split] = [row.label for row in part]
    listing = make_listing(str(path), splits, texts if labelled else {})
    return own_source(
        path,
        "table",
        ("csv", hashlib.sha256(content).hexdigest(), files_key(found), *columns),
        lambda: listing,
        layout=layout,
        notes=notes,
    )


class _Table(NamedTuple):
    """The cells of a table below its header, with the line of each row."""

    header: list[str]
    rows: list[tuple[int, dict[str, str]]]
    image: str
    label: str


def _read(path: Path, content: bytes, columns: Columns) -> _Table:
    text = _decode(path, content)
    image, label = columns.image or "image_path", columns.label or "label"
    lines = io.StringIO(text, newline=None)
    line = lines.readline()
    skipped = 0
    if re.fullmatch(r'"?sep=.\n?"?', line):  # what Excel is told the separator by
        line, skipped = lines.readline(), 1
    with explained(lambda error: f"{path}, line 1: {error}: mend that line", csv.Error):
        headers = {each: next(csv.reader([line], delimiter=each), []) for each in ",;\t"}
    headers = {each: [cell.strip() for cell in cells] for each, cells in headers.items()}
    delimiter = max(headers, key=lambda each: (image in headers[each], len(headers[each])))
    header = headers[delimiter]
    if any(cell.lower().endswith(_IMAGES) for cell in re.split(r"[,;\s]", line.strip())):
        raise DataError(
            f"{path}, line 1 names an image, not the columns: put the line image_path,label above "
            "it, with commas between the cells of all lines"
        )
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = []
    with explained(lambda e: f"{path}, line {reader.line_num}: {e}: mend that line", csv.Error):
        for _ in range(skipped + 1):
            next(reader, None)
        for name in (image, label, "split"):
            needed = name in (image, columns.label)
            if header.count(name) > 1 or (name not in header and needed):
                raise DataError(
                    f"{path} has {'more than one' if name in header else 'no'} column {name!r}; "
                    f"its columns: {', '.join(header)}: {_name_columns(header, next(reader, []))}"
                )
        for cells in reader:
            if cells and len(cells) != len(header):
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells under {len(header)} "
                    "columns: put cells with a separator in them in double quotes"
                )
            if cells:  # names in use are not repeated
                named = dict(zip(header, map(str.strip, cells), strict=True))
                rows.append((reader.line_num, named))
    if not rows:
        raise DataError(f"{path} has a header and no rows: add a row for each image")
    return _Table(header, rows, image, label)


def _decode(path: Path, content: bytes) -> str:
    refuse_stand_in(path)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", "replace")
    if b"\0" in content[:4096]:
        raise DataError(
            f"{path} has null characters: if it is UTF-16, save it as UTF-8, as by iconv -f "
            f"utf-16le -t utf-8 {path.name} > new.csv"
        )

    def explain(error: UnicodeDecodeError) -> str:
        line = content[: error.start].count(b"\n") + 1
        return (
            f"{path} is not UTF-8 (byte {error.start}, line {line}): save it as UTF-8, in Excel as "
            f"'CSV UTF-8', or by iconv -f cp1252 -t utf-8 {path.name} > new.csv"
        )

    with explained(explain, UnicodeDecodeError):
        return content.decode("utf-8-sig")


def _name_columns(header: Sequence[str], first: Sequence[str]) -> str:
    """Say with which options the columns are named, as far as their names and cells tell."""
    lower = {name.lower(): name for name in header}
    cells = dict(zip(header, first, strict=False))
    images = [name for name, cell in cells.items() if cell.strip().lower().endswith(_IMAGES)]
    images += [lower[name] for name in IMAGE_HEADERS.split() if name in lower]
    labels = [lower[name] for name in ("label", *LABEL_HEADERS.split()) if name in lower]
    labels += [name for name in header if len(header) == 2 and name not in images[:1]]
    if not images or not labels or header.count(images[0]) > 1 or header.count(labels[0]) > 1:
        return "name the right ones with --data.image-column and --data.label-column"
    return (
        f"name the right ones, as in --data.image-column {images[0]} --data.label-column "
        f"{labels[0]}"
    )


def _why_unlabeled(table: _Table) -> str:
    others = [name for name in table.header if name not in (table.image, "split", "")]
    flags = [
        name
        for name in others
        if all(row[name] in ("0", "1", "0.0", "1.0") for _, row in table.rows)
    ]
    if len(flags) > 1:
        return (
            f"without labels: the columns {some(flags)} hold 0 and 1; write the class of each "
            f"image to one column {table.label}"
        )
    there = f" among {some(others)}, of which --data.label-column can name one" if others else ""
    return f"without labels: there is no column {table.label}{there}"


def _split_rows(path: Path, table: _Table, layout: Layout | None, notes: list[str]) -> list[_Row]:
    """Return the rows of the splits that are read."""
    if layout is not None and layout.kind == "splits" and "split" not in table.header:
        raise ConfigError(f"data.layout names splits, and {path} has no column split: leave it out")
    rows = []
    for line, cells in table.rows:
        label, split = cells.get(table.label, ""), cells.get("split", "train")
        row = _Row(line, cells[table.image], label, split)
        for name, value in ((table.image, row.image), (table.label, row.label)):
            if not value and name in cells:
                raise DataError(f"{path}, line {line}: no {name}: fill the cell or remove the row")
        rows.append(row)
    by_split = rows_by_split(
        str(path), [row.split for row in rows], layout, lambda i: f"{path}, line {rows[i].line}"
    )
    split_of = {i: split for split, index in by_split.items() for i in index}
    if len(split_of) < len(rows):
        others = plural(len(rows) - len(split_of), "row")
        notes.append(f"left out: {others} of splits that data.layout names not")
    return [rows[i]._replace(split=split) for i, split in sorted(split_of.items())]


def _check_one_label(path: Path, rows: Sequence[_Row]) -> None:
    """Refuse cells that name several classes, told by classes that are named alone too."""
    lines = {row.label: row.line for row in reversed(rows)}
    for mark in "|;, ":
        parts = {
            label: {part.strip(" []'\"") for part in label.split(mark)}
            for label in lines
            if mark in label
        }
        alone = lines.keys() - parts.keys()
        several = [label for label, names in parts.items() if len(names) > 1 and names <= alone]
        if mark in "|,":  # marks that hardly stand in a name
            every = [name for names in parts.values() for name in names]
            listed = [label for label in parts if label.startswith("[") and label.endswith("]")]
            shared = {name for name in every if every.count(name) > 1} if mark == "|" else set()
            several += [label for label, names in parts.items() if names & shared]
            several += listed
        if several:
            first = min(several, key=lines.__getitem__)
            count = sum(row.label in several for row in rows)
            raise DataError(
                f"{path}: {plural(count, 'row')} name several classes in one cell (the first: "
                f"{first!r}, line {lines[first]}), and an image has one class here: keep one, or, "
                f"if that is a class of its own, write it without {mark!r}, as in "
                f"{'_'.join(part.strip() for part in first.split(mark))!r}"
            )


class _Finder:
    """Finds the images that a table names below a folder.

    Names with backslashes are those of Windows. A name without the suffix of an image is that of
    the one image of that stem.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._stems: dict[Path, dict[str, list[str]]] = {}

    def find(self, image: str) -> FoundFile | None:
        """Return the file that is meant; ``None`` where there is none or more than one."""
        names = [image, image.replace("\\", "/")] if "\\" in image else [image]
        names += [found[0] for name in names if len(found := self.of_stem(name)) == 1]
        for name in names:
            try:
                status = (self.root / name).stat()
            except (OSError, ValueError):  # ValueError: a null character in the path
                continue
            if stat.S_ISREG(status.st_mode):
                return FoundFile(name, status.st_size, status.st_mtime_ns)
        return None

    def of_stem(self, image: str) -> list[str]:
        """Return the images whose names are this one and a suffix."""
        if image.lower().endswith(_IMAGES) or "\0" in image:
            return []
        folder, slash, stem = image.rpartition("/")
        parent = self.root / folder
        if parent not in self._stems:
            names: dict[str, list[str]] = {}
            if parent.is_dir():
                for entry in sorted(os.listdir(parent)):  # noqa: PTH208 (far faster)
                    if entry.lower().endswith(_IMAGES):
                        names.setdefault(entry.rpartition(".")[0], []).append(entry)
            self._stems[parent] = names
        return [f"{folder}{slash}{name}" for name in self._stems[parent].get(stem, ())]


def _find_images(
    path: Path, rows: Sequence[_Row], notes: list[str]
) -> tuple[list[_Row], list[FoundFile]]:
    """Return the rows with the names of the files as they are, and the files."""
    finder = _Finder(path.parent)
    found = [finder.find(row.image) for row in rows]
    folders: list[Path] = []
    if not any(found):
        folders = [
            folder
            for folder in islice(_folders_beside(path), MOST_SEARCHED)
            if _Finder(folder).find(rows[0].image)
        ]
        if len(folders) == 1:
            inside = folders[0].relative_to(path.parent).as_posix()
            finder = _Finder(folders[0])
            there = [finder.find(row.image) for row in rows]
            if any(there):
                found = [file and file._replace(name=f"{inside}/{file.name}") for file in there]
                notes.append(f"the images of {path.name} are in {inside}")
    missing = [row for row, file in zip(rows, found, strict=True) if file is None]
    if missing:
        several = finder.of_stem(missing[0].image.replace("\\", "/"))
        also = f" (could be {some(several)})" if several else ""
        if len(folders) > 1:
            names = [folder.relative_to(path.parent).as_posix() for folder in folders]
            also = f" (there are such in {some(names)}: write the folder before each name)"
        if re.match(r"[A-Za-z]:[\\/]", missing[0].image):
            also = " (a path of Windows with its drive)"
        raise DataError(
            f"{path}: {len(missing)} of {plural(len(rows), 'file')} not found: "
            f"{', '.join(f'{row.image} (line {row.line})' for row in missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}{also}: paths are relative to {path.parent}, or "
            "absolute"
        )
    files = [file for file in found if file is not None]
    return [row._replace(image=file.name) for row, file in zip(rows, files, strict=True)], files


def _folders_beside(path: Path) -> Iterator[Path]:
    """Yield the folders beside a table, and those in them."""
    for pattern in ("*/", "*/*/"):
        for folder in sorted(path.parent.glob(pattern)):
            names = folder.relative_to(path.parent).parts
            if not any(name.startswith(".") or name.lower() in LEFT_BY_SYSTEMS for name in names):
                yield folder


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
