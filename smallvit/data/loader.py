"""A dataset ready to train on: packed arrays, cut splits, and the order in which steps see them.

Shapes in this file:
    N    images of a split
    B    images of a step
    H W  image in pixels
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from smallvit.core import rng
from smallvit.core.config import Range
from smallvit.core.errors import ConfigError, DataError
from smallvit.data import registry, sources
from smallvit.data.splits import Cut, cut_splits, load_cut, replace_text, split_hash, store_cut
from smallvit.data.store import PackedStore, Progress, open_store


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they are split.

    Attributes:
        dataset: Name of a known dataset; give this or ``path``.
        path: Folder of class folders, with or without train, val and test above them.
        image_size: Side that images are packed at, in pixels; null is a known dataset's own, or
            for a folder the usual size nearest to its images (8 to 256).
        val_fraction: Part of the training images held out for validation where a dataset brings
            no validation split.
        test_fraction: Part of all images held out for testing where a dataset brings no test
            split.
        label_fraction: Part of the remaining training images whose labels teacher and stage 2 use;
            stage 1 sees all of them, without labels.
        split_seed: Seed of the cut, apart from the training seed.
        hflip: Whether mirrored images keep their class; null is what is known of the dataset
            (false for digits).
    """

    dataset: str | None = None
    path: Path | None = None
    image_size: Annotated[int | None, Range(ge=8, le=1024)] = None
    val_fraction: Annotated[float, Range(gt=0, lt=0.9)] = 0.1
    test_fraction: Annotated[float, Range(gt=0, lt=0.9)] = 0.2
    label_fraction: Annotated[float, Range(gt=0, le=1)] = 1.0
    split_seed: Annotated[int, Range(ge=0)] = 0
    hflip: bool | None = None

    def __post_init__(self) -> None:
        if self.dataset is not None and self.path is not None:
            raise ConfigError(
                f"data.dataset ({self.dataset!r}) and data.path ({str(self.path)!r}) exclude each "
                "other: give one"
            )
        if self.dataset is not None:
            registry.get_dataset_spec(self.dataset)


@dataclass(frozen=True, kw_only=True)
class Split:
    """Some images of one packed array, on one device.

    Attributes:
        images: The packed array that the split is part of.
        labels: Its labels.
        index: Places of the split's images in it.
    """

    images: UInt8[Tensor, "packed 3 H W"]
    labels: Int[Tensor, " packed"]
    index: Int[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device) -> "Split":
        """Put the whole packed array on the device."""
        return Split(
            images=self.images.to(device),
            labels=self.labels.to(device),
            index=self.index.to(device),
        )


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset with its splits.

    Attributes:
        name: Name in run folders and result tables.
        class_names: In the order of the labels.
        image_size: Side of the images, in pixels.
        splits: ``train``, ``labelled`` (the part of train whose labels may be used), ``val`` and
            ``test``.
        mean: Per-channel mean of the training split, in [0, 1].
        std: Per-channel standard deviation of the training split, in [0, 1].
        hflip: Whether mirrored images keep their class.
        fingerprint: Hash of class names, labels and pixels.
        split_hashes: Hash of the indices of each split.
        broken: Files that could not be decoded and were left out.
        store_path: Folder of the packed arrays.
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

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def to(self, device: torch.device) -> "Dataset":
        """Put every split on the device, each packed array once."""
        moved: dict[int, tuple[Tensor, Tensor]] = {}
        splits = {}
        for name, split in self.splits.items():
            key = id(split.images)
            if key not in moved:
                moved[key] = (split.images.to(device), split.labels.to(device))
            images, labels = moved[key]
            splits[name] = Split(images=images, labels=labels, index=split.index.to(device))
        return Dataset(**{**vars(self), "splits": splits})


def open_source(config: DataConfig, *, data_dir: Path, offline: bool) -> sources.Source:
    """Find the images that a config names.

    Raises:
        ConfigError: If it names none.
        DataError: If they are not there.
    """
    if config.path is not None:
        return sources.open_folder(config.path)
    if config.dataset is None:
        raise ConfigError(
            "no data named: give --dataset NAME (known: "
            f"{', '.join(sorted(registry.DATASETS))}) or --data PATH"
        )
    spec = registry.get_dataset_spec(config.dataset)
    return sources.open_named(spec, data_dir=data_dir, offline=offline)


def usual_size(source: sources.Source) -> int:
    """Return the usual image side (8 to 256) nearest to the median of a source's short sides."""
    split = source.splits["train"]
    sides = []
    for i in np.linspace(0, len(split.names) - 1, num=min(64, len(split.names))).astype(int):
        try:
            sides.append(min(split.read(int(i)).size))
        except Exception:  # a broken file is counted when the data is packed
            continue
    if not sides:
        raise DataError(f"{source.name}: none of the first files looked at can be decoded")
    return min(
        (8, 16, 28, 32, 64, 96, 128, 224, 256), key=lambda size: abs(size - np.median(sides))
    )


def load_dataset(
    config: DataConfig,
    *,
    data_dir: Path,
    cache_dir: Path,
    offline: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """Open, pack (once) and split a dataset.

    Args:
        config: What to load.
        data_dir: Folder of official archives.
        cache_dir: Folder of packed stores.
        offline: Refuse to download.
        progress: Called now and then while packing.

    Raises:
        ConfigError: If the config names no data or an unknown name.
        DataError: If data is missing or broken, or a class is too small to be split.
    """
    source = open_source(config, data_dir=data_dir, offline=offline)
    size = config.image_size or usual_size(source)
    store = open_store(source, image_size=size, cache_dir=cache_dir, progress=progress)
    _check_classes(store)
    cut = _cut(config, store)
    packed = {
        name: (torch.from_numpy(store.images[name]), torch.from_numpy(store.labels[name]))
        for name in store.images
    }

    def part(array: str, index: np.ndarray) -> Split:
        images, labels = packed[array]
        return Split(images=images, labels=labels, index=torch.from_numpy(index))

    splits = {"train": part("train", cut.train), "labelled": part("train", cut.labelled)}
    for name, index in (("val", cut.val), ("test", cut.test)):
        if name in packed:
            splits[name] = part(name, np.arange(len(store.labels[name])))
        else:
            splits[name] = part("train", index)
    mean, std = _channel_stats(splits["train"], store, config)
    return Dataset(
        name=source.name,
        class_names=store.manifest.class_names,
        image_size=size,
        splits=splits,
        mean=mean,
        std=std,
        hflip=source.hflip if config.hflip is None else config.hflip,
        fingerprint=store.manifest.fingerprint,
        split_hashes={name: split_hash(split.index) for name, split in splits.items()},
        broken=store.manifest.broken,
        store_path=store.path,
    )


def class_counts(split: Split, num_classes: int) -> list[int]:
    """Count the images of each class in a split."""
    return torch.bincount(split.labels[split.index], minlength=num_classes).tolist()


def _check_classes(store: PackedStore) -> None:
    manifest = store.manifest
    for split, labels in store.labels.items():
        counts = np.bincount(labels, minlength=len(manifest.class_names))
        empty = [manifest.class_names[i] for i in np.flatnonzero(counts == 0)]
        if empty:
            raise DataError(
                f"{manifest.name}: no image of {', '.join(empty[:5])} in {split}; add images or "
                "remove the class folder everywhere"
            )


def _key(config: DataConfig, store: PackedStore) -> str:
    parts = (
        0.0 if "val" in store.labels else config.val_fraction,
        0.0 if "test" in store.labels else config.test_fraction,
        config.label_fraction,
        config.split_seed,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _cut(config: DataConfig, store: PackedStore) -> Cut:
    key = _key(config, store)
    cut = load_cut(store.path, key)
    if cut is None:
        cut = cut_splits(
            store.labels["train"],
            num_classes=len(store.manifest.class_names),
            val_fraction=0.0 if "val" in store.labels else config.val_fraction,
            test_fraction=0.0 if "test" in store.labels else config.test_fraction,
            label_fraction=config.label_fraction,
            seed=config.split_seed,
        )
        store_cut(cut, store.path, key)
    return cut


def _channel_stats(
    split: Split, store: PackedStore, config: DataConfig
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Exact mean and standard deviation of the training images' channels, kept beside the split."""
    path = store.path / f"stats-{_key(config, store)}.json"
    try:
        mean, std = json.loads(path.read_text())
    except (OSError, ValueError):
        counts = torch.zeros(3, 256, dtype=torch.float64)
        for chunk in split.index.split(8192):
            for channel, values in enumerate(split.images[chunk].transpose(0, 1)):
                counts[channel] += torch.bincount(values.flatten(), minlength=256)
        share = counts / counts.sum(dim=1, keepdim=True)
        levels = torch.arange(256, dtype=torch.float64) / 255
        mean = share @ levels
        std = (share @ levels**2 - mean**2).clamp(min=1e-6).sqrt().tolist()
        mean = mean.tolist()
        replace_text(path, json.dumps([mean, std]))
    return tuple(mean), tuple(std)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The samples of one step.

    Attributes:
        position: Place of each sample in its split.
        epoch: Pass over the data that each sample belongs to.
    """

    position: Int[Tensor, " B"]
    epoch: Int[Tensor, " B"]


class Order:
    """The order in which the steps of a run see the samples of a split.

    The passes over the data follow each other without a gap: step ``t`` takes the next
    ``batch_size`` samples, so every pass sees each sample once and no remainder is dropped.

    Args:
        size: Samples of the split.
        batch_size: Samples of a step.
        seed: Seed of the run.
        device: Where the indices are wanted.
    """

    def __init__(self, size: int, batch_size: int, seed: int, device: torch.device) -> None:
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.device = device
        self._pass: tuple[int, Tensor] | None = None

    def num_steps(self, epochs: float) -> int:
        """Return the steps of ``epochs`` passes, at least 1."""
        return max(1, round(epochs * self.size / self.batch_size))

    def draw(self, step: int) -> Draw:
        """Return the samples of one step."""
        first, last = step * self.batch_size, (step + 1) * self.batch_size
        positions, epochs = [], []
        for epoch in range(first // self.size, (last - 1) // self.size + 1):
            start, end = epoch * self.size, (epoch + 1) * self.size
            part = self._order(epoch)[max(first, start) - start : min(last, end) - start]
            positions.append(part)
            epochs.append(torch.full_like(part, epoch))
        return Draw(position=torch.cat(positions), epoch=torch.cat(epochs))

    def _order(self, epoch: int) -> Int[Tensor, " size"]:
        if self._pass is None or self._pass[0] != epoch:
            order = rng.permutation(self.seed, "order", epoch, self.size, self.device)
            self._pass = (epoch, order)
        return self._pass[1]


def channel_tensors(
    dataset: Dataset, device: torch.device
) -> tuple[Float[Tensor, "3"], Float[Tensor, "3"]]:
    """Return the dataset's mean and standard deviation as tensors on the device."""
    return torch.tensor(dataset.mean, device=device), torch.tensor(dataset.std, device=device)
