"""The published strengths of the corruptions, by image size and severity: ``strengths.yaml``."""

from importlib import resources
from typing import Literal

import yaml

from smallvit.core.errors import ConfigError, UnknownNameError

SEVERITIES = (1, 2, 3, 4, 5)

Table = Literal["cifar", "tiny-imagenet", "imagenet"]
Strength = tuple[float, ...]
# Largest side in pixels that a table is for: half-way, by ratio, to the size of the next one.
LARGEST_SIDE: dict[Table, int] = {"cifar": 48, "tiny-imagenet": 96}


def _read_strengths() -> dict[Table, dict[str, list[Strength]]]:
    file = resources.files("smallvit.evaluate.corruptions").joinpath("strengths.yaml")
    tables = yaml.safe_load(file.read_text("utf-8"))
    elastic = tables["imagenet"]["elastic_transform"]  # multiples of 244 at a side of 224
    tables["imagenet"]["elastic_transform"] = [[244 / 224 * x for x in row] for row in elastic]
    return {
        table: {name: [tuple(row) for row in rows] for name, rows in strengths.items()}
        for table, strengths in tables.items()
    }


# Those of elastic_transform are fractions of the side.
STRENGTHS = _read_strengths()
ALL_CORRUPTIONS = tuple(STRENGTHS["imagenet"])
EXTRA_CORRUPTIONS = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
CORRUPTIONS = tuple(name for name in ALL_CORRUPTIONS if name not in EXTRA_CORRUPTIONS)


def table_of(side: int) -> Table:
    """Return which table is for images of a side in pixels."""
    for table, largest in LARGEST_SIDE.items():
        if side <= largest:
            return table
    return "imagenet"


def get_strength(name: str, severity: int, side: int) -> Strength:
    """Look up the published numbers of a corruption.

    Args:
        name: One of ``ALL_CORRUPTIONS``.
        severity: 1 to 5.
        side: Larger side of the images, in pixels.

    Raises:
        UnknownNameError: If no corruption has that name.
        ConfigError: If the severity is not 1 to 5.
    """
    if name not in ALL_CORRUPTIONS:
        raise UnknownNameError("corruption", name, ALL_CORRUPTIONS)
    if severity not in SEVERITIES:
        raise ConfigError(f"severity must be 1 to 5, got {severity}")
    return STRENGTHS[table_of(side)][name][severity - 1]
