"""Frost made from random waves, in place of the published code's photographs.

Shapes in this file:
    B    images
    F    fields an image, or knots of a curve
    W    waves
    H W  image in pixels
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from smallvit.data.augment import constant, each
from smallvit.evaluate.corruptions.draws import Draws
from smallvit.evaluate.corruptions.filters import smooth

# Luminance of each photograph at these quantiles of the normal distribution (0, 5, 10, 25, 50, 75,
# 90, 95 and 100 %), reduced to a fifth as make_cifar_c.py reduces it; the second and the third are
# one picture in two files.
KNOTS = (-3.3, -1.645, -1.282, -0.674, 0.0, 0.674, 1.282, 1.645, 3.3)
LUMINANCE = (
    (85.0, 103.0, 107.0, 116.0, 128.0, 141.0, 155.0, 163.0, 215.0),
    (56.0, 165.0, 176.0, 193.0, 208.0, 221.0, 230.0, 234.0, 252.0),
    (56.0, 165.0, 176.0, 193.0, 208.0, 221.0, 230.0, 234.0, 252.0),
    (37.0, 103.0, 115.0, 133.0, 150.0, 167.0, 184.0, 197.0, 253.0),
    (27.0, 58.0, 68.0, 89.0, 117.0, 149.0, 180.0, 201.0, 255.0),
)
# Red, green and blue less luminance, on the mean; and how much each varies with it.
TINT = (
    (-52.1, 19.4, 36.1),
    (-4.3, 0.3, 9.4),
    (-4.3, 0.3, 9.4),
    (-12.1, 3.1, 15.5),
    (-9.0, 2.0, 13.4),
)
GAIN = ((1.46, 0.9, 0.84), (0.98, 1.0, 1.03), (0.98, 1.0, 1.03), (1.0, 1.0, 1.04), (1.0, 1.0, 0.96))
MEAN = (129.6, 205.1, 205.1, 150.1, 121.3)
# Share of the variance and length in pixels of the photograph, by their autocorrelation: grain,
# crystals (along and across their direction) and patches.
GRAIN, CRYSTALS, PATCHES = 0.36, 0.2, 0.44
GRAIN_SIGMA, CRYSTAL_LENGTHS, PATCH_LENGTH = 0.65, (16.0, 4.0), 70.0
WAVES = 8
MARGIN = 3  # pixels around the grain, which are cut off: at an edge it would vary more


def draw_frost(draws: Draws, size: tuple[int, int], scale: float) -> Float[Tensor, "B 3 H W"]:
    """Make one texture an image, in levels from 0 to 255.

    Each looks like one of the five photographs of hendrycks/robustness, which are not this
    package's to ship, in what can be stated in numbers: the distribution of luminance, the mean
    colour, and how similar pixels at a distance are. It is no photograph: figures measured with it
    are close to those with the published frost, not the same.

    Args:
        draws: Random numbers.
        size: Height and width in pixels.
        scale: Pixels of the texture a pixel of the photograph.
    """
    height, width = size
    grain = draws.normal("grain", height + 2 * MARGIN, width + 2 * MARGIN).double()
    grain = _unit_grain(grain, GRAIN_SIGMA * scale)
    direction = math.pi * draws.uniform("direction", 1)
    lengths = [scale * length for length in CRYSTAL_LENGTHS]
    crystals = _waves(draws, "crystals", size, (lengths[0], lengths[1]), direction)
    patch = scale * PATCH_LENGTH
    patches = _waves(draws, "patches", size, (patch, patch), direction)
    mixed = math.sqrt(GRAIN) * grain + math.sqrt(CRYSTALS) * crystals + math.sqrt(PATCHES) * patches
    return _color(mixed, draws.uniform("photograph", 1)[:, 0])


def _unit_grain(noise: Float[Tensor, "B height width"], sigma: float) -> Float[Tensor, "B H W"]:
    """Blur noise a little, keep its variance at 1, and cut the margin off."""
    weight = torch.exp(-0.5 * (torch.arange(-MARGIN, MARGIN + 1).double() / sigma) ** 2)
    norm = (weight.square().sum() / weight.sum() ** 2).item()  # of both axes: its square root each
    return (smooth(noise, sigma) / norm)[:, MARGIN:-MARGIN, MARGIN:-MARGIN]


def _waves(
    draws: Draws,
    what: str,
    size: tuple[int, int],
    lengths: tuple[float, float],
    direction: Float[Tensor, "B 1"],
) -> Float[Tensor, "B H W"]:
    """Add plane waves of normal frequencies: about normal, variance 1, alike everywhere.

    Args:
        draws: Random numbers.
        what: What they are for.
        size: Height and width in pixels.
        lengths: Along and across the direction, the distance in pixels at which the
            autocorrelation falls to exp(-1/2).
        direction: Angle, in radians.
    """
    normal = draws.normal(what, 2, WAVES)
    along, across = normal[:, 0] / lengths[0], normal[:, 1] / lengths[1]
    right = along * direction.cos() - across * direction.sin()
    down = along * direction.sin() + across * direction.cos()
    phase = 2 * math.pi * draws.uniform(f"{what}/phase", WAVES)
    height, width = size
    device = phase.device
    y, x = (torch.arange(side, device=device) for side in (height, width))
    out = torch.zeros(len(phase), height, width, device=device)
    for wave in range(WAVES):
        rows = down[:, wave, None] * y + phase[:, wave, None]
        out += (rows[:, :, None] + (right[:, wave, None] * x)[:, None]).cos_()
    return out * math.sqrt(2 / WAVES)


def _color(
    mixed: Float[Tensor, "B H W"], photograph: Float[Tensor, " B"]
) -> Float[Tensor, "B 3 H W"]:
    """Give normal numbers the luminance and the colours of one photograph an image."""
    device = mixed.device
    number = (len(MEAN) * photograph).long()
    curves, tints, gains = (
        torch.stack([constant(row, device) for row in table])[number].double()
        for table in (LUMINANCE, TINT, GAIN)
    )
    knots = constant(KNOTS, device).double()
    luminance = curves[:, :1, None].expand_as(mixed).clone()
    # A broken line as a sum of ramps, each from 0 to its rise.
    for i in range(len(KNOTS) - 1):
        rise = (curves[:, i + 1] - curves[:, i])[:, None, None]
        luminance += rise * ((mixed - knots[i]) / (knots[i + 1] - knots[i])).clamp_(0, 1)
    mean = constant(MEAN, device).double()[number]
    varied = (luminance - mean[:, None, None])[:, None] * gains[:, :, None, None]
    return (each(mean) + tints[:, :, None, None] + varied).clamp_(0, 255)
