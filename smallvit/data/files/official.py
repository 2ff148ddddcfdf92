"""Readers of the datasets known by name, each for the layout that its official files unpack to."""

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ImageOps

from smallvit.core.errors import DataError, explained, reason
from smallvit.data.files.fetch import is_present, manual_steps, targets
from smallvit.data.files.parquet import list_parquet
from smallvit.data.files.registry import DATASETS, DatasetSpec
from smallvit.data.files.sources import (
    Columns,
    FoundFile,
    Listing,
    Source,
    SourceSplit,
    array_split,
    file_split,
    files_key,
    find_files,
)

READER_VERSION = 1  # raise it when a reader lists other images, labels or names than before
TINY_IMAGENET = "tiny-imagenet-200"
CINIC = "cinic-10"
CINIC_CLASSES = DATASETS["cinic10"].class_names
CINIC_SPLITS = {"train": "train", "val": "valid", "test": "test"}
AIRCRAFT = "fgvc-aircraft-2013b/data"
BANNER_ROWS = 20  # of each FGVC-Aircraft photograph
CARS = "stanford_cars"
CARS_SPLITS = {  # annotations and folder of images
    "train": ("devkit/cars_train_annos.mat", "cars_train"),
    "test": ("cars_test_annos_withlabels.mat", "cars_test"),
}


class OfficialLayout(NamedTuple):
    """How a dataset lies in the data folder.

    Attributes:
        parts: Files and folders whose change is a change of the dataset, below the data folder;
            ``None`` stands for what its official files become.
        list_images: Reads the annotations.
    """

    parts: Callable[[Path], Iterable[str]] | None
    list_images: Callable[[Path], Listing]


class BrokenLayoutError(Exception):
    """What is wrong with the files of a dataset, with the path."""


def open_named(spec: DatasetSpec, *, data_dir: Path) -> Source:
    """Open a dataset of the registry that lies in ``data_dir``; nothing is downloaded.

    The key of a dataset in few files is formed of their sizes and times. That of one in many files
    is formed of its annotation files and of the times of its folders, which change when a file is
    added, removed or renamed, but not when one is overwritten in place.

    Args:
        spec: Its entry.
        data_dir: Folder that the official files were unpacked in.

    Returns:
        Source whose ``list_images`` raises ``DataError`` where the files are broken, some of
        them are missing, or classes and images are not as many as the entry says.

    Raises:
        DataError: If the dataset is not there, or a file that the key is formed of is missing.
    """
    layout, made = LAYOUTS[spec.name], targets(spec)
    if not is_present(spec, data_dir):
        raise DataError(
            f"{spec.name} is not in {data_dir}: `smallvit data get {spec.name}` fetches it; by "
            f"hand: {manual_steps(spec, data_dir)}"
        )
    what = str(data_dir / made[0]) if len(made) == 1 else "it"
    remedy = f"mend it, or remove {what} and run `smallvit data get {spec.name}`"
    in_one_line = partial(
        explained, lambda e: f"{spec.name}: {_problem(e)}: {remedy}", OSError, BrokenLayoutError
    )

    def list_images() -> Listing:
        with in_one_line():
            listing = layout.list_images(data_dir)
            _check_counts(spec, listing)
        return listing

    with in_one_line():
        parts = made if layout.parts is None else layout.parts(data_dir)
        files = files_key(_stat(data_dir, parts))
    return Source(
        name=spec.name,
        key=hashlib.sha256(f"{spec.name}/{READER_VERSION}/{files}".encode()).hexdigest(),
        hflip=spec.hflip,
        autoaugment=spec.autoaugment,
        image_size=spec.image_size,
        list_images=list_images,
    )


def _problem(error: Exception) -> str:
    return f"{error.filename} is missing" if isinstance(error, FileNotFoundError) else str(error)


def _check_counts(spec: DatasetSpec, listing: Listing) -> None:
    """Refuse what was copied or unpacked in part, which its annotations need not tell."""
    found = {"classes": len(listing.class_names)}
    found |= {f"{name} images": len(split.names) for name, split in listing.splits.items()}
    official = {"classes": spec.num_classes}
    for split in ("train", "val", "test"):
        official[f"{split} images"] = getattr(spec, f"num_{split}")
    differences = [
        f"{found.get(what, 0):,} {what} here, {num:,} officially"
        for what, num in official.items()
        if found.get(what, 0) != num
    ]
    if differences:
        raise BrokenLayoutError("; ".join(differences))


def _reading(path: Path) -> AbstractContextManager[None]:
    def explain(error: Exception) -> str:  # torchvision, scipy and pickle raise anything at all
        if isinstance(error, OSError | BrokenLayoutError):
            return _problem(error)
        return f"{path} cannot be read ({reason(error)})"

    return explained(explain, Exception, into=BrokenLayoutError)


def _stat(data_dir: Path, parts: Iterable[str]) -> Iterator[FoundFile]:
    for name in parts:
        path = data_dir / name
        stat = path.stat()
        # The size of a folder differs between file systems and says nothing.
        yield FoundFile(name, 0 if path.is_dir() else stat.st_size, stat.st_mtime_ns)


def _parts(folder: str, *names: str) -> Callable[[Path], Iterable[str]]:
    return lambda _: [f"{folder}/{name}" for name in names]


def _array_split(split: str, pixels: np.ndarray, labels: Any) -> SourceSplit:
    if len(pixels) != len(labels):
        raise BrokenLayoutError(f"{len(pixels)} images and {len(labels)} labels in {split}")
    return array_split([f"{split}/{i:05d}" for i in range(len(pixels))], pixels, labels)


def class_folders(root: Path, folder: str, classes: Sequence[str]) -> SourceSplit:
    """List one folder of images a class: by class, then by name."""
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = find_files(root / folder / name)
        names += [f"{folder}/{name}/{file.name}" for file in found]
        labels += [label] * len(found)
    return file_split(root, names, labels)


def _lines(path: Path) -> list[str]:
    with _reading(path):
        lines = path.read_text("utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _listed_files(
    root: Path, folder: str, names: Sequence[str], labels: Sequence[int]
) -> SourceSplit:
    """List the images of a folder that annotations name."""
    present = {path.name for path in (root / folder).iterdir()}
    for name in names:
        if name not in present:
            raise BrokenLayoutError(f"{root / folder / name} is missing")
    return file_split(root, [f"{folder}/{name}" for name in names], labels)


def _list_digits(data_dir: Path) -> Listing:
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # its grey levels are 0 to 16
    return Listing(
        class_names=tuple(str(name) for name in bunch.target_names),
        splits={"train": _array_split("train", pixels, bunch.target)},
    )


def _list_torchvision(reader: str, path: str, data_dir: Path) -> Listing:
    """Read with torchvision, which checks the sums of CIFAR's batches and makes SVHN's class 10 0.

    SVHN's extra digits are not read.

    Args:
        reader: Name of torchvision's class.
        path: What it reads, for messages.
        data_dir: Folder of the official files.
    """
    from torchvision import datasets

    digits, splits, class_names = reader == "SVHN", {}, ()
    for split in ("train", "test"):
        which = {"split": split} if digits else {"train": split == "train"}
        with _reading(data_dir / path.format(split)), warnings.catch_warnings():
            # NumPy 2.4.0 to 2.4.4 warn of dtypes that Python 2 pickled, as these batches are
            # (https://github.com/numpy/numpy/pull/31177).
            warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
            dataset: Any = getattr(datasets, reader)(data_dir, **which)
        pixels = np.asarray(dataset.data)
        labels = np.asarray(dataset.labels if digits else dataset.targets)
        pixels = pixels.transpose(0, 2, 3, 1) if digits else pixels
        splits[split] = _array_split(split, pixels, labels)
        class_names = tuple("0123456789" if digits else dataset.classes)
    return Listing(class_names=class_names, splits=splits)


def _tiny_imagenet_parts(data_dir: Path) -> Iterator[str]:
    wnids = _lines(data_dir / TINY_IMAGENET / "wnids.txt")
    yield from (f"{TINY_IMAGENET}/{name}" for name in ("wnids.txt", "words.txt"))
    folders = [f"{TINY_IMAGENET}/train/{wnid}" for wnid in wnids]
    if _val_is_arranged(data_dir / TINY_IMAGENET, wnids):
        folders += [f"{TINY_IMAGENET}/val/{wnid}" for wnid in wnids]
    else:
        yield f"{TINY_IMAGENET}/val/val_annotations.txt"
        folders.append(f"{TINY_IMAGENET}/val")
    for folder in folders:
        images = f"{folder}/images"
        yield images if (data_dir / images).is_dir() else folder


def _val_is_arranged(root: Path, wnids: Sequence[str]) -> bool:
    """Tell whether the validation images were sorted into class folders, as many users do."""
    return any((root / "val" / wnid).is_dir() for wnid in wnids[:1])


def _list_tiny_imagenet(data_dir: Path) -> Listing:
    """List the images by class and then by name; class labels follow the sorted WordNet ids.

    The official validation split is the test split here, since the labels of the official test
    split are not public. Its order is the same where it was sorted into class folders.
    """
    root = data_dir / TINY_IMAGENET
    wnids = sorted(_lines(root / "wnids.txt"))
    if _val_is_arranged(root, wnids):
        test = class_folders(root, "val", wnids)
    else:
        test = _annotated_val(root, wnids)
    return Listing(
        class_names=_words(root / "words.txt", wnids),
        splits={"train": class_folders(root, "train", wnids), "test": test},
    )


def _annotated_val(root: Path, wnids: Sequence[str]) -> SourceSplit:
    path, folder = root / "val" / "val_annotations.txt", root / "val" / "images"
    with _reading(path):
        annotated = dict(line.split("\t")[:2] for line in _lines(path))
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    unknown = sorted(set(annotated.values()) - set(labels))
    if unknown:
        raise BrokenLayoutError(f"{path} has the class {unknown[0]}, which is not in wnids.txt")
    ordered = sorted((labels[wnid], name) for name, wnid in annotated.items())
    split = _listed_files(
        root, "val/images", [name for _, name in ordered], [label for label, _ in ordered]
    )
    for file in find_files(folder):
        if file.name not in annotated:
            raise BrokenLayoutError(f"{folder / file.name} is not in {path.name}")
    return split


def _words(path: Path, wnids: Sequence[str]) -> tuple[str, ...]:
    """Return the first word for each id, with the id where two have the same."""
    with _reading(path):
        words = dict(line.split("\t", maxsplit=1) for line in _lines(path))
    absent = [wnid for wnid in wnids if wnid not in words]
    if absent:
        raise BrokenLayoutError(f"{path} has no word for {absent[0]}")
    first = [words[wnid].partition(",")[0].strip() for wnid in wnids]
    return tuple(
        f"{word} ({wnid})" if first.count(word) > 1 else word
        for word, wnid in zip(first, wnids, strict=True)
    )


def _list_cinic10(data_dir: Path) -> Listing:
    """List the images by class and then by name; the folder ``valid`` is the split ``val``."""
    root = data_dir / CINIC
    return Listing(
        class_names=CINIC_CLASSES,
        splits={
            split: class_folders(root, folder, CINIC_CLASSES)
            for split, folder in CINIC_SPLITS.items()
        },
    )


def _list_aircraft(data_dir: Path) -> Listing:
    """List the images of the 100 variants in the order of the annotations.

    The bottom rows of each photograph are a banner with its copyright, which the authors ask to
    remove before use: it is cut off when an image is read.
    """
    root = data_dir / AIRCRAFT
    variants = _lines(root / "variants.txt")
    labels = {variant: label for label, variant in enumerate(variants)}
    splits = {}
    for split in ("train", "val", "test"):
        path = root / f"images_variant_{split}.txt"
        with _reading(path):  # names of variants have spaces
            pairs = [tuple(line.split(" ", maxsplit=1)) for line in _lines(path)]
            found = [labels[variant] for _, variant in pairs]
        names = [f"{number}.jpg" for number, _ in pairs]
        splits[split] = _without_banner(_listed_files(root, "images", names, found))
    return Listing(class_names=tuple(variants), splits=splits)


def _without_banner(split: SourceSplit) -> SourceSplit:
    banner = (0, 0, 0, BANNER_ROWS)  # left, top, right, bottom
    return replace(split, read=lambda i: ImageOps.crop(split.read(i), banner))


def _cars_parts(data_dir: Path) -> list[str]:
    parquet = [f"{CARS}/{file.name}" for file in find_files(data_dir / CARS, {".parquet"})]
    if parquet and not (data_dir / CARS / "devkit").is_dir():
        return parquet
    return [
        f"{CARS}/devkit/cars_meta.mat",
        *(f"{CARS}/{part}" for parts in CARS_SPLITS.values() for part in parts),
    ]


def _list_cars(data_dir: Path) -> Listing:
    """List the images in the order of the annotations, or of the rows of a parquet copy."""
    root = data_dir / CARS
    if not (root / "devkit").is_dir():
        return _list_cars_parquet(root)
    splits = {}
    for split, (annotations, folder) in CARS_SPLITS.items():
        records = np.atleast_1d(_read_mat(root / annotations, "annotations"))
        names = [str(record["fname"]) for record in records]
        labels = [int(record["class"]) - 1 for record in records]  # MATLAB counts from 1
        splits[split] = _listed_files(root, folder, names, labels)
    classes = _read_mat(root / "devkit" / "cars_meta.mat", "class_names")
    return Listing(class_names=tuple(str(name) for name in classes), splits=splits)


def _read_mat(path: Path, variable: str) -> Any:
    from scipy.io import loadmat

    with _reading(path):
        return loadmat(path, squeeze_me=True)[variable]


def _list_cars_parquet(root: Path) -> Listing:
    found = [root / file.name for file in find_files(root, {".parquet"})]
    # Copies on the Hub name the files (train-00000-of-00002.parquet) or their folder after the
    # split; files of other splits (corrupted images) are passed over.
    files = {
        split: [path for path in found if split in (path.parent.name, path.name.partition("-")[0])]
        for split in CARS_SPLITS
    }
    for split, paths in files.items():
        if not paths:
            raise BrokenLayoutError(f"{root} has no parquet file of the split {split}")
    return list_parquet(files, Columns())


LAYOUTS = {
    "digits": OfficialLayout(lambda _: (), _list_digits),
    "fashion-mnist": OfficialLayout(
        None,
        partial(_list_torchvision, "FashionMNIST", "FashionMNIST/raw"),
    ),
    "cifar10": OfficialLayout(
        _parts(
            "cifar-10-batches-py",
            *(f"data_batch_{i}" for i in range(1, 6)),
            "test_batch",
            "batches.meta",
        ),
        partial(_list_torchvision, "CIFAR10", "cifar-10-batches-py"),
    ),
    "cifar100": OfficialLayout(
        _parts("cifar-100-python", "train", "test", "meta"),
        partial(_list_torchvision, "CIFAR100", "cifar-100-python"),
    ),
    "cinic10": OfficialLayout(
        _parts(
            CINIC,
            *(f"{split}/{name}" for split in CINIC_SPLITS.values() for name in CINIC_CLASSES),
        ),
        _list_cinic10,
    ),
    "svhn": OfficialLayout(
        _parts(".", "train_32x32.mat", "test_32x32.mat"),
        partial(_list_torchvision, "SVHN", "{}_32x32.mat"),
    ),
    "tiny-imagenet": OfficialLayout(_tiny_imagenet_parts, _list_tiny_imagenet),
    "aircraft": OfficialLayout(
        _parts(
            AIRCRAFT,
            "images",
            "variants.txt",
            *(f"images_variant_{split}.txt" for split in ("train", "val", "test")),
        ),
        _list_aircraft,
    ),
    "cars": OfficialLayout(_cars_parts, _list_cars),
}
