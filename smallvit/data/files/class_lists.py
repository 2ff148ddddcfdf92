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


def make_listing(
    where: str, splits: Mapping[str, SourceSplit], texts: Mapping[str, Sequence[str]]
) -> Listing:
    """List images, of which each split has some of every class.

    Args:
        where: Begins the message.
        splits: By name, without labels.
        texts: Label of each image, by split; empty where images carry no labels.

    Raises:
        DataError: As ``check_listing``.
    """
    names = order_classes(set().union(*texts.values()))
    number = {name: i for i, name in enumerate(names)}
    labels = {
        split: np.asarray([number[text] for text in part], dtype=np.int64)
        for split, part in texts.items()
    }
    parts = {
        name: replace(split, labels=labels.get(name, split.labels))
        for name, split in splits.items()
    }
    return check_listing(where, Listing(class_names=names, splits=parts))


def check_listing(where: str, listing: Listing) -> Listing:
    """Return a listing whose splits have images, with labels that fit the classes.

    Args:
        where: Begins the message.
        listing: What to check.

    Raises:
        DataError: If a split has no images or lacks a class, a label is out of range, or there is
            one class alone.
    """
    class_names, splits = listing.class_names, listing.splits
    assert "train" in splits
    low, high = (0, len(class_names) - 1) if class_names else (-1, -1)
    for name, split in splits.items():
        assert len(split.names) == len(split.labels)
        if len(split.names) == 0:
            raise DataError(f"{where}: no images in {name}: add some or remove that split")
        wrong = np.flatnonzero((split.labels < low) | (split.labels > high))
        if len(wrong):
            raise DataError(
                f"{where}: {len(wrong)} labels of {name} are outside {low} to {high} "
                f"({len(class_names)} classes), first: {split.names[wrong[0]]} has "
                f"{split.labels[wrong[0]]}: mend the labels"
            )
    if len(class_names) == 1:
        raise DataError(
            f"{where}: all images are of one class, {class_names[0]!r}: at least 2 are needed; add "
            "images of another, or train without labels, --data.layout unlabelled"
        )
    if class_names:
        present = {
            name: [class_names[label] for label in np.unique(split.labels)]
            for name, split in splits.items()
        }
        check_class_lists(where, class_names, present)
    return listing


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
