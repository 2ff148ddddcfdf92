"""Blur: defocus, frosted glass, motion, zoom and Gaussian.

Each function takes bytes, the published strength and the draws, and returns levels from 0 to 255,
not yet clipped.

Shapes in this file:
    B    images
    P    pixels of an image, row by row
    H W  image in pixels
"""

import math
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from smallvit.evaluate.corruptions.draws import Bytes, Draws, Levels
from smallvit.evaluate.corruptions.filters import blur_along_line, correlate, smooth, zoom
from smallvit.evaluate.corruptions.parameters import Strength

# Added before a level is truncated: a flat area is not to lose a level to rounding.
ROUNDING = 1e-6


def gaussian_blur(images: Bytes, strength: Strength, draws: Draws) -> Levels:
    """Blur with a Gaussian of that standard deviation in pixels."""
    return smooth(images.double(), strength[0])


def defocus_blur(images: Bytes, strength: Strength, draws: Draws) -> Levels:
    """Blur with a disk of that radius whose rim is softened by that standard deviation."""
    return correlate(images.double(), disk(*strength))


@lru_cache(maxsize=16)
def disk(radius: float, softness: float) -> np.ndarray:
    """Return the kernel of ``defocus_blur``, without the zeros around it.

    Source:
        ``disk`` of hendrycks/robustness, make_cifar_c.py: whole pixels within the radius, then
        cv2.GaussianBlur of 3x3, or of 5x5 above a radius of 8. The disk of radius 8 fills its
        array, so that the mirrored border counts in.
    """
    side = 8 if radius <= 8 else int(radius)
    reach = 1 if radius <= 8 else 2
    offset = np.arange(-side, side + 1)
    within = (offset[:, None] ** 2 + offset**2 <= radius**2).astype(np.float64)
    within /= within.sum()
    weight = np.exp(-0.5 * (np.arange(-reach, reach + 1) / softness) ** 2)
    weight /= weight.sum()
    soft = correlate(torch.from_numpy(within), np.outer(weight, weight)).numpy()
    kept = min(side, int(radius) + reach)
    return soft[side - kept : side + kept + 1, side - kept : side + kept + 1]


def motion_blur(images: Bytes, strength: Strength, draws: Draws) -> Levels:
    """Blur along a line within 45 degrees of horizontal; radius and standard deviation in pixels.

    The published files were blurred by ImageMagick, which rounds where NumPy truncates.
    """
    radius, sigma = strength
    angle = 90 * draws.uniform("angle", 1)[:, 0] - 45
    blurred = blur_along_line(images.double(), angle, radius=int(radius), sigma=sigma)
    return (blurred + 0.5).floor()


def zoom_blur(images: Bytes, strength: Strength, draws: Draws) -> Levels:
    """Average the image and its enlargements by 1, 1 + step and so on, below the first number."""
    levels = images.double().permute(2, 3, 0, 1).contiguous()
    # The end of arange is decided by rounding: 1.06 itself is among the factors.
    factors = np.arange(1, *strength).tolist()
    total = levels.clone()
    for factor in factors:
        total += zoom(levels, factor, axes=(0, 1))
    return (total / (len(factors) + 1)).permute(2, 3, 0, 1)


def glass_blur(images: Bytes, strength: Strength, draws: Draws) -> Levels:
    """Blur, replace pixels by near ones, blur again.

    The strength is standard deviation, reach and rounds.
    """
    sigma, reach, rounds = strength[0], int(strength[1]), int(strength[2])
    height, width = images.shape[-2:]
    levels = (smooth(images.double(), sigma) + ROUNDING).floor()
    shift = (2 * reach * draws.uniform("shift", rounds, 2, height * width)).long() - reach
    for number in range(rounds):
        source = glass_sources(shift[:, number], (height, width), reach)
        levels = levels.flatten(2).gather(2, source[:, None].expand(-1, 3, -1))
        levels = levels.reshape(images.shape)
    return smooth(levels, sigma)


def glass_sources(
    shift: Int[Tensor, "B 2 P"], size: tuple[int, int], reach: int
) -> Int[Tensor, "B P"]:
    """Return which pixel each pixel shows after one round of ``glass_blur``.

    The published loop runs from the lower right to the upper left and reads ``x[a], x[b] = x[b],
    x[a]`` on rows of an array. NumPy hands out views there, so that it copies ``b`` to ``a`` and
    swaps nothing; this does the same. A pixel that shows one further on in the image gets what
    that one shows by then: such chains are followed to their end by doubling, all at once.

    Args:
        shift: How far right and how far down each pixel looks, in [-reach, reach).
        size: Height and width in pixels.
        reach: Pixels nearer to the left or upper edge than this, or at it, are left as they are,
            and so are those nearer to the right or lower one.
    """
    height, width = size
    device = shift.device
    place = torch.arange(height * width, device=device)
    row, column = place // width, place % width
    inside = (row > reach) & (row <= height - reach) & (column > reach)
    inside &= column <= width - reach
    right, down = shift.unbind(1)
    source = torch.where(inside, place + down * width + right, place)
    if reach == 1:  # then all look back, to pixels not yet replaced
        return source
    # Numbers from P on are what stood there before the round.
    before = place + height * width
    target = torch.where(inside[source] & (source > place), source, source + height * width)
    for _ in range(math.ceil(math.log2(height * width))):
        target = torch.cat([target, before.expand_as(target)], dim=1).gather(1, target)
    return target - height * width
