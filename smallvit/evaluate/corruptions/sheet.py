"""A sheet of one image under every corruption and severity, for the eye.

Shapes in this file:
    H W  image in pixels
"""

from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from smallvit.data.canvas import GAP, LINE, Canvas, tile_side, to_pixels
from smallvit.evaluate.corruptions.batch import PROTOCOL, corrupt
from smallvit.evaluate.corruptions.parameters import ALL_CORRUPTIONS, SEVERITIES, table_of

TILES = (96, 160)  # pixels a tile, as in contact sheets


def draw_corruptions(path: Path, image: UInt8[Tensor, "3 H W"], *, seed: int, index: int) -> None:
    """Draw an image with the 19 corruptions in 5 severities, by the code that scores use.

    Args:
        path: PNG to write.
        image: On the CPU.
        seed: Seed of the corruptions.
        index: Number of the image in its data set.
    """
    side = max(image.shape[1:])
    tile = tile_side(side, TILES)
    pair, row = len(SEVERITIES) * (tile + 2) + GAP, LINE + tile + GAP
    names = ("clean", *ALL_CORRUPTIONS)
    canvas = Canvas(
        2 * pair - GAP,
        -(-len(names) // 2) * row,
        f"Corruptions, {PROTOCOL}",
        f"image {index}, {image.shape[2]}x{image.shape[1]} px, strengths of {table_of(side)}, "
        f"seed {seed}; severities 1 to 5",
    )
    indices = torch.tensor([index])
    for number, name in enumerate(names):
        left, top = number % 2 * pair, number // 2 * row
        canvas.text(left, top, name, pair, weight="bold")
        for severity in SEVERITIES:
            shown = image
            if name != "clean":
                shown = corrupt(image[None], name, severity, seed=seed, indices=indices)[0]
            elif severity > 1:
                break
            at = left + (severity - 1) * (tile + 2)
            canvas.image(at, top + LINE, tile, to_pixels(shown))
    canvas.save(path)
