"""The user's own images, in whatever form: folders, tables, parquet files, arrays.

Everything is checked before an image is decoded: a file that is missing or named twice, an image
that belongs to no class or split, a class that a split lacks. Nothing is left out in silence.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from smallvit.core.errors import ConfigError, DataError, explained
from smallvit.data.files.arrays import open_arrays
from smallvit.data.files.class_lists import plural
from smallvit.data.files.elsewhere import advice_for
from smallvit.data.files.folders import open_folder
from smallvit.data.files.images import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from smallvit.data.files.layout import Layout, parse_layout, refuse_classes
from smallvit.data.files.parquet import list_parquet, parquet_splits
from smallvit.data.files.sources import Columns, Source, files_key, own_source
from smallvit.data.files.tables import TABLE_SUFFIXES, open_table
from smallvit.data.files.walk import FoundFile, is_written, walk

TAKES = (
    "--data takes a folder of images, a table (.csv, .tsv), parquet files or an .npz file of arrays"
)


def open_path(
    path: Path,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    layout: str | None = None,
    sure: bool = True,
) -> Source:
    """Open the user's images: a folder, a table, parquet files or a folder of them, or arrays.

    **Class folders**, with or without split folders above them (train, val | valid | validation and
    test, in any case of letters). A class is the first folder below the split and takes the images
    of deeper folders too; classes are in alphabetical order. Every class needs an image in every
    split. Images that lie beside class folders, or outside the split folders, are refused, and so
    are images in a format that is not read. Val and test folders without class folders are left
    out, which is said. Where another layout is as likely, it is said and nothing is read. Hidden
    files, what systems leave and what this package wrote are passed over, and so are files whose
    suffix is no image's.

    **Images without class folders** are unlabelled: no class names, all labels -1. Where the train
    folder is such a folder, it alone is read and val and test folders are not.

    **Tables** (``.csv``, ``.tsv``, ``.txt``): a header and the columns ``image_path`` (relative to
    the table's folder, or absolute), ``label`` (any text) and, if wanted, ``split`` (as the
    folders' names); separated by commas, semicolons or tabs; other columns are ignored. Classes are
    in alphabetical order, or in numerical order where all are integers. Without a label column the
    images are unlabelled and only the rows of train are read. The content of a file decides its
    format, whatever its suffix.

    **Parquet**: see ``list_parquet``. In a folder, file names or else sub-folders that begin with
    train, val or test give the split; where none does, all is train.

    **Arrays** (``.npz``): see ``open_arrays``.

    Args:
        path: The folder or file.
        image_column: Column of the images in a table; ``None`` is ``image_path`` in a CSV and the
            one column of images in parquet files.
        label_column: Column of the labels in a table; ``None`` is ``label`` in a CSV, and in
            parquet files the one column that says it holds class labels, else ``label``.
        layout: What the folders are, or what the splits are called: see ``layout.FORMS``;
            ``None`` tells it by looks.
        sure: Stop where a guess could be wrong, and not read as runs did that could name no layout.

    Raises:
        ConfigError: If a column is given that is not there or of no use, or none is given where
            several would do.
        DataError: If there is nothing at ``path``, or what is there cannot be used whole.
    """
    columns, named = Columns(image=image_column, label=label_column), parse_layout(layout)
    suffix = path.suffix.lower()
    there = "check that it is there and readable"
    with explained(lambda e: f"cannot read {e.filename or path}: {e.strerror}: {there}"):
        if path.is_dir():
            return _open_directory(path, columns, named, sure=sure)
        if path.is_file() and suffix in TABLE_SUFFIXES:
            return open_table(path, columns, named)
        if path.is_file() and suffix == ".parquet":
            return _parquet_source(path, [_found(path)], {"train": [path]}, columns, named)
        if path.is_file() and suffix == ".npz":
            _refuse_columns(path, "holds arrays", columns)
            return open_arrays(path, _found(path), named)
    advice = advice_for(path)
    if path.is_file() and advice is not None:
        raise DataError(f"{path} is not read as it is: {advice}")
    what = f"{path} is another kind of file" if path.exists() else f"nothing is at {path}"
    raise DataError(f"{what}: {TAKES}")


def _open_directory(path: Path, columns: Columns, layout: Layout | None, *, sure: bool) -> Source:
    if is_written({entry.name for entry in path.iterdir()}):
        raise DataError(
            f"{path} was written by smallvit and holds no data: give the folder of your images"
        )
    found = walk(path, IMAGE_SUFFIXES | UNREAD_SUFFIXES | {".parquet"})
    tables = [file for file in found.files if file.name.lower().endswith(".parquet")]
    images = [file for file in found.files if file.name.lower().endswith(tuple(IMAGE_SUFFIXES))]
    if tables and images:
        raise DataError(
            f"{path} holds {plural(len(images), 'image')} and "
            f"{plural(len(tables), 'parquet file')}: give a folder of the one or the other"
        )
    if tables:
        splits = parquet_splits(path, tables, layout)
        return _parquet_source(path, tables, splits, columns, layout, found.notes)
    _refuse_columns(path, "is a folder of images", columns)
    return open_folder(path, found, layout, sure=sure)


def _refuse_columns(path: Path, what: str, columns: Columns) -> None:
    if columns.image is not None or columns.label is not None:
        raise ConfigError(
            f"{path} {what}, and --data.image-column and --data.label-column are "
            "for CSV and parquet files: leave them out"
        )


def _parquet_source(
    path: Path,
    found: Sequence[FoundFile],
    files: Mapping[str, Sequence[Path]],
    columns: Columns,
    layout: Layout | None,
    notes: tuple[str, ...] = (),
) -> Source:
    refuse_classes(layout, f"{path} holds parquet files")
    return own_source(
        path.resolve() if path.is_dir() else path,  # a file in the Hub's cache links to a hash
        "parquet",
        ("parquet", files_key(found), *columns),
        lambda: list_parquet(files, columns, layout),
        layout=layout,
        notes=notes,
    )


def _found(path: Path) -> FoundFile:
    status = path.stat()
    return FoundFile(path.name, status.st_size, status.st_mtime_ns)
