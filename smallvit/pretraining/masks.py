"""Which patches of an image are hidden, and how a network is run without seeing them.

Shapes in this file:
    B    images
    R    rectangles an image
    N    cells of the mask, row-major (N = h * w)
    M    cells that are hidden
    E    embed dim of the patches
    P    numbers in the pixels of a cell
    H W  image in pixels
    h w  grid of the mask
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from smallvit.core.errors import ConfigError
from smallvit.models.tokens import AbstractBackbone, Tokens

# Rectangles an image that blocks are made of: at ratios up to 0.6, so many cover too few cells in
# less than one image of a thousand.
RECTANGLES = 8
# BEiT's bounds of a rectangle's height over its width, and its least side over the grid's.
ASPECT = (0.3, 1 / 0.3)
LEAST_SIDE = 1 / 3


def mask_grid(
    backbone: AbstractBackbone, image_size: int, *, method: str
) -> tuple[tuple[int, int], int]:
    """Return the grid of final tokens, on which masks lie, and the embed dim of the patches.

    Args:
        backbone: The network.
        image_size: Side of the images, in pixels.
        method: Which one masks, for the message.

    Raises:
        ConfigError: If tokens do not stand for whole patches and pixels.
    """
    patches, tokens = backbone.probe(image_size)
    wrong = indivisible(patches, tokens, image_size)
    if wrong:
        raise ConfigError(
            f"{method} hides cells of {tokens.grid[0]} x {tokens.grid[1]} tokens, which do not "
            f"divide the {wrong} of {backbone.model_name}: use --method dino, or --model vit_tiny"
        )
    return tokens.grid, patches.shape[-1]


def indivisible(patches: Float[Tensor, "1 _ _ E"], tokens: Tokens, image_size: int) -> str:
    """Return which pixels or patches the grid of final tokens does not divide; else nothing."""
    height, width = tokens.grid
    for size, what in (((image_size, image_size), "pixels"), (patches.shape[1:3], "patches")):
        if size[0] % height or size[1] % width:
            return f"{size[0]} x {size[1]} {what}"
    return ""


def num_hidden(num_cells: int, mask_ratio: float) -> int:
    """Return how many cells a ratio hides: at least one, and at least one is left."""
    return min(max(round(num_cells * mask_ratio), 1), num_cells - 1)


def hide_pixels(
    images: Float[Tensor, "B 3 H W"],
    draws: Float[Tensor, "B N"],
    grid: tuple[int, int],
    mask_ratio: float,
) -> tuple[Int[Tensor, "B M"], Int[Tensor, "B visible"], Float[Tensor, "B M P"]]:
    """Return which cells of each image are hidden, which are visible, and the hidden pixels.

    Args:
        images: What is cut into cells.
        draws: Uniform numbers, one a cell.
        grid: Rows and columns (h, w).
        mask_ratio: Part of the cells to hide.
    """
    hidden, visible = split_cells(draws, num_hidden(draws.shape[1], mask_ratio))
    return hidden, visible, torch.take_along_dim(cut_cells(images, grid), hidden[..., None], dim=1)


def cut_cells(images: Float[Tensor, "B 3 H W"], grid: tuple[int, int]) -> Float[Tensor, "B N P"]:
    """Cut images into a grid of cells that divides them; a cell by row, column, colour."""
    cells = images.unflatten(3, (grid[1], -1)).unflatten(2, (grid[0], -1))
    return cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (B, 3, h, p, w, q)


def num_block_draws(grid: tuple[int, int]) -> int:
    """Return how many uniform numbers an image ``split_in_blocks`` takes."""
    return 4 * RECTANGLES + grid[0] * grid[1]


def split_in_blocks(
    draws: Float[Tensor, "B n"], grid: tuple[int, int], hidden: int
) -> tuple[Int[Tensor, "B M"], Int[Tensor, "B visible"]]:
    """Return which cells of each image are hidden, in blocks, and which are visible, in order.

    Every image gets some rectangles of random area, aspect and place. Cells are hidden rectangle
    by rectangle until M are, the last one from its centre outwards. Should all rectangles cover
    too few, single cells make up the rest.

    Args:
        draws: Uniform numbers, as many as ``num_block_draws`` says.
        grid: Rows and columns (h, w).
        hidden: M, the same for every image.

    Source:
        Bao et al., 2022, BEiT, https://arxiv.org/abs/2106.08254, algorithm 1: areas between a
        ninth of the grid and M, aspects between 0.3 and 1 / 0.3. There rectangles are drawn one
        after another, each no larger than what is still to be hidden, and drawn again where one
        does not fit, so that the number of hidden cells varies; here all are drawn at once for all
        images, and exactly M cells are hidden.
    """
    height, width = grid
    shapes, ties = draws[:, : 4 * RECTANGLES], draws[:, 4 * RECTANGLES :]
    area, aspect, y, x = shapes.unflatten(1, (RECTANGLES, 4)).unbind(-1)  # each (B, R)
    least = min((min(grid) * LEAST_SIDE) ** 2, hidden)
    area = least + area * (hidden - least)
    low, high = (math.log(bound) for bound in ASPECT)
    stretch = (0.5 * (low + aspect * (high - low))).exp()
    rows = (area.sqrt() * stretch).round().clamp(1, height)
    columns = (area.sqrt() / stretch).round().clamp(1, width)
    top, left = (y * (height - rows + 1)).floor(), (x * (width - columns + 1)).floor()
    row = torch.arange(height, device=draws.device) + 0.5
    column = torch.arange(width, device=draws.device) + 0.5
    # How far out a cell lies in each rectangle: below 1 inside, in either direction.
    down = (row - (top + rows / 2)[..., None]).abs() / (rows / 2)[..., None]  # (B, R, h)
    across = (column - (left + columns / 2)[..., None]).abs() / (columns / 2)[..., None]
    outward = torch.maximum(down[..., None], across[..., None, :]).flatten(2)  # (B, R, N)
    order = torch.arange(RECTANGLES, device=draws.device)[:, None]
    rank = torch.where(outward < 1, order + outward, RECTANGLES).amin(dim=1)
    # Random among cells equally far out, and among those that no rectangle covers.
    return split_cells(rank + 1e-3 * ties, hidden)


def split_cells(
    rank: Float[Tensor, "B N"], hidden: int
) -> tuple[Int[Tensor, "B M"], Int[Tensor, "B visible"]]:
    """Return which cells of each image are hidden and which are visible, both in order.

    Args:
        rank: The lowest are hidden; uniform numbers hide cells at random.
        hidden: M, the same for every image: shapes stay fixed and nothing waits for the device.
    """
    order = rank.argsort(dim=1, stable=True)
    return order[:, :hidden].sort(dim=1).values, order[:, hidden:].sort(dim=1).values


def as_mask(index: Int[Tensor, "B M"], grid: tuple[int, int]) -> Bool[Tensor, "B h w"]:
    """Mark the cells that are listed."""
    mask = torch.zeros(
        len(index), grid[0] * grid[1], dtype=torch.bool, device=index.device
    ).scatter_(1, index, True)
    return mask.unflatten(1, grid)


def encode_masked(
    backbone: AbstractBackbone,
    images: Float[Tensor, "B 3 H W"],
    mask: Bool[Tensor, "B h w"],
    mask_token: Float[Tensor, " E"],
) -> Tokens:
    """Run images through a network that sees a learned token in place of each hidden cell.

    Hidden pixels are blackened to the mean first, so that a stem whose patches overlap does not
    see them through their neighbours; then the embedded patches of a cell are replaced.

    Args:
        backbone: The network.
        images: Normalised.
        mask: On any grid that divides both the image and the grid of patches.
        mask_token: What replaces a patch.

    Raises:
        ConfigError: If the grid of the mask divides neither.
    """
    images = images.masked_fill(enlarge(mask, images.shape[2:])[:, None], 0.0)
    patches = backbone.embed(images)
    hidden = enlarge(mask, patches.shape[1:3])[..., None]
    return backbone.encode(torch.where(hidden, mask_token.to(patches.dtype), patches))


def enlarge(
    mask: Bool[Tensor, "B h w"], size: tuple[int, int] | torch.Size
) -> Bool[Tensor, "B H W"]:
    """Repeat each cell of a mask so that it covers a finer grid."""
    height, width = mask.shape[1:]
    if size[0] % height or size[1] % width:
        raise ConfigError(
            f"a mask of {height} x {width} cells does not divide {size[0]} x {size[1]} patches: "
            "choose a model whose grid of tokens divides its grid of patches"
        )
    return mask.repeat_interleave(size[0] // height, 1).repeat_interleave(size[1] // width, 2)
