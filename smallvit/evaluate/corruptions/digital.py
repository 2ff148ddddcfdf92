"""Digital faults: contrast, elastic transform, pixelation, JPEG, and saturation.

Each function takes bytes, the published strength and the draws, and returns levels from 0 to 255,
not yet clipped, or bytes.

Shapes in this file:
    B    images
    H W  image in pixels
"""

from functools import lru_cache
from io import BytesIO

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from smallvit.evaluate.corruptions.draws import Bytes, Draws, Levels
from smallvit.evaluate.corruptions.filters import sample, smooth
from smallvit.evaluate.corruptions.parameters import Strength

PIL_BITS = 22  # of the fixed-point weights with which PIL resizes bytes


def contrast(images: Bytes, strength: Strength, draws: Draws) -> Levels:
    """Pull each channel towards its mean, to that part of its distance."""
    levels = images.double()
    # Sums of whole numbers are exact: the mean does not depend on the order of addition.
    mean = levels.sum(dim=(2, 3), keepdim=True) / levels[0, 0].numel()
    return torch.lerp(mean, levels, strength[0])


def saturate(images: Bytes, strength: Strength, draws: Draws) -> Levels:
    """Scale and shift the saturation in HSV space, hue and value kept.

    Each channel lies below the value in proportion to the saturation. Grey has no hue: it is
    taken as red, as in scikit-image, which matters where the saturation is shifted.
    """
    factor, shift = strength
    levels = images.double()
    value = levels.amax(dim=1, keepdim=True)
    chroma = value - levels.amin(dim=1, keepdim=True)
    wanted = (chroma / value.clamp(min=1) * factor + shift).clamp_(0, 1) * value
    below = (value - levels) / chroma.clamp(min=1)
    red_only = torch.tensor([0.0, 1, 1], dtype=torch.float64, device=images.device)
    below = torch.where(chroma > 0, below, red_only[:, None, None])
    return value - below * wanted


def jpeg_compression(images: Bytes, strength: Strength, draws: Draws) -> Bytes:
    """Encode as JPEG of that quality and decode, on the host, image by image.

    Threads do not speed PIL up on small images. torchvision's codec gives the same bytes in half
    the time, but is deprecated from 0.29 on.
    """
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    out = np.empty_like(pixels, order="C")
    for i, image in enumerate(pixels):
        file = BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(file, "JPEG", quality=int(strength[0]))
        out[i] = np.asarray(Image.open(file, formats=("JPEG",)))
    return torch.from_numpy(out).permute(0, 3, 1, 2).to(images.device)


def pixelate(images: Bytes, strength: Strength, draws: Draws) -> Bytes:
    """Shrink to that part of the side and enlarge again, both by boxes of whole pixels."""
    height, width = images.shape[2:]
    small = (max(1, int(height * strength[0])), max(1, int(width * strength[0])))
    return resize_box(resize_box(images, small), (height, width))


def resize_box(
    images: UInt8[Tensor, "B 3 H W"], size: tuple[int, int]
) -> UInt8[Tensor, "B 3 height width"]:
    """Resize as PIL does with its box filter, to the same bytes.

    Args:
        images: Any size.
        size: New height and width.
    """
    levels = images.double()
    for axis in (3, 2):  # PIL resizes rows first, and rounds to bytes in between
        if levels.shape[axis] == size[axis - 2]:
            continue
        weights = _box_weights(levels.shape[axis], size[axis - 2], images.device)
        # Whole numbers below 2**53: exact in any order of addition.
        total = levels @ weights.mT if axis == 3 else (levels.mT @ weights.mT).mT
        levels = ((total + 2 ** (PIL_BITS - 1)) / 2**PIL_BITS).floor_()
    return levels.to(torch.uint8)


@lru_cache(maxsize=64)
def _box_weights(size: int, new: int, device: torch.device) -> Float[Tensor, "new size"]:
    """Return PIL's fixed-point weights: the mean of the pixels whose centres are in the box."""
    scale = size / new
    reach = max(scale, 1.0)
    center = (torch.arange(new, dtype=torch.float64)[:, None] + 0.5) * scale
    place = torch.arange(size)
    distance = (place - center + 0.5) / reach
    inside = (distance > -0.5) & (distance <= 0.5)
    inside &= place >= (center - 0.5 * reach + 0.5).trunc()
    inside &= place < (center + 0.5 * reach + 0.5).trunc()
    count = inside.sum(dim=1, keepdim=True, dtype=torch.float64)
    weight = (0.5 + 2**PIL_BITS / count).floor()
    return (inside * weight).to(device)


def elastic_transform(images: Bytes, strength: Strength, draws: Draws) -> Levels:
    """Shear the image at random, then displace its pixels by a smooth random field.

    The strength is height and standard deviation of the displacement and reach of the shear, as
    parts of the side.
    """
    height, width = images.shape[2:]
    side = max(height, width)
    alpha, sigma, reach = (side * part for part in strength)
    corners = reach * (2 * draws.uniform("corners", 3, 2).double() - 1)
    levels = shear(images.double(), corners)
    if alpha == 0:
        return levels
    field = 2 * draws.uniform("field", 2, height, width).double() - 1
    return displace(levels, alpha * smooth(field, sigma, truncate=3, border="reflect"))


def shear(
    images: Float[Tensor, "B 3 H W"], corners: Float[Tensor, "B 3 2"]
) -> Float[Tensor, "B 3 H W"]:
    """Map three corners of a square in the centre to moved ones, and the image with them.

    Args:
        images: Levels.
        corners: How far right and down the lower right, the upper right and the upper left corner
            move, in pixels.

    Source:
        ``elastic_transform`` of make_cifar_c.py, which calls cv2.getAffineTransform and
        cv2.warpAffine; that one rounds places to 1/32 pixel, this does not.
    """
    height, width = images.shape[2:]
    edge = min(height, width) // 3
    x0, y0 = width // 2 + edge, height // 2 - edge  # upper right
    lower_right, upper_right, upper_left = corners.unbind(1)
    down = lower_right - upper_right
    left = upper_left - upper_right
    down_x, down_y = down[:, 0, None, None], down[:, 1, None, None] + 2 * edge
    left_x, left_y = left[:, 0, None, None] - 2 * edge, left[:, 1, None, None]
    y = torch.arange(height, device=images.device)[:, None] - y0 - upper_right[:, 1, None, None]
    x = torch.arange(width, device=images.device) - x0 - upper_right[:, 0, None, None]
    # Each pixel as a sum of the two moved edges; the source is the same sum of the unmoved ones.
    area = down_x * left_y - left_x * down_y
    along_down = (x * left_y - left_x * y) / area
    along_left = (down_x * y - x * down_y) / area
    return sample(images, x0 - 2 * edge * along_left, y0 + 2 * edge * along_down, border="mirror")


def displace(
    images: Float[Tensor, "B 3 H W"], field: Float[Tensor, "B 2 H W"]
) -> Float[Tensor, "B 3 H W"]:
    """Read each pixel from a place that far right and down, in pixels."""
    height, width = images.shape[2:]
    x = torch.arange(width, device=images.device) + field[:, 0]
    y = torch.arange(height, device=images.device)[:, None] + field[:, 1]
    return sample(images, x, y, border="reflect")
