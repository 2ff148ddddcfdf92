"""Cutting splits: by content, seeded, stored.

Each image is assigned by itself: a number in [0, 1), drawn from the seed and the hash of its
content, falls into the share of test, of validation or of training. So images that are added,
renamed, listed in another order or packed at another size move no other image, and the same
pixels are always on one side. The price: classes get their share of each split in expectation only,
and a small class may get none of validation or test.

Label fractions are stratified: of each class those training images that come first in the order of
that number, so that the images of 5 % are among those of 10 %.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from smallvit.core import rng
from smallvit.core.errors import DataError
from smallvit.core.whole_file import write_text
from smallvit.data.files.class_lists import plural
from smallvit.data.files.store import CACHE_REMEDY, anew_if_broken, stored_if_possible

PARTS = ("train", "labelled", "val", "test")
TEST, VAL, TRAIN = range(3)  # in the order in which they take their shares
# Seeds that are tried for one that would do, and numbers that are drawn for that.
MOST_SEEDS = 200
MOST_NUMBERS = 20_000_000


class CutSettings(NamedTuple):
    """How images are cut.

    Attributes:
        val_fraction: Part of what is left after the test split, in [0, 1); 0 cuts none.
        test_fraction: Part of all images, in [0, 1); 0 cuts none.
        label_fraction: Part of the different training images of each class whose labels may be
            used, in (0, 1]; each class has at least one.
        seed: Seed of what decides.
    """

    val_fraction: float
    test_fraction: float
    label_fraction: float
    seed: int

    @property
    def bounds(self) -> tuple[float, float]:
        """Where test ends and where validation ends, in [0, 1]."""
        return self.test_fraction, self.test_fraction + (1 - self.test_fraction) * self.val_fraction


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Index arrays into one packed array, each sorted.

    Attributes:
        train: Training images.
        labelled: Those of them whose labels stage 2 may use.
        val: Validation images; empty where the dataset brings its own.
        test: Test images; empty where the dataset brings its own.
    """

    train: np.ndarray
    labelled: np.ndarray
    val: np.ndarray
    test: np.ndarray


@dataclass(frozen=True, kw_only=True)
class StoredCut(Cut):
    """A cut with what is computed from its training images.

    Attributes:
        mean: Per-channel mean of the training images, in [0, 1].
        std: Per-channel standard deviation of the training images, in [0, 1].
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def cut_splits(
    labels: np.ndarray, contents: np.ndarray, class_names: Sequence[str], settings: CutSettings
) -> Cut:
    """Cut test, validation and training indices out of one array of images.

    Args:
        labels: Class index of each image.
        contents: Content hash of each image.
        class_names: In the order of the labels.
        settings: Shares and seed.

    Returns:
        Disjoint ``train``, ``val`` and ``test``, every class in ``train``.

    Raises:
        DataError: If a class is left without a training image, or a split without any.
    """
    number = _numbers(settings.seed, contents)
    side = np.digitize(number, settings.bounds)  # 0 test, 1 validation, 2 training
    fault = _find_fault(side, labels, class_names, settings)
    if fault:
        would = find_seed(labels, contents, class_names, settings, every_class=False)
        raise DataError(
            f"{fault}: add images, give the splits yourself"
            + (f", or cut with data.split_seed {would}" if would is not None else "")
        )
    train = np.flatnonzero(side == TRAIN)
    return Cut(
        train=train,
        labelled=_labeled(train, labels, contents, number, settings.label_fraction),
        val=np.flatnonzero(side == VAL),
        test=np.flatnonzero(side == TEST),
    )


def find_seed(
    labels: np.ndarray,
    contents: np.ndarray,
    class_names: Sequence[str],
    settings: CutSettings,
    *,
    every_class: bool = True,
) -> int | None:
    """Return the first seed whose cut can be used; ``None`` where none of the first ones can.

    Args:
        labels: Class index of each image.
        contents: Content hash of each image.
        class_names: In the order of the labels.
        settings: Shares; their own seed is not looked at.
        every_class: Whether validation and test have to have images of every class too.
    """
    shares = (VAL, settings.val_fraction), (TEST, settings.test_fraction)
    cut = [s for s, fraction in shares if fraction]
    # Copies are on one side: a class of fewer different images than sides cannot be on each.
    different = np.unique(np.stack((labels.astype(np.int64), contents.view(np.int64))), axis=1)[0]
    if every_class and np.bincount(different, minlength=len(class_names)).min() <= len(cut):
        return None
    for seed in range(min(MOST_SEEDS, 1 + MOST_NUMBERS // len(labels))):
        side = np.digitize(_numbers(seed, contents), settings.bounds)
        counts = [len(np.unique(labels[side == s])) for s in cut] if every_class else []
        whole = all(count == len(class_names) for count in counts)
        if whole and not _find_fault(side, labels, class_names, settings):
            return seed
    return None


def _numbers(seed: int, contents: np.ndarray) -> np.ndarray:
    """Draw a number in [0, 1) for each image, from the seed and its content alone."""
    index = torch.from_numpy(contents.view(np.int64))
    coarse, fine = rng.uniform(seed, "cut", torch.zeros_like(index), index, 2).double().unbind(1)
    return (coarse + fine * 2.0**-24).numpy()


def _find_fault(
    side: np.ndarray, labels: np.ndarray, class_names: Sequence[str], settings: CutSettings
) -> str:
    """Say what makes a cut useless; nothing where it is not."""
    present = np.bincount(labels[side == TRAIN], minlength=len(class_names)) > 0
    if not present.all():
        first = int(np.flatnonzero(~present)[0])
        count = int((labels == first).sum())
        whose = f"class {class_names[first]!r}" if len(class_names) > 1 else "the data"
        return f"{whose} has {plural(count, 'image')}, and the cut leaves none of them to train on"
    wanted = {"test": (TEST, settings.test_fraction), "val": (VAL, settings.val_fraction)}
    for name, (number, share) in wanted.items():
        if share > 0 and not (side == number).any():
            return f"none of the {len(labels)} images falls into the {name} split"
    return ""


def _labeled(
    train: np.ndarray,
    labels: np.ndarray,
    contents: np.ndarray,
    number: np.ndarray,
    fraction: float,
) -> np.ndarray:
    """Take a part of each class in the order of the numbers, so that smaller parts are in larger.

    Of a content that is taken all images are: the fraction is that of the different ones.
    """
    if fraction == 1:
        return train
    taken = []
    for label in np.unique(labels[train]):
        members = train[labels[train] == label]
        _, first = np.unique(contents[members], return_index=True)
        members = members[first]
        order = np.lexsort((contents[members], number[members]))
        taken.append(contents[members[order[: _part(len(members), fraction)]]])
    return train[np.isin(contents[train], np.concatenate(taken))]


def cut_by_position(
    labels: np.ndarray, hashes: np.ndarray, class_names: Sequence[str], settings: CutSettings
) -> Cut:
    """Cut as runs of version 1 did: each class in a seeded order of its places in the array.

    A test split takes the head of that order, validation the next part, and training the rest,
    whose label fractions are prefixes. Of images with the same hash the first alone takes part in
    the order, under its own class; the others go where it goes. Fractions are those of the
    different images.

    Args:
        labels: Class index of each image.
        hashes: Hash of each image's packed pixels.
        class_names: In the order of the labels.
        settings: Shares and seed; labels that may be used are a part of all training images.

    Returns:
        Disjoint ``train``, ``val`` and ``test``, every class in each that is cut at all.

    Raises:
        DataError: If a class has too few images to be in every split.
    """
    order = rng.permutation(settings.seed, "split", 0, len(labels)).numpy()
    _, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    order = order[np.isin(order, first)]
    parts: dict[str, list[np.ndarray]] = {"train": [], "labelled": [], "val": [], "test": []}
    for label, class_name in enumerate(class_names):
        members = order[labels[order] == label]
        num_test = _part(len(members), settings.test_fraction)
        num_val = _part(len(members) - num_test, settings.val_fraction)
        train = members[num_test + num_val :]
        if len(train) == 0:
            raise DataError(
                f"class {class_name!r} has {len(members)} different images, too few for every "
                "split: add images or give the splits as train, val and test folders"
            )
        parts["test"].append(members[:num_test])
        parts["val"].append(members[num_test : num_test + num_val])
        parts["train"].append(train)
        parts["labelled"].append(train[: _part(len(train), settings.label_fraction)])
    leader = first[group]  # the first image of each image's content
    return Cut(
        **{
            name: np.flatnonzero(np.isin(leader, np.concatenate(part)))
            for name, part in parts.items()
        }
    )


def stored_cut(folder: Path, settings: object, make: Callable[[], StoredCut]) -> StoredCut:
    """Return the cut that is stored beside packed arrays, or make it and store it if possible.

    It is a function of its settings, so that a damaged one is made anew. It is kept as JSON, with
    the hash of its indices.

    Args:
        folder: That of the arrays.
        settings: What tells the cut from other cuts of them.
        make: Makes it.
    """
    path = folder / f"splits-{hashlib.sha256(repr(settings).encode()).hexdigest()[:12]}.json"
    with anew_if_broken(path):
        plain = json.loads(path.read_text())
        indices = {name: np.asarray(plain[name], dtype=np.int64) for name in PARTS}
        if split_hash(*indices.values()) != plain["split_hash"]:
            raise ValueError("the indices do not fit their hash")
        mean, std = ([float(value) for value in plain[name]] for name in ("mean", "std"))
        return StoredCut(**indices, mean=(mean[0], mean[1], mean[2]), std=(std[0], std[1], std[2]))
    cut = make()
    indices = {name: getattr(cut, name) for name in PARTS}
    plain = {"mean": cut.mean, "std": cut.std, "split_hash": split_hash(*indices.values())}
    plain |= {name: index.tolist() for name, index in indices.items()}
    with stored_if_possible(f"the split {path}"):
        write_text(path, json.dumps(plain), CACHE_REMEDY)
    return cut


def split_hash(*indices: np.ndarray | torch.Tensor) -> str:
    """Hash index arrays, so that two runs can tell whether they used the same split."""
    digest = hashlib.sha256()
    for index in indices:
        values = np.asarray(index, dtype=np.int64)
        digest.update(f"{len(values)}/".encode() + values.tobytes())
    return digest.hexdigest()


def _part(count: int, fraction: float) -> int:
    """Round a part of ``count`` images, keeping at least one where the fraction is not 0."""
    return max(1, round(count * fraction)) if fraction > 0 and count > 0 else 0
