"""Weather: snow, frost, fog, and brightness.

Each function takes bytes, the published strength and the draws, and returns levels from 0 to 255,
not yet clipped.

Shapes in this file:
    B    images
    M    side of a fog map, a power of two
    H W  image in pixels
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from smallvit.data.augment import each
from smallvit.evaluate.corruptions.draws import Bytes, Draws, Levels
from smallvit.evaluate.corruptions.filters import blur_along_line, zoom
from smallvit.evaluate.corruptions.frost import draw_frost
from smallvit.evaluate.corruptions.parameters import Strength

LUMINANCE = (0.299, 0.587, 0.114)


def snow(images: Bytes, strength: Strength, draws: Draws) -> Levels:
    """Pale the image and let flakes fall over it, from one side and from the opposite one.

    The strength is mean and standard deviation of the noise that flakes are cut from, its
    enlargement, the threshold, radius and standard deviation of the fall in pixels, and the part
    of the image that keeps its colours.
    """
    keep = strength[6]
    noise = draws.normal("flakes", *images.shape[2:])
    angle = 90 * draws.uniform("angle", 1)[:, 0] - 135
    flakes = draw_flakes(noise, angle, strength)
    levels = images.double()
    red, green, blue = levels.split(1, dim=1)
    grey = LUMINANCE[0] * red + LUMINANCE[1] * green + LUMINANCE[2] * blue
    levels = keep * levels + (1 - keep) * torch.maximum(levels, 1.5 * grey + 127.5)
    return levels + flakes + flakes.flip(2, 3)


def draw_flakes(
    noise: Float[Tensor, "B H W"], angle: Float[Tensor, " B"], strength: Strength
) -> Float[Tensor, "B 1 H W"]:
    """Turn normal noise into flakes that fall, in levels, whole numbers."""
    loc, scale, factor, threshold, radius, sigma, _ = strength
    layer = zoom(loc + scale * noise.double(), factor)[:, None]
    layer = layer.masked_fill_(layer < threshold, 0).clamp_(0, 1)
    # ImageMagick blurs bytes to bytes.
    blurred = blur_along_line((255 * layer).floor(), angle, radius=int(radius), sigma=sigma)
    return (blurred + 0.5).floor()


def frost(images: Bytes, strength: Strength, draws: Draws) -> Levels:
    """Lay frost over the image; the texture is made, where the published code cuts photographs.

    The strength is the weight of the image, that of the texture, and the texture's scale.
    """
    image_weight, frost_weight, scale = strength
    height, width = images.shape[2:]
    texture = draw_frost(draws, (height, width), scale)
    return blend_frost(images, texture, image_weight, frost_weight)


def blend_frost(images: Bytes, texture: Levels, image_weight: float, frost_weight: float) -> Levels:
    """Add image and texture with the published weights, whose sum is above 1."""
    return image_weight * images.double() + frost_weight * texture


def fog(images: Bytes, strength: Strength, draws: Draws) -> Levels:
    """Add a cloudy map and darken to the image's own largest value.

    The strength is the weight of the map and how fast its finer octaves fade.
    """
    weight, decay = strength
    height, width = images.shape[2:]
    side = 2 ** max(1, math.ceil(math.log2(max(height, width))))
    cloud = plasma(draws.uniform("cloud", side * side - 1), decay)[:, None, :height, :width]
    largest = each(images.flatten(1).amax(1).double() / 255)
    return (images + (255 * weight) * cloud) * (largest / (largest + weight))


def plasma(uniform: Float[Tensor, "B draws"], decay: float) -> Float[Tensor, "B M M"]:
    """Make height maps by the diamond-square algorithm, from 0 to 1, periodic at the edges.

    Args:
        uniform: One number for each point but the first, in the order of use.
        decay: Factor by which the height of each finer octave falls, before it is squared.

    Source:
        ``plasma_fractal`` of hendrycks/robustness, make_cifar_c.py, which squares the octave's
        height: it multiplies numbers drawn from [-height, height] by height.
    """
    side = math.isqrt(uniform.shape[1] + 1)
    centered = 2 * uniform.double() - 1
    maps = centered.new_zeros(len(uniform), side, side)
    step, height, used = side, 100.0, 0

    def displaced(total: Tensor) -> Tensor:
        nonlocal used
        num = total[0].numel()
        noise = centered[:, used : used + num].reshape(total.shape)
        used += num
        return total / 4 + height**2 * noise

    while step >= 2:
        half = step // 2
        corners = maps[:, ::step, ::step]
        total = corners + corners.roll(-1, 1)
        maps[:, half::step, half::step] = displaced(total + total.roll(-1, 2))
        centers = maps[:, half::step, half::step]
        corners = maps[:, ::step, ::step]
        above = centers + centers.roll(1, 1) + corners + corners.roll(-1, 2)
        maps[:, ::step, half::step] = displaced(above)
        beside = centers + centers.roll(1, 2) + corners + corners.roll(-1, 1)
        maps[:, half::step, ::step] = displaced(beside)
        step, height = half, height / decay
    low, high = maps.flatten(1).aminmax(dim=1)
    return (maps - low[:, None, None]) / (high - low)[:, None, None]


def brightness(images: Bytes, strength: Strength, draws: Draws) -> Levels:
    """Raise the value in HSV space, hue and saturation kept: all channels grow by one factor."""
    levels = images.double()
    value = levels.amax(dim=1, keepdim=True)
    raised = (value + 255 * strength[0]).clamp_(max=255)
    # Black has neither hue nor saturation and becomes grey.
    return torch.where(value > 0, levels * (raised / value.clamp(min=1)), raised)
