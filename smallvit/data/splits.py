"""Cutting splits: stratified, seeded, stored.

Each class is put in a seeded order once; a test split takes its head, validation the next part,
and training the rest, whose label fractions are prefixes: the images of 5 % are among those of
10 %.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from smallvit.core import rng
from smallvit.core.errors import DataError


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


def cut_splits(
    labels: np.ndarray,
    *,
    num_classes: int,
    val_fraction: float,
    test_fraction: float,
    label_fraction: float,
    seed: int,
) -> Cut:
    """Cut test, validation and training indices out of one array of labels.

    Args:
        labels: Class index of each image.
        num_classes: Number of classes.
        val_fraction: Part of what is left after the test split, in [0, 1); 0 cuts none.
        test_fraction: Part of all images, in [0, 1); 0 cuts none.
        label_fraction: Part of the training images whose labels may be used, in (0, 1].
        seed: Seed of the order.

    Returns:
        Disjoint ``train``, ``val`` and ``test``, every class in each that is cut at all.

    Raises:
        DataError: If a class has too few images to be in every split.
    """
    order = rng.permutation(seed, "split", 0, len(labels)).numpy()
    parts: dict[str, list[np.ndarray]] = {"train": [], "labelled": [], "val": [], "test": []}
    for label in range(num_classes):
        members = order[labels[order] == label]
        num_test = _part(len(members), test_fraction)
        num_val = _part(len(members) - num_test, val_fraction)
        train = members[num_test + num_val :]
        if len(train) == 0:
            raise DataError(
                f"class {label} has {len(members)} images, too few for every split: add images or "
                "give the splits as train, val and test folders"
            )
        parts["test"].append(members[:num_test])
        parts["val"].append(members[num_test : num_test + num_val])
        parts["train"].append(train)
        parts["labelled"].append(train[: _part(len(train), label_fraction)])
    return Cut(**{name: np.sort(np.concatenate(part)) for name, part in parts.items()})


def store_cut(cut: Cut, folder: Path, key: str) -> None:
    """Store the indices of a cut as JSON beside the packed arrays; the file is replaced whole."""
    path = folder / f"splits-{key}.json"
    if not path.exists():
        replace_text(path, json.dumps({k: index.tolist() for k, index in vars(cut).items()}))


def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_suffix(f".{os.getpid()}.part")
    partial.write_text(text)
    partial.replace(path)


def load_cut(folder: Path, key: str) -> Cut | None:
    """Load a stored cut, or return ``None`` where there is none."""
    path = folder / f"splits-{key}.json"
    if not path.exists():
        return None
    try:
        plain = json.loads(path.read_text())
        return Cut(**{name: np.asarray(index, dtype=np.int64) for name, index in plain.items()})
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"the stored split {path} is broken ({error}): remove it") from error


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
