"""Images with masks of class indices, in folders: checked, packed and split.

Shapes in this file:
    S    images of a split
    B    images of a step
    H W  image in pixels
"""

import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from glob import escape
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Shaped, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from smallvit.core.errors import ConfigError, DataError, explained
from smallvit.data.dataset import Dataset, Split
from smallvit.data.files.content import content_hash
from smallvit.data.files.images import IMAGE_SUFFIXES, open_image, over_white
from smallvit.data.files.load import USUAL_SIZES
from smallvit.data.files.splits import (
    CutSettings,
    StoredCut,
    cut_by_position,
    cut_splits,
    split_hash,
    stored_cut,
)
from smallvit.data.files.store import cache_errors, content_order, file_stem, hash_images
from smallvit.segment.config import SegmentDataConfig

SPLITS = ("train", "val", "test")
IGNORED = 255  # index of pixels that count for nothing
MASK_MODES = ("P", "L", "1")  # of PIL: palette, 8-bit grey, 1-bit
SMALL_GREYS = ("L;2", "L;4")  # PIL scales these to 8 bits, so that their values are no indices
LAYOUT = "expected images/train/NAME.* with masks/train/NAME.png, and the same for val and test"
# Files of one thread's turn: enough that threads do not wait for each other.
CHUNK = 16
logger = logging.getLogger("smallvit")
Pair = tuple[Path, Path]  # an image file and its mask


@dataclass(frozen=True, kw_only=True)
class SegmentData:
    """Images with the class of each of their pixels.

    Attributes:
        dataset: The images and their splits, all of one packed array; it has no labels.
        masks: Class of each pixel, in the order of the packed array; ``IGNORED`` where none counts.
        class_names: In the order of the indices.
    """

    dataset: Dataset
    masks: UInt8[Tensor, "packed H W"]
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def take_masks(self, split: Split, position: Int[Tensor, " B"]) -> UInt8[Tensor, "B H W"]:
        """Gather masks by their position in a split."""
        return self.masks.index_select(0, split.index[position])

    def to(self, device: torch.device) -> "SegmentData":
        """Put everything on the device; images that do not fit are streamed."""
        return replace(self, dataset=self.dataset.to(device), masks=self.masks.to(device))


def load_segment_data(config: SegmentDataConfig, *, cache_dir: Path) -> SegmentData:
    """Read, check, fit and split a folder of images and masks.

    An image of any size is resized until its longer side is ``image_size`` (bicubic, antialiased)
    and centred on a square of its own mean color. Its mask is resized by nearest neighbour, and
    what lies outside the image is ignored.

    Args:
        config: What to load.
        cache_dir: Folder that the cut is stored in.

    Raises:
        ConfigError: If no folder is named.
        DataError: If files are missing or broken, or masks hold no usable class indices.
    """
    if config.path is None:
        raise ConfigError(f"no data named: give --data FOLDER ({LAYOUT})")
    pairs = list_pairs(config.path)
    flat = [pair for split in pairs.values() for pair in split]
    size = config.image_size or _find_size(flat)
    images, masks, seen, contents = _read_all(flat, size)
    num_train = len(pairs["train"])
    class_names = _name_classes(config.path, flat, seen, num_train)
    hashes, mask_hashes = hash_images(images), hash_images(masks)
    counts = {name: len(split) for name, split in pairs.items()}
    fingerprint = _fingerprint(class_names, counts, hashes, mask_hashes)
    name, by_content = config.path.absolute().name, config.split_version > 1
    folder = cache_dir / "segment" / f"{file_stem(name)}-{fingerprint[:16]}"
    with cache_errors(cache_dir):
        folder.mkdir(parents=True, exist_ok=True)
    keys = contents if by_content else hashes
    cut = _cut(config, folder, images[:num_train], keys[:num_train], counts)
    brought = np.split(np.arange(len(flat)), np.cumsum(list(counts.values()))[:-1])
    indices = {part: getattr(cut, part) for part in SPLITS}
    indices |= {**dict(zip(counts, brought, strict=True)), "train": cut.train}
    if by_content:
        for part, index in indices.items():
            order = content_order(contents[index], mask_hashes[index], hashes[index])
            indices[part] = index[order]
    _check_splits(config.path, indices, masks, hashes)
    indices["labelled"] = indices["train"]
    packed, labels = torch.from_numpy(images), torch.zeros(len(images), dtype=torch.int64)
    known = indices
    if by_content:
        part = np.repeat(np.arange(len(counts)), list(counts.values()))
        order = np.lexsort((hashes, mask_hashes, contents, part))
        in_order = (each[order] for each in (hashes, mask_hashes, contents))
        fingerprint = _fingerprint(class_names, counts, *in_order)
        known = {part: contents[index].view(np.int64) for part, index in indices.items()}
    dataset = Dataset(
        name=name,
        class_names=(),
        image_size=size,
        splits={
            part: Split(images=packed, labels=labels, index=torch.from_numpy(index))
            for part, index in indices.items()
        },
        mean=cut.mean,
        std=cut.std,
        hflip=config.hflip,
        fingerprint=fingerprint,
        split_hashes={part: split_hash(values) for part, values in known.items()},
        broken=(),
        store_path=folder,
        content_hashes={part: contents[index] for part, index in indices.items()},
    )
    return SegmentData(dataset=dataset, masks=torch.from_numpy(masks), class_names=class_names)


def _check_splits(
    path: Path, indices: dict[str, np.ndarray], masks: np.ndarray, hashes: np.ndarray
) -> None:
    """Refuse a split without a class; warn of images that two splits share.

    Raises:
        DataError: If every pixel of a split's masks is ignored.
    """
    for part in SPLITS:
        if (masks[indices[part]] == IGNORED).all():
            raise DataError(
                f"{path}: every pixel of the {part} masks is {IGNORED}, which is ignored: "
                "give each pixel its class index"
            )
    for part, other in combinations(SPLITS, 2):
        shared = int(np.isin(hashes[indices[other]], hashes[indices[part]]).sum())
        if shared:
            logger.warning(
                "%d of the %d %s images of %s are in %s too, and flatter its scores: remove them "
                "from one of the two",
                shared,
                len(indices[other]),
                other,
                path,
                part,
            )


def _fingerprint(class_names: tuple[str, ...], counts: dict[str, int], *hashes: np.ndarray) -> str:
    digest = hashlib.sha256(repr((class_names, counts)).encode())
    for each in hashes:
        digest.update(each.tobytes())
    return digest.hexdigest()


def list_pairs(folder: Path) -> dict[str, list[Pair]]:
    """Find the images and masks of each split, in the order of their names.

    Raises:
        DataError: If the folders are not there, or an image or a mask has no counterpart.
    """
    if not (folder / "images" / "train").is_dir():
        raise DataError(f"no images/train in {folder}: {LAYOUT}")
    found: dict[str, list[Pair]] = {}
    for split in SPLITS:
        images = _by_stem(folder / "images" / split, IMAGE_SUFFIXES)
        masks = _by_stem(folder / "masks" / split, frozenset({".png"}))
        if not images and not masks and split != "train":
            continue
        if not images:
            raise DataError(f"{folder / 'images' / split} holds no images: {LAYOUT}")
        for left, right, kind in ((images, masks, "mask"), (masks, images, "image")):
            alone = [stem for stem in left if stem not in right]
            if alone:
                unread = sorted((folder / f"{kind}s" / split).glob(f"{escape(alone[0])}.*"))
                remedy = f"save {unread[0]} as PNG" if unread else LAYOUT
                raise DataError(
                    f"{folder}: {len(alone)} of {len(left)} files have no {kind}, first: "
                    f"{left[alone[0]].relative_to(folder)}: {remedy}"
                )
        found[split] = [(images[stem], masks[stem]) for stem in images]
    return found


def _by_stem(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    """List the files of a folder by name without suffix, sorted; empty where there is none."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in found:
            raise DataError(
                f"{found[path.stem]} and {path.name} would have one mask: remove one of them, or "
                "rename it and give it a mask of its new name"
            )
        found[path.stem] = path
    return found


def _find_size(pairs: list[Pair]) -> int:
    """Return the usual side nearest to the median of the images' longer sides."""
    chosen = np.linspace(0, len(pairs) - 1, num=min(64, len(pairs))).astype(int)
    sides = [max(_open(pairs[i][0]).size) for i in chosen]
    return min(USUAL_SIZES, key=lambda size: abs(size - np.median(sides)))


def _read_all(
    pairs: list[Pair], size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Decode all pairs.

    Returns:
        Images (n, 3, H, W), masks (n, H, W), indices that each has (n, 256), content hashes (n,).
    """
    images = np.empty((len(pairs), 3, size, size), dtype=np.uint8)
    masks = np.empty((len(pairs), size, size), dtype=np.uint8)
    seen = np.zeros((len(pairs), 256), dtype=bool)
    contents = np.empty(len(pairs), dtype=np.uint64)

    def read(start: int) -> None:
        for i, (image_path, mask_path) in enumerate(pairs[start : start + CHUNK], start):
            (image, contents[i]), mask = _read_image(image_path), _read_mask(mask_path)
            if image.size != mask.size:
                raise DataError(
                    f"{mask_path} has {mask.width} x {mask.height} px, its image "
                    f"{image.width} x {image.height}: both need one size"
                )
            seen[i] = np.bincount(np.asarray(mask).ravel(), minlength=256) > 0
            images[i], masks[i] = fit_square(image, mask, size)

    with ThreadPoolExecutor() as threads:
        list(threads.map(read, range(0, len(pairs), CHUNK)))
    return images, masks, seen, contents


def fit_square(
    image: Image.Image, mask: Image.Image, size: int
) -> tuple[Shaped[np.ndarray, "3 H W"], Shaped[np.ndarray, "H W"]]:
    """Fit an image and its mask into a square, see ``load_segment_data``.

    Args:
        image: RGB.
        mask: Of class indices, as large as the image.
        size: Side of the square, in pixels.
    """
    longer = max(image.size)
    width, height = (max(1, round(side * size / longer)) for side in image.size)
    left, top = (size - width) // 2, (size - height) // 2
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    square = np.empty((size, size, 3), dtype=np.uint8)
    square[:] = pixels.mean(axis=(0, 1)).round()
    square[top : top + height, left : left + width] = pixels
    indices = np.full((size, size), IGNORED, dtype=np.uint8)
    small = np.asarray(mask.resize((width, height), Image.Resampling.NEAREST))
    indices[top : top + height, left : left + width] = small
    return square.transpose(2, 0, 1), indices


def _open(path: Path) -> Image.Image:
    with _replaced_if_broken(path, "read"):
        return open_image(path)


def _replaced_if_broken(path: Path, what: str) -> AbstractContextManager[None]:
    """Explain a file that PIL cannot take; its PNG reader raises all three."""
    return explained(
        lambda error: (
            f"{path} cannot be {what} ({error}): replace it, or remove it and its counterpart"
        ),
        OSError,
        ValueError,
        SyntaxError,
    )


def _read_image(path: Path) -> tuple[Image.Image, int]:
    """Read an image as RGB, upright, with transparency laid over white; and its content hash."""
    image = _open(path)
    with _replaced_if_broken(path, "decoded"):
        content = content_hash(image)
        image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise DataError(f"{path} has more than 8 bits a channel: save it with 8")
    return over_white(image), content


def _read_mask(path: Path) -> Image.Image:
    """Read a mask as class indices, mode L."""
    mask = _open(path)
    tile: Any = getattr(mask, "tile", None)
    raw = tile[0][3] if tile else ""  # how the bytes become pixels
    with _replaced_if_broken(path, "decoded"):
        mask.load()
    if mask.mode not in MASK_MODES or str(raw) in SMALL_GREYS:
        raise DataError(
            f"{path} is a mask of mode {mask.mode} ({raw}), whose values are no class indices: "
            "save it as 8-bit grey or with a palette, index = class"
        )
    return Image.fromarray(np.asarray(mask).astype(np.uint8))


def _name_classes(
    folder: Path, pairs: list[Pair], seen: np.ndarray, num_train: int
) -> tuple[str, ...]:
    """Return the class names of classes.txt, else numbers; refuse indices that are no class.

    Raises:
        DataError: Names the first mask at fault.
    """
    in_train = np.flatnonzero(seen[:num_train, :IGNORED].any(axis=0))
    if len(in_train) < 2:
        found = f"{folder}: the train masks hold"
        index = f"{', '.join(map(str, in_train)) or 'none'}"
        if seen[:num_train, IGNORED].any():
            raise DataError(
                f"{found} {IGNORED}, which is ignored, and one class beside it (index {index}): "
                f"where {IGNORED} is the object, save it as 1"
            )
        raise DataError(
            f"{found} one class only (indices {index}; {IGNORED} is ignored): segmentation needs "
            "two, such as 0 for background and 1 for the object"
        )
    listed = folder / "classes.txt"
    if listed.is_file():
        with explained(
            lambda error: f"{listed} cannot be read ({error}): save it as UTF-8",
            OSError,
            UnicodeDecodeError,
        ):
            lines = listed.read_text("utf-8-sig").splitlines()
        names = tuple(line.strip() for line in lines if line.strip())
        if len(set(names)) != len(names):
            raise DataError(f"{listed} names a class twice: one different name a line")
        remedy = (
            f"{listed} names {len(names)} classes, a line each from index 0 on: name it there, or "
            "mend the mask"
        )
    else:
        names = tuple(f"class {i}" for i in range(in_train.max() + 1))
        if len(in_train) != len(names):
            some = ", ".join(map(str, in_train[:8]))
            raise DataError(
                f"{folder}: the indices of the train masks leave gaps ({some}): number the classes "
                "from 0 on, or list them all in classes.txt"
            )
        remedy = (
            f"the train masks hold {len(names)} classes: mend the mask, or name all classes in "
            "classes.txt, a line each from index 0 on"
        )
    outside = seen[:, len(names) : IGNORED]
    if outside.any():
        first = int(outside.any(axis=1).argmax())
        index = len(names) + int(outside[first].argmax())
        raise DataError(f"{pairs[first][1]} holds index {index}, which is no class: {remedy}")
    return names


def _cut(
    config: SegmentDataConfig,
    folder: Path,
    images: np.ndarray,
    keys: np.ndarray,
    counts: dict[str, int],
) -> StoredCut:
    """Cut what the folders do not bring out of the training images, once.

    ``keys`` are the hashes that the version of the cut goes by.
    """
    settings = CutSettings(
        val_fraction=0.0 if "val" in counts else config.val_fraction,
        test_fraction=0.0 if "test" in counts else config.test_fraction,
        label_fraction=1.0,
        seed=config.split_seed,
    )

    def make() -> StoredCut:
        make_cut = cut_splits if config.split_version > 1 else cut_by_position
        cut = make_cut(np.zeros(len(images), dtype=np.int64), keys, ("train",), settings)
        mean, std = _channel_stats(images, cut.train)
        return StoredCut(**vars(cut), mean=mean, std=std)

    return stored_cut(folder, (config.split_version, *settings), make)


def _channel_stats(
    images: np.ndarray, index: np.ndarray
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Exact mean and standard deviation of the channels of some images, in [0, 1]."""
    levels = np.arange(256) / 255
    stats = []
    for channel in range(3):
        # Some at a time: what is taken out of a large array is a copy.
        chunks = np.array_split(index, max(1, len(index) // 256))
        counts = sum(np.bincount(images[c, channel].ravel(), minlength=256) for c in chunks)
        share = counts / np.sum(counts)
        mean = float(share @ levels)
        stats.append((mean, float(np.sqrt(max(share @ levels**2 - mean**2, 1e-6)))))
    (a, d), (b, e), (c, f) = stats
    return (a, b, c), (d, e, f)
