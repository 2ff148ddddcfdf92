"""Cutting splits: stratified, seeded, stored.

Each class is put in a seeded order once; a test split takes its head, validation the next part,
and training the rest, whose label fractions are prefixes: the images of 5 % are among those of
10 %. Images of the same content go together, so that no test image was trained on.
"""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from smallvit.core import rng
from smallvit.core.errors import DataError

logger = logging.getLogger("smallvit")


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
class StoredCut:
    """A cut with what is computed from its training images.

    Attributes:
        cut: The indices.
        mean: Per-channel mean of the training images, in [0, 1].
        std: Per-channel standard deviation of the training images, in [0, 1].
    """

    cut: Cut
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def cut_splits(
    labels: np.ndarray,
    *,
    class_names: Sequence[str],
    val_fraction: float,
    test_fraction: float,
    label_fraction: float,
    seed: int,
    hashes: np.ndarray | None = None,
) -> Cut:
    """Cut test, validation and training indices out of one array of labels.

    Of images with the same hash the first alone takes part in the order, under its own class; the
    others go where it goes. Fractions are those of the different images.

    Args:
        labels: Class index of each image.
        class_names: In the order of the labels.
        val_fraction: Part of what is left after the test split, in [0, 1); 0 cuts none.
        test_fraction: Part of all images, in [0, 1); 0 cuts none.
        label_fraction: Part of the training images whose labels may be used, in (0, 1].
        seed: Seed of the order.
        hashes: Hash of each image's content; ``None`` takes all images for different.

    Returns:
        Disjoint ``train``, ``val`` and ``test``, every class in each that is cut at all.

    Raises:
        DataError: If a class has too few images to be in every split.
    """
    order = rng.permutation(seed, "split", 0, len(labels)).numpy()
    first, group = np.arange(len(labels)), np.arange(len(labels))
    if hashes is not None:
        _, first, group = np.unique(hashes, return_index=True, return_inverse=True)
        order = order[np.isin(order, first)]
    parts: dict[str, list[np.ndarray]] = {"train": [], "labelled": [], "val": [], "test": []}
    for label, class_name in enumerate(class_names):
        members = order[labels[order] == label]
        num_test = _part(len(members), test_fraction)
        num_val = _part(len(members) - num_test, val_fraction)
        train = members[num_test + num_val :]
        if len(train) == 0:
            raise DataError(
                f"class {class_name!r} has {len(members)} different images, too few for every "
                "split: add images or give the splits as train, val and test folders"
            )
        parts["test"].append(members[:num_test])
        parts["val"].append(members[num_test : num_test + num_val])
        parts["train"].append(train)
        parts["labelled"].append(train[: _part(len(train), label_fraction)])
    leader = first[group]  # the first image of each image's content
    return Cut(
        **{
            name: np.flatnonzero(np.isin(leader, np.concatenate(part)))
            for name, part in parts.items()
        }
    )


def store_cut(stored: StoredCut, folder: Path, key: str) -> None:
    """Store a cut as JSON beside the packed arrays, with the hash of its indices.

    The file is replaced whole.
    """
    indices = {name: index.tolist() for name, index in vars(stored.cut).items()}
    plain = {
        "mean": stored.mean,
        "std": stored.std,
        "split_hash": split_hash(*vars(stored.cut).values()),
    }
    path = _path(folder, key)
    partial = path.with_suffix(f".{os.getpid()}.part")
    partial.write_text(json.dumps(plain | indices))
    partial.replace(path)


def load_cut(folder: Path, key: str) -> StoredCut | None:
    """Load a stored cut; ``None`` where there is none, or one that was damaged.

    A cut is a function of its settings, so that a damaged one is cut again, with a warning.
    """
    path = _path(folder, key)
    if not path.exists():
        return None
    try:
        plain = json.loads(path.read_text())
        names = ("train", "labelled", "val", "test")
        cut = Cut(**{name: np.asarray(plain[name], dtype=np.int64) for name in names})
        if split_hash(*vars(cut).values()) != plain["split_hash"]:
            raise ValueError("the indices do not fit their hash")
        mean, std = ([float(value) for value in plain[name]] for name in ("mean", "std"))
        return StoredCut(cut=cut, mean=(mean[0], mean[1], mean[2]), std=(std[0], std[1], std[2]))
    except (OSError, ValueError, TypeError, LookupError) as error:
        logger.warning("the stored split %s is broken (%s): cutting it again", path, error)
        return None


def _path(folder: Path, key: str) -> Path:
    return folder / f"splits-{key}.json"


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
