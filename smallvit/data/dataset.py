"""A dataset ready to train on: packed images, their labels and splits.

Shapes in this file:
    N    images of a split
    B    images of a step
    H W  image in pixels
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from smallvit.data.config import AutoAugmentPolicy


@dataclass(frozen=True, kw_only=True)
class Split:
    """Some images of one packed array.

    Attributes:
        images: The packed array that the split is part of; on the host, memory-mapped, where it
            does not fit on the device of ``index``.
        labels: Its labels.
        index: Of each of the split's images in it.
    """

    images: UInt8[Tensor, "packed 3 H W"]
    labels: Int[Tensor, " packed"]
    index: Int[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.index)

    def take(self, position: Int[Tensor, " B"] | None = None) -> UInt8[Tensor, "B 3 H W"]:
        """Gather images by their position, or all, onto the device of ``index``."""
        index = self.index if position is None else self.index[position]
        if self.images.device == index.device:
            return self.images.index_select(0, index)
        # Pinned memory lets the copy run beside the kernels that are queued already.
        batch = torch.empty(
            (len(index), *self.images.shape[1:]),
            dtype=torch.uint8,
            pin_memory=index.device.type == "cuda",
        )
        torch.index_select(self.images, 0, index.cpu(), out=batch)
        return batch.to(index.device, non_blocking=True)

    def pick(self, position: slice | Int[Tensor, " n"]) -> "Split":
        """Return some of the images as a split, by their position in this one."""
        if isinstance(position, Tensor):
            position = position.to(self.index.device)
        return replace(self, index=self.index[position])


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset with its splits.

    Attributes:
        name: Name in run folders and result tables.
        class_names: In the order of the labels; empty where images carry no labels.
        image_size: Side of the images, in pixels.
        splits: ``train``, ``labelled`` (the part of train whose labels may be used), ``val`` and
            ``test``; without labels, all images are in ``train``.
        mean: Per-channel mean of the training split, in [0, 1].
        std: Per-channel standard deviation of the training split, in [0, 1].
        hflip: Whether mirrored images keep their class.
        fingerprint: Hash of class names, labels and pixels.
        split_hashes: Hash of the contents of each split, in its order.
        broken: Files that could not be decoded and were left out.
        store_path: Folder of the packed arrays.
        autoaugment: Which of AutoAugment's published policies suits it.
        content_hashes: Content hash of each image by split, uint64: the same at any packed size.
        image_hashes: Hash of each image's packed pixels by split, uint64: equal only at this size;
            none of splits that were put together out of the packed ones.
        grey: How grey values of more than 8 bits became 8 bits; empty where there are none.
        grey_range: Grey values of more than 8 bits that became 0 and 255, ``"file"`` where those of
            each file decided for that file alone; ``None`` where there are none.
        kind: How the user's own images were read, in a few words.
        left_out: What was passed over or left out, a line each.
        notes: What a user should know of grey values, repeats and the cut, one line each.
    """

    name: str
    class_names: tuple[str, ...]
    image_size: int
    splits: dict[str, Split]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    hflip: bool
    fingerprint: str
    split_hashes: dict[str, str]
    broken: tuple[str, ...]
    store_path: Path
    autoaugment: AutoAugmentPolicy = "imagenet"
    content_hashes: Mapping[str, np.ndarray] = field(default_factory=dict)
    image_hashes: Mapping[str, np.ndarray] = field(default_factory=dict)
    grey: str = ""
    grey_range: tuple[float, float] | Literal["file"] | None = None
    kind: str = ""
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def labelled(self) -> bool:
        """Whether the images carry labels."""
        return bool(self.class_names)

    def to(self, device: torch.device, *, max_bytes: int | None = None) -> "Dataset":
        """Put every split on the device, each packed array once.

        Arrays that do not fit stay on the host, and ``Split.take`` streams their images.

        Args:
            device: Where labels and indices go in any case.
            max_bytes: Most bytes of images to put there; ``None`` is half of what a GPU has free,
                and no limit elsewhere.
        """
        room = math.inf if max_bytes is None else max_bytes
        if max_bytes is None and device.type == "cuda":
            room = torch.cuda.mem_get_info(device)[0] // 2
        moved: dict[int, tuple[Tensor, Tensor]] = {}
        splits = {}
        for name, split in self.splits.items():
            key = id(split.images)
            if key not in moved:
                images = split.images
                if images.nbytes <= room:
                    images = images.to(device)
                    room -= images.nbytes
                moved[key] = (images, split.labels.to(device))
            images, labels = moved[key]
            splits[name] = Split(images=images, labels=labels, index=split.index.to(device))
        return replace(self, splits=splits)


def even_positions(split: Split, most: int) -> Int[Tensor, " n"]:
    """Return positions in a split at even distances, on the host; all where it has no more."""
    num = min(most, len(split))
    return torch.arange(num) * len(split) // max(num, 1)


def take_evenly(split: Split, most: int) -> Split:
    """Return ``most`` images of a split at even distances, or all where it has no more."""
    return split.pick(even_positions(split, most))


def class_counts(split: Split, num_classes: int) -> list[int]:
    """Count the images of each class in a split; none where images carry no labels."""
    if num_classes == 0:
        return []
    return torch.bincount(split.labels[split.index], minlength=num_classes).tolist()


def channel_tensors(
    dataset: Dataset, device: torch.device
) -> tuple[Float[Tensor, "3"], Float[Tensor, "3"]]:
    """Return the dataset's mean and standard deviation as tensors on the device."""
    return torch.tensor(dataset.mean, device=device), torch.tensor(dataset.std, device=device)
