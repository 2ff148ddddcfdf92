"""From settings to a dataset: find the images, pack them once, cut the splits.

Shapes in this file:
    N    images of a split
    H W  image in pixels
"""

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from smallvit.core.errors import ConfigError, DataError, reason
from smallvit.data.dataset import Dataset, Split, class_counts
from smallvit.data.files import fetch, hub, official, own, registry
from smallvit.data.files.class_lists import in_class_order, some
from smallvit.data.files.config import DataConfig
from smallvit.data.files.grey import GreySetting
from smallvit.data.files.sources import Listing, Source
from smallvit.data.files.splits import (
    Cut,
    CutSettings,
    StoredCut,
    cut_by_position,
    cut_splits,
    find_seed,
    split_hash,
    stored_cut,
)
from smallvit.data.files.store import (
    Overlap,
    PackedStore,
    Progress,
    anew_if_broken,
    content_order,
    file_stem,
    open_store,
    stored_if_possible,
)

USUAL_SIZES = (8, 16, 28, 32, 64, 96, 128, 224, 256)


def open_source(
    config: DataConfig,
    *,
    data_dir: Path,
    offline: bool,
    progress: fetch.FetchProgress | None = None,
) -> Source:
    """Find the images that a config names; those of a known dataset are fetched where absent.

    Args:
        config: What to find.
        data_dir: Folder of official files.
        offline: Refuse to download.
        progress: Called now and then while downloading.

    Raises:
        ConfigError: If it names none.
        DataError: If they are not there.
    """
    named = {key: getattr(config, key) for key in ("image_column", "label_column", "layout")}
    if config.path is not None:
        sure = config.split_version > 1
        return _canonical(own.open_path(config.path, sure=sure, **named), config)
    if config.dataset is None:
        raise ConfigError(
            "no data named: give --dataset NAME (known: "
            f"{', '.join(sorted(registry.DATASETS))}) or --data PATH"
        )
    if config.dataset.startswith("hf:"):
        source = hub.open_hub(config.dataset, data_dir=data_dir, offline=offline, **named)
        return _canonical(source, config)
    spec = registry.get_dataset_spec(config.dataset)
    fetch.fetch_dataset(spec, data_dir, offline=offline, progress=progress)
    return official.open_named(spec, data_dir=data_dir)


def _canonical(source: Source, config: DataConfig) -> Source:
    """Give images one order of classes and of samples, in whatever form and order they come."""
    if config.split_version == 1:
        return source
    return replace(
        source,
        key=f"{source.key}/ordered classes",
        list_images=lambda: in_class_order(source.list_images()),
        by_content=True,
    )


def usual_size(listing: Listing) -> int:
    """Return the usual image side (8 to 256) nearest to the median of the images' short sides.

    Raises:
        DataError: If none of the 64 images looked at can be decoded.
    """
    split = listing.splits["train"]
    sides = []
    reasons: list[str] = []
    for i in np.linspace(0, len(split.names) - 1, num=min(64, len(split.names))).astype(int):
        try:
            sides.append(min(split.read(int(i)).size))
        except Exception as error:  # a broken file is counted when the data is packed
            reasons.append(f"{split.names[i]} ({reason(error)})")
    if not sides:
        raise DataError(
            f"none of the {len(reasons)} images looked at can be decoded, first: "
            f"{', '.join(reasons[:1])}"
        )
    return min(USUAL_SIZES, key=lambda size: abs(size - np.median(sides)))


def find_image_size(source: Source, *, cache_dir: Path) -> int:
    """Return the side to pack a source at; what its images say is remembered in the cache.

    Raises:
        DataError: If none of the images looked at can be decoded.
    """
    if source.image_size is not None:
        return source.image_size
    key = hashlib.sha256(source.key.encode()).hexdigest()[:16]
    path = cache_dir / "packed" / f"{file_stem(source.name)}-{key}.size"
    with anew_if_broken(path):
        if (size := int(path.read_text())) in USUAL_SIZES:
            return size
    size = usual_size(source.list_images())
    with stored_if_possible(f"the image size of {source.name}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(size))
    return size


def load_dataset(
    config: DataConfig,
    *,
    data_dir: Path,
    cache_dir: Path,
    offline: bool = False,
    progress: Progress | None = None,
    fetch_progress: fetch.FetchProgress | None = None,
) -> Dataset:
    """Open, pack (once) and split a dataset.

    Args:
        config: What to load.
        data_dir: Folder of official archives.
        cache_dir: Folder of packed stores.
        offline: Refuse to download.
        progress: Called now and then while packing.
        fetch_progress: Called now and then while downloading.

    Raises:
        ConfigError: If the config names no data or an unknown name.
        DataError: If data is missing or broken, or a class is too small to be split.
    """
    source = open_source(config, data_dir=data_dir, offline=offline, progress=fetch_progress)
    return prepare_dataset(source, config, cache_dir=cache_dir, progress=progress)


def grey_setting(config: DataConfig) -> GreySetting:
    """Return which grey values of more than 8 bits a config takes as black and white."""
    return config.grey_range or ("file" if config.split_version == 1 else "auto")


def prepare_dataset(
    source: Source, config: DataConfig, *, cache_dir: Path, progress: Progress | None = None
) -> Dataset:
    """Pack (once) and split the images of a source.

    Args:
        source: Where the images lie.
        config: How they are sized and split.
        cache_dir: Folder of packed stores.
        progress: Called now and then while packing.

    Raises:
        DataError: If images are broken, or a class is too small to be split.
    """
    # Sizing and packing both list the images, which can take seconds.
    source = replace(source, list_images=functools.cache(source.list_images))
    size = config.image_size or find_image_size(source, cache_dir=cache_dir)
    store = open_store(
        source,
        image_size=size,
        cache_dir=cache_dir,
        grey_range=grey_setting(config),
        progress=progress,
    )
    cut = _cut(config, store)
    packed = {
        name: (torch.from_numpy(store.images[name]), torch.from_numpy(facts.labels))
        for name, facts in store.facts.items()
    }
    splits, contents, hashes, split_hashes = {}, {}, {}, {}
    by_content = config.split_version > 1
    for name in ("train", "labelled", "val", "test"):
        array = name if name in packed else "train"
        images, labels = packed[array]
        brought = name == array != "train"
        index = np.arange(len(labels)) if brought else getattr(cut, name)
        if source.by_content:
            of_labels, of_pixels, of_content = (each[index] for each in store.facts[array])
            index = index[content_order(of_content, of_labels, of_pixels)]
        splits[name] = Split(images=images, labels=labels, index=torch.from_numpy(index))
        _, hashes[name], contents[name] = (each[index] for each in store.facts[array])
        split_hashes[name] = split_hash(contents[name].view(np.int64) if by_content else index)
    grey = store.manifest.grey
    return Dataset(
        name=source.name,
        class_names=store.manifest.class_names,
        image_size=size,
        splits=splits,
        mean=cut.mean,
        std=cut.std,
        hflip=source.hflip if config.hflip is None else config.hflip,
        autoaugment=source.autoaugment,
        fingerprint=store.manifest.unordered if by_content else store.manifest.fingerprint,
        split_hashes=split_hashes,
        broken=store.manifest.broken,
        content_hashes=contents,
        image_hashes=hashes,
        grey="" if grey is None else str(grey),
        grey_range=None if grey is None or not grey.count else grey.range or "file",
        store_path=store.path,
        kind=source.kind,
        left_out=source.notes,
        notes=tuple(_notes(config, store, splits)),
    )


def _notes(config: DataConfig, store: PackedStore, splits: dict[str, Split]) -> Iterator[str]:
    """Say what a user should know of grey values, repeats and the cut, one line each."""
    manifest = store.manifest
    if manifest.grey is not None:
        yield from manifest.grey.notes
    if not manifest.class_names:
        return
    for overlap in manifest.overlaps:
        # Repeats within a split and a class mislead nobody.
        if overlap.split != overlap.other or overlap.conflicting:
            yield _describe(overlap, manifest.counts[overlap.split])
    if config.split_version > 1:
        yield from _note_gaps(config, store, splits)


def _describe(overlap: Overlap, num_images: int) -> str:
    split, other, count = overlap.split, overlap.other, overlap.count
    first = "first: " + " = ".join(overlap.examples[0])
    if split == other:
        return (
            f"{overlap.conflicting:,} of {num_images:,} {split} images repeat one of another class "
            f"(same pixels); {first}"
        )
    facts = f"{count:,} of {num_images:,} {split} images are also in {other} (same pixels)"
    if overlap.conflicting:
        facts += f", {overlap.conflicting:,} of them under another class"
    points = 100 * (count - overlap.conflicting) / num_images
    if points:
        facts += (
            f": the {split} accuracy may be up to {points:.{2 if points < 10 else 3}g} points too "
            "high"
        )
    return f"{facts}; the splits stay as they come; {first}"


def _note_gaps(config: DataConfig, store: PackedStore, splits: dict[str, Split]) -> Iterator[str]:
    """Name the classes that a cut left without an image in validation or test."""
    settings, class_names = _cut_settings(config, store), store.manifest.class_names
    parts = {"val": settings.val_fraction, "test": settings.test_fraction}
    gaps = []
    for name in (name for name, part in parts.items() if part):
        counts = zip(class_names, class_counts(splits[name], len(class_names)), strict=True)
        if absent := [each for each, count in counts if count == 0]:
            gaps.append(f"no {name} image of {some(absent)}")
    if gaps:
        labels, _, contents = store.facts["train"]
        seed = find_seed(labels, contents, class_names, settings)
        other = "" if seed is None else f", or cut with data.split_seed {seed}"
        yield (
            f"{'; '.join(gaps)}: images are assigned one by one, and these classes are small: add "
            f"images of them, give the splits yourself{other}"
        )


def _cut_settings(config: DataConfig, store: PackedStore) -> CutSettings:
    """Return the parts to cut; none of a split that the dataset brings."""
    return CutSettings(
        val_fraction=0.0 if "val" in store.facts else config.val_fraction,
        test_fraction=0.0 if "test" in store.facts else config.test_fraction,
        label_fraction=config.label_fraction,
        seed=config.split_seed,
    )


def _cut(config: DataConfig, store: PackedStore) -> StoredCut:
    settings = _cut_settings(config, store)
    images, (labels, hashes, contents) = store.images["train"], store.facts["train"]
    class_names = store.manifest.class_names
    by_content = config.split_version > 1

    def make() -> StoredCut:
        if class_names:
            make_cut = cut_splits if by_content else cut_by_position
            cut = make_cut(labels, contents if by_content else hashes, class_names, settings)
        else:
            none = np.arange(0)
            cut = Cut(train=np.arange(len(labels)), labelled=none, val=none, test=none)
        mean, std = _channel_stats(torch.from_numpy(images), torch.from_numpy(cut.train))
        return StoredCut(**vars(cut), mean=mean, std=std)

    key = (config.split_version, *settings) if by_content else tuple(settings)
    return stored_cut(store.path, key, make)


def _channel_stats(
    images: UInt8[Tensor, "packed 3 H W"], index: Int[Tensor, " N"]
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Exact mean and standard deviation of the channels of some images."""
    counts = torch.zeros(3, 256, dtype=torch.float64)
    for chunk in index.split(8192):
        for channel, values in enumerate(images[chunk].transpose(0, 1)):
            counts[channel] += torch.bincount(values.flatten(), minlength=256)
    share = counts / counts.sum(dim=1, keepdim=True)
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ levels
    std = (share @ levels**2 - mean**2).clamp(min=1e-6).sqrt()
    (a, b, c), (d, e, f) = mean.tolist(), std.tolist()
    return (a, b, c), (d, e, f)
