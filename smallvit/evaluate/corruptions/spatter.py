"""Spatter: drops of water, or splashes of mud, on the lens.

Shapes in this file:
    B    images
    H W  image in pixels
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from smallvit.data.augment import constant
from smallvit.evaluate.corruptions.draws import Bytes, Draws, Levels
from smallvit.evaluate.corruptions.filters import correlate, fold, smooth
from smallvit.evaluate.corruptions.parameters import Strength

WATER, MUD = (175.0, 238.0, 238.0), (63.0, 42.0, 20.0)  # red, green and blue
WEAK_EDGE, STRONG_EDGE = 50, 150
FARTHEST = 20  # pixels; distances from an edge are cut off there
LEAST_MUD = 0.8
# Lengths of steps in the 5x5 neighbourhood of cv2.distanceTransform: straight, diagonal, knight's.
STRAIGHT, DIAGONAL, KNIGHT = 1.0, 1.4, 2.1969
RELIEF = np.array([[-2.0, -1, 0], [-1, 1, 1], [0, 1, 2]])
SOBEL = np.array([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
BOX = np.ones((3, 3))


def spatter(images: Bytes, strength: Strength, draws: Draws) -> Levels:
    """Lay water (severities 1 to 3) or mud (4 and 5) over the image.

    The strength is mean, standard deviation, blur in pixels and threshold of the noise that drops
    are cut from, their opacity (of mud: the blur of their rim), and 0 for water or 1 for mud.

    Returns:
        Levels from 0 to 255, not yet clipped.
    """
    loc, scale, sigma, threshold, amount, mud = strength
    noise = draws.normal("drops", *images.shape[2:]).double()
    liquid = smooth(loc + scale * noise, sigma)
    liquid = liquid.masked_fill_(liquid < threshold, 0)
    if mud:
        cover = smooth((liquid > threshold).double(), amount)
        cover = cover.masked_fill_(cover < LEAST_MUD, 0)[:, None]
        return images * (1 - cover) + cover * _color(MUD, images)
    water = draw_water((255 * liquid).floor())
    return images + amount * water[:, None] * _color(WATER, images)


def _color(color: tuple[float, ...], images: Tensor) -> Float[Tensor, "3 1 1"]:
    return constant(color, images.device).double()[:, None, None]


def draw_water(liquid: Float[Tensor, "B H W"]) -> Float[Tensor, "B H W"]:
    """Shade drops by a relief of the distance from their edges; the brightest place is 1.

    Args:
        liquid: Height of the drops, whole numbers from 0 to 255; 0 where there is none.

    Returns:
        Brightness in [0, 1]; all 0 in an image without drops, where the published code divides
        by 0.

    Source:
        ``spatter`` of hendrycks/robustness, make_cifar_c.py, with what it calls in OpenCV: Canny,
        distanceTransform, blur, equalizeHist and filter2D.
    """
    distance = distance_from(find_edges(liquid)).clamp(max=FARTHEST)
    relief = equalize(_box_mean(distance).floor())
    relief = correlate(relief, RELIEF).clamp_(0, 255)
    relief = (_box_mean(relief) + 0.5).floor()
    water = liquid * relief
    return water / water.amax(dim=(1, 2), keepdim=True).clamp(min=1)


def _box_mean(maps: Float[Tensor, "B H W"]) -> Float[Tensor, "B H W"]:
    return correlate(maps, BOX) / BOX.size


def find_edges(maps: Float[Tensor, "B H W"]) -> Bool[Tensor, "B H W"]:
    """Find edges as Canny does: strong ones, and weak ones that hang together with them.

    A chain of weak places is followed for as many steps as the image has rows and columns.
    """
    height, width = maps.shape[1:]
    right, down = (correlate(maps, kernel, border="edge") for kernel in (SOBEL, SOBEL.T))
    size = right.abs() + down.abs()
    around = F.pad(size, (1, 1, 1, 1))

    def near(dy: int, dx: int) -> Tensor:
        return around[:, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    flat, steep = math.tan(math.pi / 8), math.tan(3 * math.pi / 8)
    # A tie goes to one side only, along a row or a column.
    horizontal = (size > near(0, -1)) & (size >= near(0, 1))
    vertical = (size > near(-1, 0)) & (size >= near(1, 0))
    falling = (size > near(-1, -1)) & (size > near(1, 1))
    rising = (size > near(-1, 1)) & (size > near(1, -1))
    diagonal = torch.where((right < 0) == (down < 0), falling, rising)
    largest = torch.where(
        down.abs() < flat * right.abs(),
        horizontal,
        torch.where(down.abs() > steep * right.abs(), vertical, diagonal),
    )
    weak, edges = largest & (size > WEAK_EDGE), largest & (size > STRONG_EDGE)
    for _ in range(height + width):
        for axis in (1, 2):  # each place and its eight neighbours
            wide = edges.clone()
            length = edges.shape[axis] - 1
            wide.narrow(axis, 0, length).logical_or_(edges.narrow(axis, 1, length))
            wide.narrow(axis, 1, length).logical_or_(edges.narrow(axis, 0, length))
            edges = wide
        edges &= weak
    return edges


def distance_from(edges: Bool[Tensor, "B H W"]) -> Float[Tensor, "B H W"]:
    """Return the length of the shortest path to an edge, up to a little over ``FARTHEST``.

    In each row only the nearest edge can be the nearest of all; the rows are gone through.
    """
    height, width = edges.shape[1:]
    device = edges.device
    x = torch.arange(width, device=device)
    before = torch.where(edges, x, -2 * FARTHEST).cummax(dim=2).values
    behind = torch.where(edges, x, width + 2 * FARTHEST).flip(2).cummin(dim=2).values.flip(2)
    in_row = torch.minimum(x - before, behind - x).clamp_(max=FARTHEST + 1).float()
    reach = min(FARTHEST, height - 1)
    rows = torch.arange(-reach, height + reach, device=device)
    outside = (rows < 0) | (rows >= height)
    wide = in_row.index_select(1, fold(rows, height, "edge"))
    wide = wide.masked_fill(outside[:, None], FARTHEST + 1)
    nearest = torch.full(edges.shape, float(FARTHEST + 1), device=device)
    for dy in range(-reach, reach + 1):
        row = wide[:, reach + dy : reach + dy + height]
        nearest = torch.minimum(nearest, _path(row, abs(dy)))
    return nearest.double()


def _path(dx: Float[Tensor, "B H W"], dy: int) -> Float[Tensor, "B H W"]:
    """Return the length of the shortest path over ``dx`` columns and ``dy`` rows.

    Knight's and straight steps, or knight's and diagonal ones: the longest of the four sums is
    the one that applies.
    """
    straight, knight = KNIGHT - 2 * STRAIGHT, KNIGHT - DIAGONAL
    diagonal = 2 * DIAGONAL - KNIGHT
    length = torch.maximum(STRAIGHT * dx + straight * dy, straight * dx + STRAIGHT * dy)
    length = torch.maximum(length, knight * dx + diagonal * dy)
    return torch.maximum(length, diagonal * dx + knight * dy)


def equalize(maps: Float[Tensor, "B H W"]) -> Float[Tensor, "B H W"]:
    """Spread the levels of each map evenly over 0 to 255, as cv2.equalizeHist does.

    Args:
        maps: Whole numbers from 0 to 255.
    """
    levels = maps.flatten(1).long()
    total = levels.shape[1]
    counts = torch.zeros(len(maps), 256, dtype=torch.float64, device=maps.device)
    counts.scatter_add_(1, levels, torch.ones_like(levels, dtype=torch.float64))
    lowest = counts.gather(1, levels.amin(dim=1, keepdim=True))
    # An even map stays as it is.
    even = lowest == total
    rise = (counts.cumsum(dim=1) - lowest) * 255 / torch.where(even, 1, total - lowest)
    return torch.where(even, levels, rise.round().gather(1, levels)).reshape(maps.shape).double()
