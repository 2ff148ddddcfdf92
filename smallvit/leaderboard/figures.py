"""The names, units and directions of a leaderboard's figures, as its parts give them.

A figure is a number with a path for a name, such as ``corruption/generated/fog/3``. Its path says
how it was made: two protocols never share one.
"""

import re
from collections.abc import Iterable

from smallvit.core.errors import ConfigError
from smallvit.leaderboard import parts
from smallvit.leaderboard.part import FigureKind

# Headings of figures in the order of tables; others come last.
GROUPS = ("Accuracy", "Calibration", "Backbone", "Corruptions", "Attacks", "Cost", "OOD")


def kind_of(name: str) -> FigureKind:
    """Look up what a figure is by its path.

    Raises:
        ConfigError: If nothing is known of it.
    """
    return _find(name)[1]


def label_of(name: str) -> str:
    """Say in words what a figure is.

    Raises:
        ConfigError: If nothing is known of it.
    """
    key, kind = _find(name)
    return kind.label.format(name.removeprefix(key).replace("_", " "))


def in_order(names: Iterable[str]) -> list[str]:
    """Return paths of figures in the order of tables, those of one kind by number."""
    known = list(_known())

    def position(name: str) -> tuple[int, int, list[tuple[float, str]]]:
        key, kind = _find(name)
        of_group = GROUPS.index(kind.group) if kind.group in GROUPS else len(GROUPS)
        return of_group, known.index(key), natural_key(name)

    return sorted(names, key=position)


def natural_key(name: str) -> list[tuple[float, str]]:
    """Sort numbers within names by their size."""
    pieces = re.split(r"(\d+(?:\.\d+)?)", name)
    return [(float(text), "") if index % 2 else (-1.0, text) for index, text in enumerate(pieces)]


def _known() -> dict[str, FigureKind]:
    return {path: kind for part in parts.PARTS for path, kind in part.figures.items()}


def _find(name: str) -> tuple[str, FigureKind]:
    known = _known()
    fitting = [key for key in known if key == name or (key.endswith("/") and name.startswith(key))]
    if not fitting:
        raise ConfigError(f"unknown figure {name!r}: a leaderboard has {', '.join(known)}")
    key = max(fitting, key=len)
    return key, known[key]
