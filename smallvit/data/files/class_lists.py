"""Checks that every reader of the user's data makes: names of splits, lists of classes."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from smallvit.core.errors import DataError
from smallvit.data.files.sources import Listing, SourceSplit

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def order_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Order by number where all names are integers that Python reads, else by alphabet."""
    ordered = sorted(names)
    if all(re.fullmatch(r"[+-]?[0-9]{1,4000}", name) for name in ordered):
        ordered.sort(key=int)
    return tuple(ordered)


def in_class_order(listing: Listing) -> Listing:
    """Number the classes of a listing in the order of ``order_classes``."""
    names = order_classes(listing.class_names)
    if names == listing.class_names:
        return listing
    number = np.asarray([names.index(name) for name in listing.class_names])
    splits = {
        name: replace(split, labels=number[split.labels]) for name, split in listing.splits.items()
    }
    return Listing(class_names=names, splits=splits)


def number_labels(
    labels: Mapping[str, Sequence[str]],
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Return the classes in the order of ``order_classes``, and each split's labels as indices."""
    names = order_classes(set().union(*labels.values()))
    number = {name: i for i, name in enumerate(names)}
    return names, {
        split: np.asarray([number[name] for name in texts], dtype=np.int64)
        for split, texts in labels.items()
    }


def make_listing(
    where: str, class_names: tuple[str, ...], splits: dict[str, SourceSplit]
) -> Listing:
    """List images, of which each split has some of every class.

    Args:
        where: Begins the message.
        class_names: In the order of the labels; empty where images carry no labels.
        splits: By name.

    Raises:
        DataError: If there is one class alone, or a split lacks one.
    """
    if len(class_names) == 1:
        raise DataError(
            f"{where}: all images are of one class, {class_names[0]!r}: at least 2 are needed; add "
            "images of another, or train without labels, --data.layout unlabelled"
        )
    check_every_class(where, class_names, {name: split.labels for name, split in splits.items()})
    return Listing(class_names=class_names, splits=splits)


def check_every_class(
    where: str, class_names: tuple[str, ...], labels: Mapping[str, np.ndarray]
) -> None:
    """Check that every split has images of every class, where there are classes.

    Args:
        where: Begins the message.
        class_names: In the order of the labels.
        labels: Those of each split.

    Raises:
        DataError: If one has not.
    """
    if class_names:
        present = {
            split: {class_names[label] for label in np.unique(values)}
            for split, values in labels.items()
        }
        check_class_lists(where, class_names, present)


def check_class_lists(
    where: str,
    class_names: Sequence[str],
    present: Mapping[str, Iterable[str]],
    *,
    otherwise: str = "",
) -> None:
    """Check that every split has images of every class.

    Args:
        where: Begins the message.
        class_names: Classes that there are.
        present: Those with images, by split.
        otherwise: Another remedy, which ends the message.

    Raises:
        DataError: With the number of classes in each split and the names that one lacks.
    """
    sets = {split: set(names) for split, names in present.items()}
    every = set(class_names).union(*sets.values())
    lacking = {split: order_classes(every - names) for split, names in sets.items()}
    if any(lacking.values()):
        counts = ", ".join(f"{split} {len(names)}" for split, names in sets.items())
        missing = "; ".join(
            f"no {some(names)} in {split}" for split, names in lacking.items() if names
        )
        raise DataError(
            f"{where}: the splits do not have images of all {len(every)} classes ({counts}): "
            f"{missing}: add images of them or remove these classes from every split{otherwise}"
        )


def plural(count: int, noun: str) -> str:
    """Return ``1 image`` or ``3 images``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def some(names: Sequence[str], most: int = 5) -> str:
    """Join the first names, and say how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"
