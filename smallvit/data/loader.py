"""A dataset ready to train on: packed arrays, cut splits, and the order in which steps see them.

Shapes in this file:
    N    images of a split
    B    images of a step
    H W  image in pixels
"""

import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, TypedDict, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from smallvit.core import rng
from smallvit.core.config import Range
from smallvit.core.errors import ConfigError, DataError
from smallvit.data.files import fetch, hub, official, own, registry
from smallvit.data.files.class_lists import in_class_order, some
from smallvit.data.files.grey import GreyRange, GreyScale, GreySetting, check_range
from smallvit.data.files.layout import parse_layout
from smallvit.data.files.sources import Listing, Source
from smallvit.data.files.splits import (
    Cut,
    StoredCut,
    cut_by_position,
    cut_splits,
    find_seed,
    load_cut,
    split_hash,
    store_cut,
)
from smallvit.data.files.store import (
    Overlap,
    PackedStore,
    Progress,
    cache_errors,
    content_order,
    file_stem,
    open_store,
    stored_if_possible,
)
from smallvit.parallel.rows import own_rows

BatchT = TypeVar("BatchT")
USUAL_SIZES = (8, 16, 28, 32, 64, 96, 128, 224, 256)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they are split.

    Attributes:
        dataset: Name of a known dataset, or ``hf:owner/name@revision`` with ``#config`` where it
            has several, for one on the Hugging Face Hub; give this or ``path``.
        path: Folder of class folders, with or without train, val and test above them; a CSV,
            parquet or .npz file; or a folder of images without labels, for stage 1 alone.
        image_column: Column of a table that holds the images or their paths; null finds it by
            name and type.
        label_column: Column of a table that holds the labels; null finds it by name and type.
        image_size: Side that images are packed at, in pixels; null is a known dataset's own, or
            else the usual size nearest to the images (8 to 256).
        val_fraction: Part of the training images held out for validation where a dataset brings
            no validation split.
        test_fraction: Part of all images held out for testing where a dataset brings no test
            split.
        label_fraction: Part of the remaining training images whose labels teacher and stage 2 use;
            stage 1 sees all of them, without labels.
        split_seed: Seed of the cut, apart from the training seed.
        hflip: Whether mirrored images keep their class; null is what is known of the dataset
            (false for digits).
        grey_range: Grey values of more than 8 bits that become black and white; null is the
            smallest usual range that holds those of all files.
        layout: What the folders of your own images are, where their names do not tell: classes
            (each is a class), unlabelled, or the folders of the splits as in
            train=training_set,test=test_set, of which those not named are not read.
        split_version: 2 cuts, orders and fingerprints by content; 1 by the places of the images,
            as runs did that do not name a version, and scales grey files one by one as they did.
    """

    dataset: str | None = None
    path: Path | None = None
    image_column: str | None = None
    label_column: str | None = None
    image_size: Annotated[int | None, Range(ge=8, le=1024)] = None
    val_fraction: Annotated[float, Range(gt=0, lt=0.9)] = 0.1
    test_fraction: Annotated[float, Range(gt=0, lt=0.9)] = 0.2
    label_fraction: Annotated[float, Range(gt=0, le=1)] = 1.0
    split_seed: Annotated[int, Range(ge=0, lt=1 << 63)] = 0
    hflip: bool | None = None
    grey_range: tuple[float, float] | None = None
    layout: str | None = None
    split_version: Literal[1, 2] = 2

    def __post_init__(self) -> None:
        if self.dataset is not None and self.path is not None:
            raise ConfigError(
                f"data.dataset ({self.dataset!r}) and data.path ({str(self.path)!r}) exclude each "
                "other: give one"
            )
        if self.dataset is not None and not self.dataset.startswith("hf:"):
            registry.get_dataset_spec(self.dataset)
            if self.layout is not None:
                raise ConfigError(
                    f"data.layout is for images of your own, not for {self.dataset}: leave it out"
                )
            for name in ("image_column", "label_column"):
                if getattr(self, name) is not None:
                    raise ConfigError(
                        f"data.{name} is for tables and the Hub, not for {self.dataset}: leave it "
                        "out"
                    )
        if self.grey_range is not None:
            check_range(self.grey_range)
        parse_layout(self.layout)


@dataclass(frozen=True, kw_only=True)
class Split:
    """Some images of one packed array.

    Attributes:
        images: The packed array that the split is part of; on the host, memory-mapped, where it
            does not fit on the device of ``index``.
        labels: Its labels.
        index: Places of the split's images in it.
    """

    images: UInt8[Tensor, "packed 3 H W"]
    labels: Int[Tensor, " packed"]
    index: Int[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.index)

    def take(self, position: Int[Tensor, " B"]) -> UInt8[Tensor, "B 3 H W"]:
        """Gather images by their position in the split, onto the device of ``index``."""
        place = self.index[position]
        if self.images.device == place.device:
            return self.images.index_select(0, place)
        # Pinned memory lets the copy run beside the kernels that are queued already.
        batch = torch.empty(
            (len(place), *self.images.shape[1:]),
            dtype=torch.uint8,
            pin_memory=place.device.type == "cuda",
        )
        torch.index_select(self.images, 0, place.cpu(), out=batch)
        return batch.to(place.device, non_blocking=True)


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
        overlaps: Repeated images within and across the splits that the dataset brings.
        contents: Content hashes of splits that were put together out of the stored ones.
        grey: How grey values of more than 8 bits became 8 bits; ``None`` where there are none.
        kind: How the user's own images were read, in a few words.
        left_out: What was passed over or left out, a line each.
        cut_notes: What a user should know of the cut, one line each.
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
    autoaugment: registry.AutoAugmentPolicy = "imagenet"
    overlaps: tuple[Overlap, ...] = ()
    contents: Mapping[str, np.ndarray] | None = None
    grey: GreyScale | None = None
    kind: str = ""
    left_out: tuple[str, ...] = ()
    cut_notes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def labelled(self) -> bool:
        """Whether the images carry labels."""
        return bool(self.class_names)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of grey values, repeats and the cut, one line each."""
        grey = () if self.grey is None else self.grey.notes
        if not self.labelled:
            return grey
        repeated = (
            _describe(overlap, len(self.splits[overlap.split].labels))
            for overlap in self.overlaps
            # Repeats within a split and a class mislead nobody.
            if overlap.split != overlap.other or overlap.conflicting
        )
        return (*grey, *repeated, *self.cut_notes)

    @property
    def grey_range(self) -> GreyRange | Literal["file"] | None:
        """Grey values of more than 8 bits that became 0 and 255; ``None`` where there are none."""
        if self.grey is None or not self.grey.count:
            return None
        return self.grey.range or "file"

    def image_hashes(self, name: str) -> np.ndarray:
        """Return a hash of each image's packed pixels, uint64: equal only at this size."""
        return self._stored(name, "hashes")

    def content_hashes(self, name: str) -> np.ndarray:
        """Return the content hash of each image of a split, uint64: the same at any packed size."""
        if self.contents is not None:
            return self.contents[name]
        return self._stored(name, "content")

    def _stored(self, name: str, kind: str) -> np.ndarray:
        own = self.store_path / f"{name}.{kind}.npy"
        packed = own if own.is_file() and self.labelled else self.store_path / f"train.{kind}.npy"
        return np.load(packed)[self.splits[name].index.cpu().numpy()]

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
    if not fetch.is_present(spec, data_dir):
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
            why = " ".join(str(error).split()) or type(error).__name__
            reasons.append(f"{split.names[i]} ({why})")
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
    try:
        size = int(path.read_text())
    except (OSError, ValueError):
        size = 0
    if size not in USUAL_SIZES:
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
    _check_classes(store)
    with cache_errors(cache_dir):
        stored = _cut(config, store)
    packed = {
        name: (torch.from_numpy(store.images[name]), torch.from_numpy(store.labels[name]))
        for name in store.images
    }

    def part(array: str, index: np.ndarray) -> Split:
        images, labels = packed[array]
        if source.by_content:
            keys = (each[array][index] for each in (store.contents, store.labels, store.hashes))
            index = index[content_order(*keys)]
        return Split(images=images, labels=labels, index=torch.from_numpy(index))

    cut, labelled = stored.cut, bool(store.manifest.class_names)
    splits = {"train": part("train", cut.train), "labelled": part("train", cut.labelled)}
    for name, index in (("val", cut.val), ("test", cut.test)):
        if name in packed and labelled:
            splits[name] = part(name, np.arange(len(store.labels[name])))
        else:
            splits[name] = part("train", index)
    dataset = Dataset(
        name=source.name,
        class_names=store.manifest.class_names,
        image_size=size,
        splits=splits,
        mean=stored.mean,
        std=stored.std,
        hflip=source.hflip if config.hflip is None else config.hflip,
        autoaugment=source.autoaugment,
        fingerprint=store.manifest.fingerprint,
        split_hashes={name: split_hash(split.index) for name, split in splits.items()},
        broken=store.manifest.broken,
        overlaps=store.manifest.overlaps,
        grey=store.manifest.grey,
        store_path=store.path,
        kind=source.kind,
        left_out=source.notes,
    )
    if config.split_version == 1:
        return dataset
    return replace(
        dataset,
        fingerprint=store.manifest.unordered,
        split_hashes={
            name: split_hash(dataset.content_hashes(name).view(np.int64)) for name in splits
        },
        cut_notes=_note_gaps(config, store, dataset),
    )


def class_counts(split: Split, num_classes: int) -> list[int]:
    """Count the images of each class in a split; none where images carry no labels."""
    if num_classes == 0:
        return []
    return torch.bincount(split.labels[split.index], minlength=num_classes).tolist()


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


def _note_gaps(config: DataConfig, store: PackedStore, dataset: Dataset) -> tuple[str, ...]:
    """Name the classes that a cut left without an image in validation or test."""
    if not dataset.labelled:
        return ()
    fractions = _fractions(config, store)
    parts = {"val": fractions["val_fraction"], "test": fractions["test_fraction"]}
    gaps = []
    for name in (name for name, part in parts.items() if part):
        counts = class_counts(dataset.splits[name], dataset.num_classes)
        absent = [dataset.class_names[i] for i, count in enumerate(counts) if count == 0]
        if absent:
            gaps.append(f"no {name} image of {some(absent)}")
    if not gaps:
        return ()
    labels, contents = store.labels["train"], store.contents["train"]
    seed = find_seed(labels, contents, class_names=dataset.class_names, **fractions)
    other = "" if seed is None else f", or cut with data.split_seed {seed}"
    return (
        f"{'; '.join(gaps)}: images are assigned one by one, and these classes are small: add "
        f"images of them, give the splits yourself{other}",
    )


def _check_classes(store: PackedStore) -> None:
    manifest = store.manifest
    if not manifest.class_names:
        return
    for split, labels in store.labels.items():
        counts = np.bincount(labels, minlength=len(manifest.class_names))
        empty = [manifest.class_names[i] for i in np.flatnonzero(counts == 0)]
        if empty:
            raise DataError(
                f"{manifest.name}: {split} has no image of {some(empty)}: add some, or remove "
                f"{'that class' if len(empty) == 1 else 'these classes'} from every split"
            )


class _Fractions(TypedDict):
    val_fraction: float
    test_fraction: float


def _fractions(config: DataConfig, store: PackedStore) -> _Fractions:
    """Return the parts to cut; none of a split that the dataset brings."""
    return {
        "val_fraction": 0.0 if "val" in store.labels else config.val_fraction,
        "test_fraction": 0.0 if "test" in store.labels else config.test_fraction,
    }


def _cut(config: DataConfig, store: PackedStore) -> StoredCut:
    fractions = _fractions(config, store)
    parts: tuple[float, ...] = (fractions["val_fraction"], fractions["test_fraction"])
    parts = (*parts, config.label_fraction, config.split_seed)
    if config.split_version > 1:
        parts = (config.split_version, *parts)
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
    stored = load_cut(store.path, key)
    if stored is not None:
        return stored
    labels, class_names = store.labels["train"], store.manifest.class_names
    if not class_names:
        none = np.arange(0)
        cut = Cut(train=np.arange(len(labels)), labelled=none, val=none, test=none)
    else:
        by_content = config.split_version > 1
        cut = (cut_splits if by_content else cut_by_position)(
            labels,
            (store.contents if by_content else store.hashes)["train"],
            class_names=class_names,
            **fractions,
            label_fraction=config.label_fraction,
            seed=config.split_seed,
        )
    mean, std = _channel_stats(torch.from_numpy(store.images["train"]), torch.from_numpy(cut.train))
    stored = StoredCut(cut=cut, mean=mean, std=std)
    with stored_if_possible(f"the split of {store.manifest.name}"):
        store_cut(stored, store.path, key)
    return stored


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


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The samples of one step that this process sees.

    Attributes:
        position: Place of each sample in its split.
        epoch: Key of each sample's randomness beside its position: the pass over the data, counted
            for each repetition of a sample apart.
    """

    position: Int[Tensor, " B"]
    epoch: Int[Tensor, " B"]


class Order:
    """The order in which the steps of a run see the samples of a split.

    The passes over the data follow each other without a gap: step ``t`` takes the next
    ``batch_size`` samples, so every pass sees each sample once and no remainder is dropped. With
    ``repeats``, each sample comes that often in a row, each time with randomness of its own, and a
    pass is that much longer.

    Args:
        size: Samples of the split.
        batch_size: Samples of a step.
        seed: Seed of the run.
        device: Where the indices are wanted.
        repeats: Times in a row that each sample comes.

    Source:
        Hoffer et al., 2020, Augment Your Batch, https://arxiv.org/abs/1901.09335.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, device: torch.device, *, repeats: int = 1
    ) -> None:
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.device = device
        self.repeats = repeats
        self.rows = own_rows(batch_size, device)
        self._pass: tuple[int, Tensor] | None = None

    def num_steps(self, epochs: float) -> int:
        """Return the steps that see ``epochs`` times ``size`` samples, at least 1."""
        return max(1, round(epochs * self.size / self.batch_size))

    @property
    def own_batch_size(self) -> int:
        """Samples of a step that this process sees."""
        return self.batch_size if self.rows is None else len(self.rows.index)

    def draw(self, step: int) -> Draw:
        """Return the samples of one step that this process sees."""
        size, repeats = self.size, self.repeats
        # Slots of the run: slot s is repetition s % repeats of sample s // repeats.
        slot = torch.arange(self.batch_size, device=self.device) + step * self.batch_size
        first = step * self.batch_size // repeats
        last = ((step + 1) * self.batch_size - 1) // repeats
        positions = []
        for number in range(first // size, last // size + 1):
            start = number * size
            positions.append(self._order(number)[max(first - start, 0) : last + 1 - start])
        if self.rows is not None:
            slot = slot[self.rows.index]
        sample = slot // repeats
        return Draw(
            position=torch.cat(positions)[sample - first],
            epoch=sample // size * repeats + slot % repeats,
        )

    def _order(self, epoch: int) -> Int[Tensor, " size"]:
        if self._pass is None or self._pass[0] != epoch:
            order = rng.permutation(self.seed, "order", epoch, self.size, self.device)
            self._pass = (epoch, order)
        return self._pass[1]


class InOrder(Sequence[BatchT]):
    """Batches of consecutive images of a split, each made when it is asked for.

    Args:
        make: Makes a batch of the images at some places.
        position: Places of all images.
        batch_size: Images of a batch; the last one may have fewer.
    """

    def __init__(
        self, make: Callable[[Tensor], BatchT], position: Int[Tensor, " N"], batch_size: int
    ) -> None:
        self.make = make
        self.positions = position.split(batch_size) if len(position) else ()

    def __len__(self) -> int:
        """Count the batches."""
        return len(self.positions)

    def __getitem__(self, number: int) -> BatchT:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Make one batch."""
        return self.make(self.positions[number])


def channel_tensors(
    dataset: Dataset, device: torch.device
) -> tuple[Float[Tensor, "3"], Float[Tensor, "3"]]:
    """Return the dataset's mean and standard deviation as tensors on the device."""
    return torch.tensor(dataset.mean, device=device), torch.tensor(dataset.std, device=device)
