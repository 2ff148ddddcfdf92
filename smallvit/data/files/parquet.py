"""Reader of parquet files with encoded images, as the Hugging Face Hub keeps them."""

import json
import sys
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from smallvit.core.errors import ConfigError, DataError, explained
from smallvit.data.files.class_lists import check_listing, make_listing, plural
from smallvit.data.files.file_kinds import refuse_stand_in
from smallvit.data.files.images import open_image
from smallvit.data.files.layout import Layout, rows_by_split
from smallvit.data.files.sources import Columns, FoundFile, Listing, SourceSplit

BATCH_BYTES = 2**24  # images of a parquet file decompressed at a time, about
_TEXTS = ("string", "large_string", "string_view")
LARGEST_HASH = 64  # bytes; columns of a fixed width up to this hold identifiers and no images
ROWS_KEPT = 64  # rows before the newest batch that stay at hand: more than store.MAX_AHEAD


def parquet_splits(
    root: Path, files: Iterable[FoundFile], layout: Layout | None = None
) -> dict[str, list[Path]]:
    """Sort parquet files by split: by their names, else by the nearest folder that names one.

    A name counts that begins with train, val or test. Where none does, all files are of train.

    Args:
        root: Folder of the files.
        files: The files, with names below ``root``.
        layout: How the names of each split's files begin, where the user named it; others are not
            read. Where none begins so, a column ``split`` is meant.

    Raises:
        DataError: If only some of the files tell their split, or none is of train.
    """
    given = layout is not None and layout.kind == "splits"
    begins = (layout and layout.splits) or {s: s for s in ("train", "val", "test")}
    found: dict[str | None, list[Path]] = {}
    for file in files:
        parts = reversed(file.name.lower().split("/"))
        split = next(
            (s for part in parts for s in begins if part.startswith(begins[s].lower())), None
        )
        found.setdefault(split, []).append(root / file.name)
    unnamed = found.pop(None, [])
    if given and found:
        unnamed = []
    named = {split: found[split] for split in ("train", "val", "test") if split in found}
    if not named:
        return {"train": unnamed}
    if unnamed:
        raise DataError(
            f"{root}: the names of {plural(len(unnamed), 'parquet file')} (such as "
            f"{unnamed[0].name}) give no split, others do: rename them to train-*, val-* or "
            "test-*, or say how the names begin, as in --data.layout train=train,test=test"
        )
    if "train" not in named:
        only = next(iter(named.values()))[0].name.partition("-")[0].partition(".")[0]
        raise DataError(
            f"{root} has parquet files of {' and '.join(named)} but none of train: add them, or "
            f"train on others, --data.layout train={only}"
        )
    return named


def list_parquet(
    files: Mapping[str, Sequence[Path]],
    columns: Columns,
    named: Layout | None = None,
) -> Listing:
    """List the images of parquet files.

    The image column holds encoded images: binary, or a struct with a binary field ``bytes`` as the
    Hugging Face Hub writes it. The label column holds integers, text or truth values. Any column
    may be dictionary-encoded. Names of the classes are those of the Hub's metadata, else the
    distinct labels, ordered as in a CSV. Without a label column, images are unlabelled and only
    train is read. Where there is no other split than train, a text column ``split`` divides
    the rows, as in a CSV.

    Images are decompressed in batches of about ``BATCH_BYTES`` (at least a page of the file), and
    ``ROWS_KEPT`` rows before the newest batch stay at hand for all threads together. Reading in
    about the order of the rows is fast; a jump further back starts a row group anew.

    Args:
        files: The files of each split, in order.
        columns: Column of the images, where ``None`` is the one whose type fits, and of the
            labels, where ``None`` is the one that the metadata marks as class labels, else
            ``label``.
        named: What a column ``split`` calls each split, or that labels are not read, where the
            user named it.

    Raises:
        ConfigError: If pyarrow is not installed, or a column is absent, unfit or ambiguous.
        DataError: If a file is broken or repeats a column in use, files differ in their columns, an
            image or label is missing, a label is out of range, or a class has no image.
    """
    every = chain.from_iterable(files.values())
    layouts = [_read_layout(file, columns) for file in every]
    if named is not None and named.kind == "unlabelled":
        layouts = [replace(each, label=None, text=False, class_names=None) for each in layouts]
    layout = layouts[0]
    for other in layouts:
        if other != replace(layout, path=other.path):
            raise DataError(
                f"{layout.path} ({layout}) and {other.path} ({other}) differ: the files of a "
                "dataset need the same columns and classes: leave a split without labels out, as "
                "in --data.layout train=train, or give one file"
            )
    where = str(layout.path if len(layouts) == 1 else layout.path.parent)
    if layout.label is None:
        files = {"train": files["train"]}
    tables = {
        split: [_read_table(file, layout) for file in paths] for split, paths in files.items()
    }
    splits: dict[str, SourceSplit] = {}
    texts: dict[str, list[str]] = {}
    for split, parts in tables.items():
        names = [f"{table.path.name} row {i}" for table in parts for i in range(table.num_rows)]
        rows: dict[str, Sequence[int]] = {split: range(len(names))}
        if layout.split and list(tables) == ["train"]:
            values = [(value or "").strip() for table in parts for value in table.splits]
            places = [f"{table.path}, row {i}" for table in parts for i in range(table.num_rows)]
            rows = {**rows_by_split(where, values, named, places.__getitem__)}
            if layout.label is None:
                rows = {"train": rows["train"]}
        images = _ParquetImages([table.path for table in parts], layout.leaf)
        labels = np.concatenate([table.labels for table in parts])
        for part, index in rows.items():
            splits[part] = images.split(names, labels, np.asarray(index, dtype=np.int64))
            texts[part] = list(map(str, splits[part].labels))
    if layout.class_names is not None:
        return check_listing(where, Listing(class_names=layout.class_names, splits=splits))
    return make_listing(where, splits, {} if layout.label is None else texts)


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """The columns of a parquet file.

    Attributes:
        path: The file.
        image: Column of the images.
        leaf: Where in it the bytes lie.
        label: Column of the labels, if there is one.
        text: Whether they are read as text: text and truth values.
        class_names: Names of the integer labels, where the metadata has them.
        split: Whether there is a text column ``split``.
    """

    path: Path
    image: str
    leaf: str
    label: str | None
    text: bool
    class_names: tuple[str, ...] | None
    split: bool

    def __str__(self) -> str:
        if self.label is None:
            return f"{self.image}, no labels"
        kind = "text" if self.text else "numbers"
        named = "" if self.class_names is None else f" of {len(self.class_names)} named classes"
        return f"{self.image}, {self.label}: {kind}{named}"


class _Table(NamedTuple):
    path: Path
    num_rows: int
    labels: np.ndarray  # int64 or text; empty where there are none
    splits: Sequence[str | None]


def _pyarrow() -> Any:
    missing = "reading parquet needs pyarrow: pip install 'smallvit[parquet]'"
    with explained(lambda error: missing, ImportError, into=ConfigError):
        import pyarrow
        import pyarrow.parquet
    return pyarrow


def _reading(path: Path) -> AbstractContextManager[None]:
    """Turn pyarrow's errors into one that names the file."""

    def explain(error: Exception) -> str:
        first = str(error).partition("\n")[0]
        return f"{path} is not a whole parquet file ({first}): replace it"

    return explained(explain, OSError, _pyarrow().ArrowException)


def _read_layout(path: Path, columns: Columns) -> _Layout:
    pa = _pyarrow()
    refuse_stand_in(path)
    with _reading(path):
        schema = pa.parquet.read_schema(path)
    types = {field.name: _plain_type(field.type) for field in schema}
    fits = {name: _image_leaf(kind, name) for name, kind in types.items()}
    fits = {name: leaf for name, leaf in fits.items() if leaf is not None}
    for option, name in columns._asdict().items():
        if name is not None and name not in types:
            raise ConfigError(
                f"{path} has no column {name!r}; its columns: {', '.join(types)}: set "
                f"--data.{option}-column to one of them"
            )
    if not fits:
        raise ConfigError(
            f"{path} has no column of encoded images, only {', '.join(types)}: write the content "
            "of the files to it, or, where it names files, save it as CSV"
        )
    image = columns.image or next(iter(fits))
    if image not in fits:
        raise ConfigError(
            f"column {image!r} of {path} is {types[image]}, not encoded images; set "
            f"--data.image-column to one that is: {', '.join(fits)}"
        )
    if columns.image is None and len(fits) > 1:
        raise ConfigError(
            f"{path} has several columns of encoded images ({', '.join(fits)}): name one with "
            "--data.image-column"
        )
    class_labels = {name: names for name, names in _hub_classes(schema).items() if name in types}
    if columns.label is None and len(class_labels) > 1:
        raise ConfigError(
            f"{path} has several columns of class labels ({', '.join(class_labels)}): name one "
            "with --data.label-column"
        )
    label = columns.label or next(iter(class_labels), "label" if "label" in types else None)
    for name in (image, label, "split"):
        if schema.names.count(name) > 1:
            raise DataError(
                f"{path} has {schema.names.count(name)} columns {name!r}: rename all but one"
            )
    text = label is not None and str(types[label]) in (*_TEXTS, "bool")
    if label is not None and not text and not pa.types.is_integer(types[label]):
        raise ConfigError(
            f"column {label!r} of {path} is {types[label]}, neither integers nor text: name the "
            "labels with --data.label-column"
        )
    return _Layout(
        path=path,
        image=image,
        leaf=fits[image],
        label=label,
        text=text,
        class_names=None if label is None or text else class_labels.get(label),
        split=str(types.get("split")) in _TEXTS,
    )


def _image_leaf(kind: Any, name: str) -> str | None:
    """Return where encoded images lie in a column of this type, if they can."""
    if str(kind).startswith("struct<") and kind.get_field_index("bytes") >= 0:
        name, kind = f"{name}.bytes", _plain_type(kind.field("bytes").type)
    if str(kind).startswith("fixed_size_binary"):
        return name if kind.byte_width > LARGEST_HASH else None
    return name if str(kind) in ("binary", "large_binary", "binary_view") else None


def _plain_type(kind: Any) -> Any:
    return kind.value_type if str(kind).startswith("dictionary<") else kind


def _hub_classes(schema: Any) -> dict[str, tuple[str, ...]]:
    """Return the class names of the columns that the Hub's metadata marks as class labels."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: tuple(str(each) for each in feature["names"])
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}  # no such metadata, or of another form: the column's type has to do


def _read_table(path: Path, layout: _Layout) -> _Table:
    """Read all of a file but its images; check that each row has an image and a usable label."""
    pa = _pyarrow()
    small = [layout.label] if layout.label is not None else []
    small += ["split"] if layout.split else []
    with _reading(path), pa.parquet.ParquetFile(path, memory_map=True) as file:
        num_rows = file.metadata.num_rows
        table = file.read(columns=small)
        missing = {layout.image: _count_nulls(file, layout.leaf)}
        labels, splits = np.full(num_rows, -1), []
        if layout.label is not None:
            column = table.column(layout.label)
            missing[layout.label] = column.null_count
            if layout.text:
                labels = np.asarray(column.cast(pa.string()).to_pylist(), dtype=object)
                missing[layout.label] += int(np.count_nonzero(labels == ""))
            elif not column.null_count:
                # Not safe: what is too large becomes negative, and is refused with its row.
                labels = column.cast(pa.int64(), safe=False).to_numpy()
        if layout.split:
            splits = table.column("split").cast(pa.string()).to_pylist()
    for name, count in missing.items():
        if count:
            raise DataError(
                f"{path}: {count} of {plural(num_rows, 'row')} have no {name}: remove them from "
                "the file, or leave a split without labels out, as in --data.layout train=train"
            )
    if layout.label is not None and not layout.text:
        _check_range(path, layout, labels)
    return _Table(path, num_rows, labels, splits)


def _check_range(path: Path, layout: _Layout, labels: np.ndarray) -> None:
    end = np.inf if layout.class_names is None else len(layout.class_names)
    odd = np.flatnonzero((labels < 0) | (labels >= end))
    if len(odd):
        allowed = "not negative" if layout.class_names is None else f"0 to {end - 1}"
        raise DataError(
            f"{path}: {len(odd)} of {plural(len(labels), 'row')} have a {layout.label} that is not "
            f"a class (the first: row {odd[0]}, {labels[odd[0]]}; classes are {allowed}): remove "
            "these rows, or leave a split without labels out, as in --data.layout train=train"
        )


def _count_nulls(file: Any, leaf: str) -> int:
    """Count rows without bytes by the file's statistics, or by reading where it has none."""
    count = 0
    for group in range(file.metadata.num_row_groups):
        statistics = _leaf_metadata(file, group, leaf).statistics
        if statistics is not None and statistics.has_null_count:
            count += statistics.null_count
        else:
            count += sum(column.null_count for column in _iter_leaf(file, group, leaf))
    return count


def _leaf_metadata(file: Any, group: int, leaf: str) -> Any:
    row_group = file.metadata.row_group(group)
    columns = (row_group.column(i) for i in range(row_group.num_columns))
    return next(column for column in columns if column.path_in_schema == leaf)


def _iter_leaf(file: Any, group: int, leaf: str) -> Iterator[Any]:
    """Iterate over the byte strings of a row group, about ``BATCH_BYTES`` at a time."""
    metadata = _leaf_metadata(file, group, leaf)
    row_bytes = max(1, metadata.total_uncompressed_size // max(1, metadata.num_values))
    for batch in file.iter_batches(
        batch_size=max(1, BATCH_BYTES // row_bytes),
        row_groups=[group],
        columns=[leaf],
        use_threads=False,
    ):
        column = batch.column(0)
        yield column.flatten()[0] if isinstance(column, _pyarrow().StructArray) else column


class _ParquetImages:
    """The encoded images of some parquet files, by row, for many threads.

    Args:
        paths: The files, in order.
        leaf: Where in each the bytes lie.
    """

    def __init__(self, paths: Sequence[Path], leaf: str) -> None:
        self._parquet = _pyarrow().parquet
        self._leaf = leaf
        self._groups: list[tuple[Path, int]] = []
        self._starts: list[int] = []
        start = 0
        for path in paths:
            metadata = self._parquet.read_metadata(path)
            for group in range(metadata.num_row_groups):
                if metadata.row_group(group).num_rows:
                    self._groups.append((path, group))
                    self._starts.append(start)
                    start += metadata.row_group(group).num_rows
        self._lock = threading.Lock()
        self._rows: dict[int, bytes] = {}
        self._file: tuple[Path, Any] | None = None
        self._batches: Iterator[Any] = iter(())
        self._next_row = sys.maxsize  # first row of the next of _batches

    def split(self, names: Sequence[str], labels: np.ndarray, rows: np.ndarray) -> SourceSplit:
        """List the images of some rows."""
        return SourceSplit(
            names=[names[row] for row in map(int, rows)],
            labels=labels[rows],
            read=lambda i: open_image(self.read(int(rows[i]))),
        )

    def read(self, row: int) -> bytes:
        """Return the encoded image of a row."""
        with self._lock:
            if row not in self._rows:
                try:
                    self._advance(row)
                except Exception:  # a broken page, perhaps before the row: start at its row group
                    self._next_row = sys.maxsize
                    self._advance(row)
            return self._rows[row]

    def _advance(self, row: int) -> None:
        """Read on to the batch of a row; where that is not near, start at its row group."""
        group = self._group_of(row)
        ahead = row - self._next_row
        if ahead < 0 or (ahead >= ROWS_KEPT and group != self._group_of(self._next_row)):
            self._batches, self._next_row = self._iter_batches(group), self._starts[group]
        while self._next_row <= row:
            start, values = self._next_row, next(self._batches).to_pylist()
            self._rows = {old: self._rows[old] for old in self._rows if old >= start - ROWS_KEPT}
            self._rows |= enumerate(values, start)
            self._next_row += len(values)

    def _group_of(self, row: int) -> int:
        return bisect_right(self._starts, row) - 1

    def _iter_batches(self, first_group: int) -> Iterator[Any]:
        for path, group in self._groups[first_group:]:
            if self._file is None or self._file[0] != path:
                # Not pre_buffer, which would read the column of a whole row group ahead.
                file = self._parquet.ParquetFile(path, memory_map=True, pre_buffer=False)
                self._file = (path, file)
            yield from _iter_leaf(self._file[1], group, self._leaf)
