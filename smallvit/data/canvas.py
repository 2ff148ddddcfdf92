"""One picture drawn in pixels: images, text and boxes below a title.

Shapes in this file:
    H W  image in pixels
"""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from matplotlib import patheffects
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from smallvit.core.whole_file import writable
from smallvit.data.geometry import Geometry

DPI = 100
MARGIN, GAP = 16, 10  # pixels, as all lengths below
HEADER = 58  # title and the line below it
SIZE = 8  # of text, in points
LINE = 15  # height of a line of it
EM = SIZE * DPI / 72
BADGE = (16, 13)
VIRIDIS: dict[str, Any] = {"cmap": "viridis", "vmin": 0, "vmax": 1}
PALE = "#bbbbbb"  # around images, which may be as white as the paper


@dataclass(frozen=True, kw_only=True)
class Box:
    """Where a view lies in its image, in the image's pixels."""

    left: float
    top: float
    width: float
    height: float
    mirrored: bool


def boxes_of(where: Geometry, width: int, height: int) -> list[Box]:
    """Return where the crops of a batch lie in images of a size in pixels."""
    edges = (where.left * width, where.top * height, where.width * width, where.height * height)
    return [
        Box(left=left, top=top, width=wide, height=high, mirrored=bool(mirrored))
        for left, top, wide, high, mirrored in torch.stack([*edges, where.hflip], dim=1).tolist()
    ]


class Canvas:
    """One drawing in pixels from its upper left corner, below a title.

    One pair of axes for all: an axes a tile would take ten times as long.

    Args:
        width: Of what is drawn, without the margin; more is taken where the title needs it.
        height: Of what is drawn.
        title: First line.
        below: Second line.
    """

    def __init__(self, width: int, height: int, title: str, below: str) -> None:
        # Wide enough for the two lines.
        text = max(len(title) * 1.6, len(below))
        width = max(width, math.ceil(text * 0.6 * EM))
        whole = (width + 2 * MARGIN, height + HEADER + MARGIN)
        self.figure = Figure(figsize=(whole[0] / DPI, whole[1] / DPI), dpi=DPI, facecolor="white")
        self.axes = self.figure.add_axes((0, 0, 1, 1), frameon=False)
        self.axes.set_axis_off()
        self.limits = (-MARGIN, whole[0] - MARGIN, whole[1] - HEADER, -HEADER)
        self.text(0, 12 - HEADER, title, width, size=1.6 * SIZE, weight="bold")
        self.text(0, 36 - HEADER, below, width, color="#555555")

    def image(
        self,
        left: float,
        top: float,
        width: float,
        pixels: np.ndarray,
        *,
        height: float | None = None,
        frame: str = PALE,
        **options: Any,
    ) -> None:
        """Draw (H, W), (H, W, 3) or (H, W, 4) values, each pixel as a box if enlarged.

        Args:
            left: Of the picture.
            top: Of the picture.
            width: Of the picture.
            pixels: Values.
            height: Of the picture, by default its width.
            frame: Colour of the line around it.
            options: Of matplotlib's ``imshow``.
        """
        height = width if height is None else height
        kernel = "nearest" if pixels.shape[0] <= height else "antialiased"
        extent = (left, left + width, top + height, top)
        self.axes.imshow(pixels, extent=extent, interpolation=kernel, **options)
        line = 0.5 if frame == PALE else 1.5
        self.axes.add_patch(
            Rectangle((left, top), width, height, fill=False, edgecolor=frame, linewidth=line)
        )

    def text(
        self,
        left: float,
        top: float,
        text: str,
        width: float,
        *,
        color: str = "black",
        size: float = SIZE,
        weight: str = "normal",
    ) -> None:
        """Write one line, shortened to a width."""
        text = writable(text)
        # Bold letters are wider; 0.6 em is a little more than the mean letter.
        most = int(width / ((0.68 if weight == "bold" else 0.6) * size * DPI / 72))
        self.axes.text(
            left,
            top + LINE / 2,
            text if len(text) <= most else f"{text[: max(most - 3, 1)]}...",
            fontsize=size,
            color=color,
            weight=weight,
            verticalalignment="center",
            parse_math=False,  # class names may have dollar signs
        )

    def box(self, left: float, top: float, scale: float, box: Box, color: str) -> None:
        """Draw the outline of a box of an image that lies at (left, top)."""
        self.axes.add_patch(
            Rectangle(
                (left + scale * box.left, top + scale * box.top),
                scale * box.width,
                scale * box.height,
                fill=False,
                edgecolor=color,
                linewidth=1.4,
                path_effects=[patheffects.withStroke(linewidth=2.6, foreground="white", alpha=0.6)],
            )
        )

    def badge(self, left: float, top: float, text: str, color: str) -> None:
        """Write a number on a coloured ground."""
        self.axes.add_patch(
            Rectangle(
                (left, top), *BADGE, facecolor=color, edgecolor="white", linewidth=0.6, zorder=3
            )
        )
        self.axes.text(
            left + BADGE[0] / 2,
            top + BADGE[1] / 2 + 0.5,
            text,
            fontsize=SIZE - 1,
            color="white",
            horizontalalignment="center",
            verticalalignment="center_baseline",
            zorder=4,
        )

    def swatch(self, left: float, top: float, color: str) -> None:
        """Draw the square of a legend."""
        self.axes.add_patch(Rectangle((left, top + 3), LINE - 6, LINE - 6, facecolor=color))

    def save(self, path: Path) -> None:
        """Write the PNG."""
        left, right, bottom, top = self.limits
        self.axes.set(xlim=(left, right), ylim=(bottom, top), aspect="auto")
        with warnings.catch_warnings():
            # A class name in a script that the font lacks is drawn as boxes.
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            self.figure.savefig(path, dpi=DPI, metadata={"Software": "smallvit"})


def tile_side(side: int, bounds: tuple[int, int]) -> int:
    """Return the side at which an image is shown: a whole multiple where it is enlarged."""
    return min(side * max(1, round(bounds[0] / side)), bounds[1])


def to_pixels(image: UInt8[Tensor, "3 H W"], *, grey: bool = False) -> np.ndarray:
    """Return an image as matplotlib takes it, with its colours or as their mean."""
    pixels = image.permute(1, 2, 0).numpy()
    if grey:
        pixels = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
    return pixels
