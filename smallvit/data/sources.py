"""Readers: where the images of a dataset lie, and how any image becomes RGB of one size.

A source lists its images by split without decoding them; ``store.py`` decodes each once.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from smallvit.core.errors import DataError
from smallvit.data.registry import DatasetSpec

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True, kw_only=True)
class SourceSplit:
    """The undecoded images of one split, in a fixed order.

    Attributes:
        names: Name of each image, for messages; a file's path below the dataset's folder.
        labels: Class index of each image.
        read: Opens image ``i``; raises any exception where that file is broken.
    """

    names: Sequence[str]
    labels: np.ndarray
    read: Callable[[int], Image.Image]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A dataset before packing.

    Attributes:
        name: Name in run folders and result tables.
        class_names: Names in the order of the labels.
        splits: By name; ``"train"`` alone where the dataset comes in one piece.
        key: Hash of what would be read, so that a changed source is packed anew.
        hflip: Whether a mirrored image keeps its class.
    """

    name: str
    class_names: tuple[str, ...]
    splits: dict[str, SourceSplit]
    key: str
    hflip: bool


def open_named(spec: DatasetSpec, *, data_dir: Path, offline: bool) -> Source:
    """Open a dataset of the registry.

    Args:
        spec: Its entry.
        data_dir: Folder where torchvision keeps or puts the official archives.
        offline: Refuse to download.

    Raises:
        DataError: If the files are absent and cannot be downloaded.
    """
    if spec.name == "digits":
        return _open_digits(spec)
    return _open_cifar(spec, data_dir, offline=offline)


def open_folder(path: Path) -> Source:
    """Open a folder of class folders, with or without train, val and test folders above them.

    Classes are the sub-folders' names in alphabetical order. Hidden files and files whose suffix
    is no image's are passed over.

    Raises:
        DataError: If there is no such folder, no class folder, or the splits' classes differ.
    """
    if not path.is_dir():
        what = f"{path} is a file" if path.exists() else f"no folder at {path}"
        raise DataError(f"{what}: --data takes a folder of class folders")
    roots = {
        split: path / name
        for split, names in SPLIT_FOLDERS.items()
        for name in names
        if (path / name).is_dir()
    }
    for names in SPLIT_FOLDERS.values():
        twice = [name for name in names if (path / name).is_dir()]
        if len(twice) > 1:
            raise DataError(f"{path} has both {' and '.join(twice)}: keep one of them")
    if roots and "train" not in roots:
        found = ", ".join(sorted(root.name for root in roots.values()))
        raise DataError(f"{path} has {found} but no train folder")
    roots = roots or {"train": path}
    classes = {split: _class_folders(root) for split, root in roots.items()}
    names = classes["train"]
    if len(names) < 2:
        raise DataError(
            f"{roots['train']} has {len(names)} class folders with images; at least 2 are needed, "
            "one folder a class"
        )
    for split, found in classes.items():
        if found != names:
            odd = sorted(set(found) ^ set(names))
            raise DataError(f"classes of {roots[split]} and {roots['train']} differ: {odd[:5]}")
    digest = hashlib.sha256()
    splits = {split: _list_images(path, root, names, digest) for split, root in roots.items()}
    return Source(
        name=path.resolve().name,
        class_names=tuple(names),
        splits=splits,
        key=digest.hexdigest(),
        hflip=True,
    )


def to_rgb(image: Image.Image, size: int) -> np.ndarray:
    """Convert an image of any mode and size to uint8 RGB, channels first.

    The first frame counts; EXIF rotation is applied; 16-bit and float values are scaled to 8 bits;
    transparency is laid over white. The shorter side is resized to ``size`` (bicubic, antialiased),
    then the centre is cut out.

    Args:
        image: Opened image.
        size: Side of the result, in pixels.

    Returns:
        Array of shape (3, size, size).
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        # Without a stated range: 16 bits where a value needs them, 8 bits otherwise.
        values = np.asarray(image, dtype=np.float64)
        scale = 255 / 65535 if values.max() > 255 else 1.0
        image = Image.fromarray(np.clip(values * scale, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGBA", rgba.size, "white")
        image.alpha_composite(rgba)
    image = image.convert("RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


def _open_digits(spec: DatasetSpec) -> Source:
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # its grey levels are 0 to 16
    split = SourceSplit(
        names=[f"digit {i}" for i in range(len(pixels))],
        labels=bunch.target.astype(np.int64),
        read=lambda i: Image.fromarray(pixels[i]),
    )
    return Source(
        name=spec.name,
        class_names=tuple(str(name) for name in bunch.target_names),
        splits={"train": split},
        key=hashlib.sha256(pixels.tobytes()).hexdigest(),
        hflip=spec.hflip,
    )


def _open_cifar(spec: DatasetSpec, data_dir: Path, *, offline: bool) -> Source:
    from torchvision.datasets import CIFAR10, CIFAR100

    reader = {"cifar10": CIFAR10, "cifar100": CIFAR100}[spec.name]
    splits, digest, classes = {}, hashlib.sha256(), ()
    for split in ("train", "test"):
        try:
            dataset = reader(str(data_dir), train=split == "train", download=not offline)
        except (RuntimeError, OSError) as error:
            reason = "offline" if offline else str(error).partition("\n")[0]
            raise DataError(
                f"{spec.name} is not in {data_dir} and could not be fetched "
                f"({reason}): put {reader.filename} "
                f"(md5 {reader.tgz_md5}) from {reader.url} there and unpack it"
            ) from None
        pixels: np.ndarray = dataset.data
        digest.update(pixels.tobytes())
        classes = tuple(dataset.classes)
        splits[split] = SourceSplit(
            names=[f"{split} image {i}" for i in range(len(pixels))],
            labels=np.asarray(dataset.targets, dtype=np.int64),
            read=lambda i, pixels=pixels: Image.fromarray(pixels[i]),
        )
    return Source(
        name=spec.name,
        class_names=classes,
        splits=splits,
        key=digest.hexdigest(),
        hflip=spec.hflip,
    )


def _class_folders(root: Path) -> list[str]:
    return sorted(
        folder.name
        for folder in root.iterdir()
        if folder.is_dir() and not folder.name.startswith(".") and any(_images_in(folder))
    )


def _images_in(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]


def _list_images(
    top: Path, root: Path, classes: Sequence[str], digest: "hashlib._Hash"
) -> SourceSplit:
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(_images_in(root / name))
        paths += found
        labels += [label] * len(found)
    for path in paths:
        stat = path.stat()
        digest.update(f"{path.relative_to(top)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())

    def read(i: int) -> Image.Image:
        with Image.open(paths[i]) as image:
            image.load()
        return image

    return SourceSplit(
        names=[str(path.relative_to(top)) for path in paths],
        labels=np.asarray(labels, dtype=np.int64),
        read=read,
    )
