"""``smallvit models``."""

import fnmatch
import json as json_format
import re
from dataclasses import asdict
from typing import Any

import timm
from rich.console import Console
from rich.progress import track
from rich.table import Table

from smallvit.core.errors import ConfigError, UnknownNameError
from smallvit.models.measure import build_on_meta, measure
from smallvit.models.registry import ModelConfig, create_backbone, own_models

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
    rows = [_row(name, size, num_classes) for name in _follow(_matching(pattern))]
    if json:
        print(json_format.dumps(rows, indent=2))  # noqa: T201
        return
    title = f"images of {img_size} px, {num_classes} classes"
    table = Table("model", "parameters", "multiply-adds", "tokens", "width", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        if "error" in row:
            table.add_row(row["name"], "", "", "", "", style="dim")
            continue
        grid = row["grid"]
        table.add_row(
            row["name"],
            f"{row['parameters'] / 1e6:.3f} M",
            f"{row['macs'] / 1e6:,.1f} M",
            f"{grid[0]} x {grid[1]}",
            str(row["embed_dim"]),
        )
    console = Console()
    console.print(table)
    for row in rows:
        if "error" in row:
            console.print(f"not at this size: {row['error']}", soft_wrap=True, highlight=False)


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
    names = fnmatch.filter(own_models(), pattern)
    if pattern not in ("*", "**"):
        names += [name for name in timm.list_models(pattern) if name not in names]
    if not names:
        raise UnknownNameError("model", pattern, [*own_models(), *timm.list_models()])
    if len(names) > MOST_LISTED:
        raise ConfigError(
            f"{pattern!r} matches {len(names)} models, more than {MOST_LISTED}: narrow it down"
        )
    return names


def _follow(names: list[str]) -> Any:
    console = Console(stderr=True)
    return track(
        names, "building", console=console, transient=True, disable=not console.is_terminal
    )


def _row(name: str, size: int | tuple[int, int], num_classes: int) -> dict[str, Any]:
    try:
        config = ModelConfig(name=name)
        backbone = build_on_meta(
            lambda: create_backbone(config, num_classes=num_classes, image_size=size)
        )
        return {"name": name, **asdict(measure(backbone, size))}
    except ConfigError as error:
        return {"name": name, "error": str(error)}
