"""Foreign images by name: what a classifier should be less sure of.

Shapes in this file:
    B    images
    H W  image in pixels
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from smallvit.core import places, rng
from smallvit.core.errors import ConfigError, UnknownNameError
from smallvit.data.dataset import Dataset
from smallvit.data.files.class_lists import some
from smallvit.data.files.config import DataConfig
from smallvit.data.files.registry import DATASETS, sharing_dataset
from smallvit.data.files.store import PackedStore, open_store
from smallvit.evaluate.ood import NOISES, Noise, noise_images
from smallvit.runs.data import open_or_fetch, show_progress
from smallvit.runs.learned import contents_of

logger = logging.getLogger("smallvit")
NOISE = "noise"
MOST_IMAGES = 10_000
MOST_SHARED = 0.01  # part of the foreign images; fewer are chance repeats, and are left out


@dataclass(frozen=True, kw_only=True)
class ForeignImages:
    """Images that are of none of a classifier's classes.

    Attributes:
        name: Name in result tables.
        fingerprint: What tells its images from those of another set of that name.
        num_images: How many.
        batches: Walks them once, as bytes, in batches of a given size; the last may be smaller.
    """

    name: str
    fingerprint: str
    num_images: int
    batches: Callable[[int], Iterator[UInt8[Tensor, "B 3 H W"]]]


def open_foreign(
    name: str, dataset: Dataset, *, seed: int = 0, most: int = MOST_IMAGES
) -> list[ForeignImages]:
    """Find foreign images for a classifier, at the size of its own and on their device.

    Of a data set it is the test images, else those of validation, else all. They are resized and
    cut like any images that are packed, and chosen by the seed where there are more than ``most``.

    Args:
        name: ``noise`` for uniform and for Gaussian noise, a known data set or one on the Hub, or
            the path of a folder of images, a CSV or a parquet file.
        dataset: What the classifier was trained on.
        seed: Of noise, and of the choice.
        most: Images to take at most.

    Returns:
        One set, or two for ``noise``; of noise, as many images as the test split has.

    Raises:
        ConfigError: If the name is unknown, or the images share classes or pixels with ``dataset``.
        DataError: If they are missing or broken.
    """
    if name == NOISE:
        num_images = min(most, len(dataset.splits["test"]))
        return [_open_noise(kind, num_images, dataset, seed) for kind in NOISES]
    config = _config(name)
    _refuse(name, _shared_name(name, dataset.name))
    with show_progress() as (progress, fetch_progress):
        source = open_or_fetch(config, fetch_progress)
        store = open_store(
            source,
            image_size=dataset.image_size,
            cache_dir=places.cache_dir(),
            # On the scale that the network was trained on, where that is known.
            grey_range=dataset.grey_range or "auto",
            progress=progress,
        )
    _refuse(name, _shared_name(store.manifest.name, dataset.name))
    _refuse(name, _shared_classes(store, dataset))
    split = next(part for part in ("test", "val", "train") if part in store.images)
    foreign = _not_shared(name, store, split, dataset)
    if len(foreign) > most:
        chosen = rng.permutation(seed, f"ood/{store.manifest.name}", 0, len(foreign))[:most]
        foreign = foreign[chosen.sort().values]
    images = torch.from_numpy(store.images[split])
    device = _device(dataset)

    def batches(batch_size: int) -> Iterator[Tensor]:
        for part in foreign.split(batch_size):
            yield images[part].to(device)

    return [
        ForeignImages(
            name=store.manifest.name,
            fingerprint=store.manifest.fingerprint,
            num_images=len(foreign),
            batches=batches,
        )
    ]


def _open_noise(kind: Noise, num_images: int, dataset: Dataset, seed: int) -> ForeignImages:
    def batches(batch_size: int) -> Iterator[Tensor]:
        for indices in torch.arange(num_images, device=_device(dataset)).split(batch_size):
            yield noise_images(kind, indices, dataset.image_size, seed=seed)

    return ForeignImages(name=kind, fingerprint=kind, num_images=num_images, batches=batches)


def _config(name: str) -> DataConfig:
    if name in DATASETS or name.startswith("hf:"):
        return DataConfig(dataset=name)
    if name and Path(name).expanduser().exists():
        # Which folders are classes and which are splits matters little: it is not asked.
        return DataConfig(path=Path(name).expanduser(), split_version=1)
    raise UnknownNameError("set of foreign images", name, [NOISE, *DATASETS])


def _refuse(name: str, shared: str | None) -> None:
    if shared:
        raise ConfigError(f"--ood {name}: {shared}, so its images are not foreign: take another")


def _shared_name(name: str, own: str) -> str | None:
    """Say what two data sets share, as far as their names tell."""
    if Path(name).name == own:
        return f"the classifier was trained on {own}"
    if None in (sharing_dataset(name), sharing_dataset(own)):
        return None
    return f"{name} and {own} share images and classes"


def _shared_classes(store: PackedStore, dataset: Dataset) -> str | None:
    """Say which classes of a store the classifier knows, if any."""
    known = {name.casefold() for name in dataset.class_names}
    shared = [name for name in store.manifest.class_names if name.casefold() in known]
    if not shared:
        return None
    return f"{len(shared)} of its classes are of {dataset.name} too ({some(shared)})"


def _not_shared(name: str, store: PackedStore, split: str, dataset: Dataset) -> Tensor:
    """Return the places of a split's images that none of the dataset's has the pixels of.

    Raises:
        ConfigError: If many of them are the dataset's.
    """
    shared = np.isin(store.facts[split].contents, contents_of(dataset.content_hashes))
    if dataset.image_hashes:  # the same pictures in another resolution, too
        shared |= np.isin(store.facts[split].hashes, contents_of(dataset.image_hashes))
    count, total = int(shared.sum()), len(shared)
    if count > MOST_SHARED * total:
        _refuse(name, f"{count:,} of its {total:,} images are in {dataset.name} too")
    if count:
        logger.warning(
            f"{count} of the {total} images of {name} are in {dataset.name} too: left out"
        )
    return torch.from_numpy(np.flatnonzero(~shared))


def _device(dataset: Dataset) -> torch.device:
    return dataset.splits["test"].index.device
