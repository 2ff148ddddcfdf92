"""Verify a dataset as far as that goes without training: files, counts, pixels, labels, splits."""

from collections.abc import Iterator
from itertools import chain, combinations
from typing import Literal, NamedTuple

import torch

from smallvit.core import places
from smallvit.core.errors import DataError
from smallvit.data.dataset import Dataset, class_counts
from smallvit.data.files import fetch
from smallvit.data.files.config import DataConfig
from smallvit.data.files.load import grey_setting
from smallvit.data.files.registry import DATASETS, DatasetSpec
from smallvit.data.files.sources import Source
from smallvit.data.files.store import open_store, verify_store
from smallvit.runs.data import open_here, pack, show_progress


class Finding(NamedTuple):
    """One line of a check.

    Attributes:
        kind: ``ok`` for what was verified, ``note`` for what a user should know or could not be
            verified, ``wrong`` for what has to be mended.
        text: What was found.
    """

    kind: Literal["ok", "note", "wrong"]
    text: str


def check_dataset(config: DataConfig) -> Iterator[Finding]:
    """Verify a dataset, one finding at a time; nothing is downloaded.

    Args:
        config: Which images and how they are split.
    """
    spec = DATASETS.get(config.dataset or "")
    if spec is not None:
        yield from _check_archives(spec)
    try:
        source = open_here(config)
        dataset = pack(source, config)
    except DataError as error:
        yield Finding("wrong", str(error))
        return
    for note in dataset.left_out:
        yield Finding("note", note)
    yield from _check_packed(source, dataset, spec, config)
    yield from _check_splits(dataset)
    for note in dataset.notes:
        yield Finding("note", note)


def _check_archives(spec: DatasetSpec) -> Iterator[Finding]:
    good = 0
    for file in spec.files:
        path = places.data_dir() / file.name
        if not path.exists():
            yield Finding("note", f"{path} is not here: its md5 cannot be verified")
        elif problem := fetch.find_difference(path, file):
            yield Finding("wrong", f"{path}: {problem}: {start_again(spec)}")
        else:
            good += 1
    if good:
        yield Finding("ok", f"{good} official files have their length and md5")


def _check_packed(
    source: Source, dataset: Dataset, spec: DatasetSpec | None, config: DataConfig
) -> Iterator[Finding]:
    with show_progress() as (_, progress):
        store = open_store(
            source,
            image_size=dataset.image_size,
            cache_dir=places.cache_dir(),
            grey_range=grey_setting(config),
        )
        problems = verify_store(
            store, lambda done, total: progress("Verifying the packed images", done, total)
        )
    counts = store.manifest.counts
    for broken in dataset.broken:
        yield Finding("wrong", f"cannot be decoded and is left out: {broken}")
    if not dataset.broken:
        yield Finding("ok", f"all {sum(counts.values()):,} images are decoded")
    if dataset.grey_range is not None:
        yield Finding("ok", f"grey values: {dataset.grey}")
    for problem in problems:
        yield Finding("wrong", f"{problem}: remove {store.path} and check again")
    if not problems:
        yield Finding("ok", f"the packed images in {store.path} have their hashes")
    if spec is not None and not dataset.broken:  # others are refused when they are listed
        found = ", ".join(f"{count:,} {split}" for split, count in counts.items())
        yield Finding("ok", f"official counts: {found} images, {dataset.num_classes} classes")
    if dataset.labelled:
        counts = [class_counts(split, dataset.num_classes) for split in dataset.splits.values()]
        whole = "" if 0 in chain(*counts) else "; no class is empty in any split"
        yield Finding("ok", f"labels are 0 to {dataset.num_classes - 1}{whole}")


def _check_splits(dataset: Dataset) -> Iterator[Finding]:
    splits = {name: split for name, split in dataset.splits.items() if name != "labelled"}
    fine = True
    for (first, one), (second, other) in combinations(splits.items(), 2):
        if one.images is other.images and (count := int(torch.isin(one.index, other.index).sum())):
            fine = False
            yield Finding(
                "wrong",
                f"{count:,} images are in both {first} and {second}: remove {dataset.store_path} "
                "and check again",
            )
    if fine:
        sizes = (
            f"{name} {len(split):,} ({dataset.split_hashes[name][:12]})"
            for name, split in splits.items()
            if len(split)
        )
        yield Finding("ok", f"splits share no image; sizes and hashes: {', '.join(sizes)}")


def packed_counts(dataset: Dataset) -> dict[str, int]:
    """Count the images of the splits that the dataset brings; the others are cut from train."""
    packed = {name: dataset.splits[name].images for name in ("train", "val", "test")}
    return {
        name: len(images)
        for name, images in packed.items()
        if name == "train" or images is not packed["train"]
    }


def start_again(spec: DatasetSpec) -> str:
    """Say how to fetch a dataset anew."""
    names = dict.fromkeys([*(file.name for file in spec.files), *fetch.targets(spec)])
    paths = ", ".join(str(places.data_dir() / name) for name in names)
    return f"remove {paths} and run `smallvit data get {spec.name}`"
