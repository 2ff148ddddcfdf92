"""Geometry as a value: where in its image each view lies, applied alike to images and score maps.

Shapes in this file:
    B    images
    C    channels (colours of an image, classes of a score map)
    H W  input in pixels or cells
    h w  output in pixels or cells
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Kernel = Literal["bicubic", "bilinear"]
Fill = Literal["zero", "edge"]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """One crop box and one mirror flag an image.

    Attributes:
        top: Upper edge of the box as a fraction of the image's height; negative above the image.
        left: Left edge as a fraction of the width.
        height: Height of the box as a fraction of the image's height.
        width: Width of the box as a fraction of the image's width.
        hflip: Whether the box is mirrored left to right after it was cut out.
        margin: Largest overhang of any box over the image, as a fraction of its side.
    """

    top: Float[Tensor, " B"]
    left: Float[Tensor, " B"]
    height: Float[Tensor, " B"]
    width: Float[Tensor, " B"]
    hflip: Bool[Tensor, " B"]
    margin: float = 0.0


def identity(batch_size: int, device: torch.device) -> Geometry:
    """Return the geometry that leaves every image as it is."""
    zero = torch.zeros(batch_size, device=device)
    one = torch.ones(batch_size, device=device)
    return Geometry(top=zero, left=zero, height=one, width=one, hflip=zero.bool())


def sample_resized_crop(
    draws: Float[Tensor, "B 5"],
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    hflip: bool,
) -> Geometry:
    """Turn uniform numbers into random resized crops of square images.

    Area and logarithm of the aspect ratio are uniform; a box longer than the image is cut to its
    side. torchvision draws again instead, and rounds to whole pixels.

    Args:
        draws: Uniform numbers in [0, 1).
        scale: Bounds of the box's area as a fraction of the image's.
        ratio: Bounds of the box's width over its height.
        hflip: Whether half of the boxes are mirrored.
    """
    area = scale[0] + (scale[1] - scale[0]) * draws[:, 0]
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * draws[:, 1])
    height = (area / aspect).sqrt().clamp(max=1.0)
    width = (area * aspect).sqrt().clamp(max=1.0)
    return Geometry(
        top=draws[:, 2] * (1 - height),
        left=draws[:, 3] * (1 - width),
        height=height,
        width=width,
        hflip=(draws[:, 4] < 0.5) & hflip,
    )


def sample_padded_crop(
    draws: Float[Tensor, "B 3"], *, padding_px: int, image_size: int, hflip: bool
) -> Geometry:
    """Turn uniform numbers into whole-pixel shifts: pad by ``padding_px``, crop the same size."""
    shift = (draws[:, :2] * (2 * padding_px + 1)).floor() - padding_px
    one = torch.ones_like(draws[:, 0])
    return Geometry(
        top=shift[:, 0] / image_size,
        left=shift[:, 1] / image_size,
        height=one,
        width=one,
        hflip=(draws[:, 2] < 0.5) & hflip,
        margin=padding_px / image_size,
    )


def resample(
    maps: Float[Tensor, "B C H W"],
    geometry: Geometry,
    size: tuple[int, int],
    *,
    kernel: Kernel,
    fill: Fill,
) -> Float[Tensor, "B C h w"]:
    """Cut each map's box out, resize it to ``size`` and mirror it where told.

    Resampling is separable: two small matrices an image, applied as batched matrix products. The
    kernel widens when the box shrinks (antialiasing), and only what the box covers counts, as if
    it had been cut out first. For boxes of whole pixels this is torchvision's ``resized_crop``
    with ``antialias=True``.

    Args:
        maps: Images in [0, 1] or score maps.
        geometry: Boxes and mirror flags.
        size: Output (h, w).
        kernel: Cubic convolution (a = -0.5) or triangle.
        fill: What lies outside the map: black, or the nearest cell.
    """
    rows = _axis_weights(
        geometry.top, geometry.height, maps.shape[2], size[0], geometry.margin, kernel, fill
    )
    columns = _axis_weights(
        geometry.left, geometry.width, maps.shape[3], size[1], geometry.margin, kernel, fill
    )
    columns = torch.where(geometry.hflip[:, None, None], columns.flip(1), columns)
    # For each channel of each image: rows (h, H), map (H, W), columns transposed to (W, w).
    return rows[:, None] @ maps @ columns[:, None].mT


def _axis_weights(
    start: Float[Tensor, " B"],
    extent: Float[Tensor, " B"],
    in_size: int,
    out_size: int,
    margin: float,
    kernel: Kernel,
    fill: Fill,
) -> Float[Tensor, "B out in"]:
    """Weights of every input cell for every output cell along one axis; rows sum to 1."""
    pad = math.ceil(margin * in_size)
    device = start.device
    first, length = (start * in_size)[:, None], (extent * in_size)[:, None]
    scale = length / out_size
    centre = first + (torch.arange(out_size, device=device) + 0.5) * scale  # (B, out)
    cell = torch.arange(-pad, in_size + pad, device=device, dtype=start.dtype)
    distance = (cell + 0.5 - centre[..., None]) / scale.clamp(min=1.0)[..., None]  # (B, out, in)
    weights = _cubic(distance) if kernel == "bicubic" else (1 - distance.abs()).clamp(min=0)
    covered = torch.minimum(cell + 1, first + length) - torch.maximum(cell, first)  # (B, in)
    weights = weights * covered.clamp(0, 1)[:, None]
    weights = weights / weights.sum(dim=2, keepdim=True)
    inside = weights[..., pad : pad + in_size]
    if fill == "edge" and pad:
        inside = inside.clone()
        inside[..., 0] += weights[..., :pad].sum(dim=2)
        inside[..., -1] += weights[..., pad + in_size :].sum(dim=2)
    return inside


def _cubic(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Cubic convolution kernel with a = -0.5, the one of PIL and of torch when it antialiases.

    Source:
        Keys, 1981, Cubic convolution interpolation for digital image processing.
    """
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
