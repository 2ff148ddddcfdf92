"""Pixels as the target of masked images: what mae and simmim share.

Shapes in this file:
    B    images
    N    cells, row-major (N = h * w)
    P    numbers in the pixels of a cell
    H W  image in pixels
    h w  grid of cells
"""

from jaxtyping import Float
from torch import Tensor


def cut_cells(images: Float[Tensor, "B 3 H W"], grid: tuple[int, int]) -> Float[Tensor, "B N P"]:
    """Cut images into a grid of cells that divides them; a cell by row, column, colour."""
    cells = images.unflatten(3, (grid[1], -1)).unflatten(2, (grid[0], -1))
    return cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (B, 3, h, p, w, q)
