"""Reader of ``.npz`` files of images and labels, as MedMNIST and Keras write them."""

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from smallvit.core.errors import DataError, explained, reason
from smallvit.data.files.class_lists import make_listing, some
from smallvit.data.files.file_kinds import refuse_stand_in
from smallvit.data.files.layout import Layout, refuse_classes
from smallvit.data.files.sources import (
    FoundFile,
    Listing,
    Source,
    array_split,
    files_key,
    own_source,
)

PREFIXES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
# What arrays are called, by MedMNIST, by Keras and by habit; {} is the split.
IMAGES = ("{}_images", "images_{}", "x_{}", "X_{}", "{}_x", "{}_X", "{}_data", "{}_imgs", "{}")
LABELS = ("{}_labels", "labels_{}", "y_{}", "{}_y", "{}_Y", "{}_targets", "{}_label")
ALONE = (("images", "labels"), ("x", "y"), ("X", "y"), ("data", "labels"), ("data", "targets"))
EXPECTED = (
    "images are read from train_images and labels from train_labels, with val_ and test_ beside "
    "them or not"
)
_NOT_WHOLE = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)


def open_arrays(path: Path, found: FoundFile, layout: Layout | None) -> Source:
    """Open an ``.npz`` file.

    Images are of shape (N, H, W), (N, H, W, 1), (N, H, W, 3) or (N, 3, H, W): 8-bit, or grey of
    more bits or floats as in files. Labels are integers or text, of shape (N,) or (N, 1); without
    any, the images are unlabelled.

    Args:
        path: The file.
        found: It, with its size and time.
        layout: How the names of the arrays of each split begin; ``None`` takes the usual names.

    Raises:
        ConfigError: If a layout is named that arrays cannot have.
        DataError: If the file is broken, or its arrays are not images and labels.
    """
    refuse_classes(layout, f"{path} holds arrays")
    refuse_stand_in(path)
    with _opened(path) as file:
        names = file.files
    pairs = _find_pairs(path, names, layout)
    images, label = pairs["train"]
    if label is None or (layout is not None and layout.kind == "unlabelled"):
        pairs = {"train": (images, None)}
    else:
        pairs = {split: pair for split, pair in pairs.items() if pair[1] is not None}

    def list_images() -> Listing:
        splits, texts = {}, {}
        for split, (name, label) in pairs.items():
            images = _read_images(path, name)
            splits[split] = array_split([f"{name}[{i}]" for i in range(len(images))], images)
            if label is not None:
                texts[split] = list(map(str, _read_labels(path, label)))
                if len(texts[split]) != len(images):
                    raise DataError(
                        f"{path}: {name} has {len(images)} images and {label} "
                        f"{len(texts[split])} labels: save as many of one as of the other"
                    )
        return make_listing(str(path), splits, texts)

    return own_source(path, "arrays", ("arrays", files_key([found])), list_images, layout=layout)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open the file; one that is broken, or holds more than arrays, is explained."""

    def explain(error: Exception) -> str:
        if "pickle" in str(error).lower():
            return (
                f"{path} holds Python objects, which could run code: save plain arrays, numbers of "
                "one shape"
            )
        return f"{path} is not a whole .npz file ({reason(error)}): replace it"

    with (
        explained(explain, *_NOT_WHOLE),
        path.open("rb") as raw,
        np.load(raw, allow_pickle=False) as file,
    ):
        yield file


def _find_pairs(
    path: Path, names: Sequence[str], layout: Layout | None
) -> dict[str, tuple[str, str | None]]:
    """Return the arrays of images and labels of each split."""
    prefixes: Mapping[str, Sequence[str]] = PREFIXES
    if layout is not None and layout.kind == "splits":
        prefixes = {split: (name,) for split, name in layout.splits.items()}
    pairs: dict[str, tuple[str, str | None]] = {}
    for split, begins in prefixes.items():
        images = _first(names, IMAGES, begins)
        if images is not None:
            pairs[split] = (images, _first(names, LABELS, begins))
    if not pairs and layout is None:
        for images, label in ALONE:
            if images in names:
                return {"train": (images, label if label in names else None)}
    if "train" not in pairs:
        raise DataError(f"{path} has the arrays {some(sorted(names), 8)}: {EXPECTED}")
    return pairs


def _first(names: Sequence[str], forms: Sequence[str], begins: Sequence[str]) -> str | None:
    every = (form.format(begin) for begin in begins for form in forms)
    return next((name for name in every if name in names), None)


def _read_labels(path: Path, name: str) -> np.ndarray:
    with _opened(path) as file:
        labels = file[name]
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise DataError(
            f"{path}: {name} has shape {labels.shape}, several labels an image, and an image has "
            f"one class here: save one integer each, as {name}.argmax(axis=1)"
        )
    if labels.dtype.kind == "f" and (labels == np.rint(labels)).all():
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iubU":
        raise DataError(f"{path}: {name} is {labels.dtype}: save the classes as integers or text")
    return labels


def _read_images(path: Path, name: str) -> np.ndarray:
    with _opened(path) as file:
        images = file[name]
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[-1] not in (1, 3, 4):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] not in (3, 4)):
        raise DataError(
            f"{path}: {name} has shape {images.shape}, and images are (N, H, W), (N, H, W, 3) or "
            "(N, 3, H, W): save slices of that shape"
        )
    if images.ndim == 4 and images.dtype != np.uint8:
        raise DataError(
            f"{path}: {name} is {images.dtype} with colors, which are read with 8 bits: save "
            f"them scaled to 0..255, as ({name} * 255).astype('uint8') where they are in [0, 1]"
        )
    if images.dtype == np.bool_:
        return images.astype(np.uint8) * np.uint8(255)
    if images.dtype.kind not in "iuf":
        raise DataError(f"{path}: {name} is {images.dtype}: save images as numbers")
    return images
