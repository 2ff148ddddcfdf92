"""``smallvit models``."""

import fnmatch
import json as json_format
import re
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from smallvit.cli.tables import print_rows, print_text
from smallvit.core.console import track
from smallvit.core.errors import ConfigError
from smallvit.core.model_config import ModelConfig

MOST_LISTED = 200


def models_command(
    pattern: str = "*",
    /,
    *,
    img_size: str = "32",
    num_classes: int = 10,
    json: bool = False,
) -> None:
    """List models with parameters, multiply-adds and token grid.

    Args:
        pattern: Names, with * and ?; one of timm's own models is found as well.
        img_size: Side of the images in pixels, or height x width as in 48x64.
        num_classes: Classes of the head.
        json: Print every figure as JSON.
    """
    size = _read_size(img_size)
    if num_classes < 1:
        raise ConfigError(f"--num-classes must be at least 1, got {num_classes}")
    names = _matching(pattern)
    rows = [_row(name, size, num_classes) for name in track(names, "building", len(names))]
    if json:
        print(json_format.dumps(rows, indent=2))  # noqa: T201
        return
    fitting = [row for row in rows if "error" not in row]
    if fitting:
        _print_table(fitting, f"images of {img_size} px, {num_classes} classes")
    for reason, names in _by_reason(row for row in rows if "error" in row).items():
        print_text(f"not for {img_size} px: {', '.join(names)}: {reason}")


def _print_table(rows: list[dict[str, Any]], title: str) -> None:
    headings = ("model", "parameters", "multiply-adds", "tokens", "width")
    cells = [
        (
            row["name"],
            f"{row['parameters'] / 1e6:.3f} M",
            f"{row['macs'] / 1e6:,.1f} M",
            "{} x {}".format(*row["grid"]),
            str(row["embed_dim"]),
        )
        for row in rows
    ]
    print_rows(headings, cells, numbers=headings[1:], title=title)


def _by_reason(rows: Iterable[dict[str, Any]]) -> dict[str, list[str]]:
    """Return the names that are refused for each reason, which leaves the name out."""
    refused: dict[str, list[str]] = {}
    for row in rows:
        reason = re.sub(rf"^{re.escape(row['name'])}:? ", "", row["error"])
        refused.setdefault(reason, []).append(row["name"])
    return refused


def _read_size(text: str) -> int | tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    sides = [int(side) for side in found.groups() if side] if found else []
    if not sides or not all(4 <= side <= 4096 for side in sides):
        raise ConfigError(
            f"--img-size must be a side in pixels from 4 to 4096, or height x width such as "
            f"48x64, got {text!r}"
        )
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _matching(pattern: str) -> list[str]:
    import timm

    from smallvit.models.registry import own_models, unknown_model

    names = fnmatch.filter(own_models(), pattern)
    if pattern not in ("*", "**"):
        names += [name for name in timm.list_models(pattern) if name not in names]
    if not names:
        raise unknown_model(pattern)
    if len(names) > MOST_LISTED:
        raise ConfigError(
            f"{pattern!r} matches {len(names)} models, more than {MOST_LISTED}: narrow it down"
        )
    return names


def _row(name: str, size: int | tuple[int, int], num_classes: int) -> dict[str, Any]:
    from smallvit.models.measure import build_on_meta, measure
    from smallvit.models.registry import check_fit, create_exported, fitting, model_arguments

    try:
        config = ModelConfig(name=name)
        architecture, arguments = model_arguments(config, num_classes=num_classes, image_size=size)
        backbone = build_on_meta(lambda: create_exported(architecture, arguments))
        with fitting(backbone, name, size):
            facts = measure(backbone, size)
        # Measuring found the grid: a second forward pass would take as long again.
        check_fit(backbone, name, size, grid=facts.grid)
    except ConfigError as error:
        return {"name": name, "error": str(error)}
    return {"name": name, **asdict(facts)}
