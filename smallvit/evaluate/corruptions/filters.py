"""Blurs and resampling that several corruptions share, with the borders of the published code.

They compute in float64, as the published code does: what it truncates to a byte would else differ
by one level wherever a result is a whole number.

Shapes in this file:
    B    images
    C    channels
    H W  image in pixels
"""

import math
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

# How values continue beyond the edge: "edge" a a|a b c d|d d, "reflect" b a|a b c d|d c, "mirror"
# c b|a b c d|c b.
Border = Literal["edge", "reflect", "mirror"]
# Weights below this are left out: together they move a pixel by less than 0.001 levels.
LEAST_WEIGHT = 1e-7


def fold(index: Int[Tensor, "*shape"], size: int, border: Border) -> Int[Tensor, "*shape"]:
    """Return the place inside [0, size) that stands for each place inside or outside."""
    match border:
        case "edge":
            return index.clamp(0, size - 1)
        case "reflect":
            index = index % (2 * size)
            return torch.minimum(index, 2 * size - 1 - index)
        case "mirror":
            period = max(2 * size - 2, 1)
            index = index % period
            return torch.minimum(index, period - index) if size > 1 else torch.zeros_like(index)


@lru_cache(maxsize=64)
def _blur_matrix(
    size: int, sigma: float, truncate: float, border: Border, device: torch.device
) -> Float[Tensor, "size size"]:
    radius = int(truncate * sigma + 0.5)
    offset = torch.arange(-radius, radius + 1)
    weight = torch.exp(-0.5 * (offset.double() / sigma) ** 2)
    weight /= weight.sum()
    place = fold(torch.arange(size)[:, None] + offset, size, border)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, place, weight.expand(size, -1)).to(device)


def smooth(
    images: Float[Tensor, "*batch H W"],
    sigma: float,
    *,
    truncate: float = 4.0,
    border: Border = "edge",
) -> Float[Tensor, "*batch H W"]:
    """Blur with a Gaussian, cut off as scipy.ndimage.gaussian_filter cuts it.

    Args:
        images: float64.
        sigma: Standard deviation in pixels; 0 leaves the images as they are.
        truncate: Radius of the kernel in standard deviations.
        border: How values continue beyond the edge.
    """
    if int(truncate * sigma + 0.5) == 0:
        return images
    height, width = images.shape[-2:]
    rows, columns = (
        _blur_matrix(size, sigma, truncate, border, images.device) for size in (height, width)
    )
    return ((images @ columns.mT).mT @ rows.mT).mT


def correlate(
    images: Float[Tensor, "*batch H W"], kernel: np.ndarray, *, border: Border = "mirror"
) -> Float[Tensor, "*batch H W"]:
    """Correlate with one small kernel of odd sides, as cv2.filter2D does.

    A sum over its entries and no convolution call: that one's order of addition, and with it the
    last bit, depends on the batch.
    """
    height, width = images.shape[-2:]
    up, left = (side // 2 for side in kernel.shape)
    device = images.device
    rows = fold(torch.arange(-up, height + up, device=device), height, border)
    columns = fold(torch.arange(-left, width + left, device=device), width, border)
    wide = images.index_select(-2, rows).index_select(-1, columns)
    out = torch.zeros_like(images)
    for (dy, dx), weight in np.ndenumerate(kernel):
        if weight != 0:
            out.add_(wide[..., dy : dy + height, dx : dx + width], alpha=float(weight))
    return out


def blur_along_line(
    images: Float[Tensor, "B C H W"], angle: Float[Tensor, " B"], *, radius: int, sigma: float
) -> Float[Tensor, "B C H W"]:
    """Blur along a half line from each pixel, as motion does: half a Gaussian, whole-pixel steps.

    Args:
        images: float64.
        angle: Direction of each image, in degrees clockwise from the x axis.
        radius: The line has 2 ``radius`` + 1 pixels.
        sigma: Standard deviation in pixels.

    Source:
        ImageMagick's MotionBlurImage (MagickCore/effect.c), which the published code calls.
    """
    height, width = images.shape[-2:]
    step = torch.arange(2 * radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (step / sigma) ** 2)
    weights = (weights / weights.sum()).tolist()
    turn = torch.deg2rad(angle.double())
    device = images.device
    y, x = (torch.arange(size, device=device) for size in (height, width))
    flat = images.flatten(2)
    out = torch.zeros_like(flat)
    for i, weight in enumerate(weights):
        if weight < LEAST_WEIGHT:
            break
        down, right = (torch.ceil(i * part - 0.5).long() for part in (turn.sin(), turn.cos()))
        row = fold(y + down[:, None], height, "edge")
        column = fold(x + right[:, None], width, "edge")
        place = (row[:, :, None] * width + column[:, None]).flatten(1)
        out.add_(flat.gather(2, place[:, None].expand_as(flat)), alpha=weight)
    return out.reshape(images.shape)


def zoom(
    images: Float[Tensor, "*batch"], factor: float, *, axes: tuple[int, int] = (-2, -1)
) -> Float[Tensor, "*batch"]:
    """Enlarge the centre about ``factor`` times, bilinearly, and cut it to the image's size.

    Args:
        images: float64.
        factor: 1 or more.
        axes: Which axes are rows and columns; copies are faster where these are not the last.

    Source:
        ``clipped_zoom`` of hendrycks/robustness, make_cifar_c.py, for scipy.ndimage.zoom's grid,
        whose first and last samples are those of the input. There the image is square.
    """
    for axis in axes:
        low, share = _zoom_places(images.shape[axis], factor, images.device)
        shape = [1] * images.ndim
        shape[axis] = -1
        lower, upper = images.index_select(axis, low), images.index_select(axis, low + 1)
        images = lower.lerp_(upper, share.reshape(shape))
    return images


@lru_cache(maxsize=256)
def _zoom_places(
    size: int, factor: float, device: torch.device
) -> tuple[Int[Tensor, " size"], Float[Tensor, " size"]]:
    """Return the lower neighbour of each pixel of the enlarged image, and the upper's share."""
    cut = math.ceil(size / factor)
    start = (size - cut) // 2
    enlarged = round(cut * factor)
    place = torch.arange(size, dtype=torch.float64) + (enlarged - size) // 2
    place = place * ((cut - 1) / max(enlarged - 1, 1)) + start
    low = place.floor().long().clamp(max=size - 2)
    return low.to(device), (place - low).to(device)


def sample(
    images: Float[Tensor, "B C H W"],
    x: Float[Tensor, "B H W"],
    y: Float[Tensor, "B H W"],
    *,
    border: Border,
) -> Float[Tensor, "B C H W"]:
    """Read each image at places between its pixels, bilinearly.

    Args:
        images: float64.
        x: Column of each pixel to read; whole numbers are centres of pixels.
        y: Row of each pixel to read.
        border: How values continue beyond the edge.
    """
    height, width = images.shape[-2:]
    flat = images.flatten(2)
    left, top = x.floor(), y.floor()
    right_share, lower_share = (x - left).flatten(1)[:, None], (y - top).flatten(1)[:, None]
    columns = [fold(left.long() + i, width, border) for i in (0, 1)]
    rows = [fold(top.long() + i, height, border) for i in (0, 1)]

    def read(row: Tensor, column: Tensor) -> Tensor:
        return flat.gather(2, (row * width + column).flatten(1)[:, None].expand_as(flat))

    upper = read(rows[0], columns[0]).lerp_(read(rows[0], columns[1]), right_share)
    lower = read(rows[1], columns[0]).lerp_(read(rows[1], columns[1]), right_share)
    return upper.lerp_(lower, lower_share).reshape(images.shape)
