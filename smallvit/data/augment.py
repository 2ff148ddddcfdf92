"""Batched augmentation on the device: each image has its own parameters, each operation one call.

Shapes in this file:
    B    images
    H W  image in pixels; values in [0, 1] until ``normalise``
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from smallvit.core.config import Range
from smallvit.core.errors import ConfigError

Fraction = Annotated[float, Range(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What stage 2 does to an image before the network sees it.

    Attributes:
        crop: Pad and crop at the same size, random resized crop, or the image as it is.
        padding: Padding of ``pad`` as a fraction of the side; 0.125 is 4 pixels at 32.
        scale: Area of a resized crop as a fraction of the image's.
        ratio: Aspect ratio of a resized crop, width over height.
        color_jitter: Strength of brightness, contrast, saturation and hue.
        erasing_prob: Probability of erasing a rectangle of each image.
    """

    crop: Literal["pad", "resized", "none"] = "pad"
    padding: Annotated[float, Range(gt=0, le=0.5)] = 0.125
    scale: tuple[Fraction, Fraction] = (0.35, 1.0)
    ratio: Annotated[tuple[float, float], Range(gt=0)] = (0.75, 4 / 3)
    color_jitter: tuple[Fraction, Fraction, Fraction, Annotated[float, Range(ge=0, le=0.5)]] = (
        0.0,
        0.0,
        0.0,
        0.0,
    )
    erasing_prob: Fraction = 0.0

    def __post_init__(self) -> None:
        check_bounds("augment.scale", self.scale)
        check_bounds("augment.ratio", self.ratio)


def check_bounds(name: str, bounds: tuple[float, float]) -> None:
    """Refuse a pair whose lower bound is not below or at its upper one, or is 0.

    Raises:
        ConfigError: With the name and the value.
    """
    if not 0 < bounds[0] <= bounds[1]:
        raise ConfigError(f"{name} must be (low, high) with 0 < low <= high, got {bounds}")


def to_float(images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Scale bytes to [0, 1]."""
    return images.float() / 255


def normalise(
    images: Float[Tensor, "B 3 H W"], mean: Float[Tensor, "3"], std: Float[Tensor, "3"]
) -> Float[Tensor, "B 3 H W"]:
    """Subtract the mean and divide by the standard deviation of each channel."""
    return (images - mean[:, None, None]) / std[:, None, None]


def grey(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 H W"]:
    """Luminance by the weights of ITU-R 601, as in PIL and torchvision."""
    weights = images.new_tensor([0.2989, 0.587, 0.114])
    return torch.einsum("bchw,c->bhw", images, weights)[:, None]


def jitter_color(
    images: Float[Tensor, "B 3 H W"],
    draws: Float[Tensor, "B 5"],
    *,
    strength: tuple[float, float, float, float],
    prob: float,
) -> Float[Tensor, "B 3 H W"]:
    """Change brightness, contrast, saturation and hue of some images.

    The order is fixed; torchvision shuffles it for each image. With the same factors each of the
    four operations is torchvision's.

    Args:
        images: Colours in [0, 1].
        draws: Uniform numbers; the last decides whether an image is changed at all.
        strength: Largest relative change of brightness, contrast and saturation, in [0, 1], and
            largest turn of the hue, in [0, 0.5].
        prob: Probability that an image is changed.
    """
    if prob == 0 or not any(strength):
        return images
    spread = images.new_tensor(strength)
    factor = 1 + (2 * draws[:, :4] - 1) * spread
    active = (draws[:, 4] < prob)[:, None]
    brightness, contrast, saturation, hue = torch.where(active, factor, 1.0)[
        :, :, None, None, None
    ].unbind(1)
    out = images
    if strength[0]:
        out = (out * brightness).clamp(0, 1)
    if strength[1]:
        centre = grey(out).mean(dim=(2, 3), keepdim=True)
        out = (centre + contrast * (out - centre)).clamp(0, 1)
    if strength[2]:
        centre = grey(out)
        out = (centre + saturation * (out - centre)).clamp(0, 1)
    if strength[3]:
        out = torch.where(active[:, :, None, None], turn_hue(out, hue[:, 0] - 1), out)
    return out


def turn_hue(
    images: Float[Tensor, "B 3 H W"], turn: Float[Tensor, "B 1 1"]
) -> Float[Tensor, "B 3 H W"]:
    """Turn the hue by a fraction of the colour circle, in HSV space."""
    value, top = images.max(dim=1)
    spread = value - images.min(dim=1).values
    red, green, blue = images.unbind(1)
    ahead = torch.stack([green - blue, blue - red, red - green], dim=1)
    ahead = ahead.gather(1, top[:, None])[:, 0] / torch.where(spread > 0, spread, 1.0)
    sector = (ahead + 2 * top + 6 * turn) % 6  # (B, H, W), in sixths of the circle
    shifts = torch.tensor([5.0, 3.0, 1.0], device=images.device)[:, None, None]
    k = (shifts + sector[:, None]) % 6
    return value[:, None] - spread[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def drop_color(
    images: Float[Tensor, "B 3 H W"], chosen: Bool[Tensor, " B"]
) -> Float[Tensor, "B 3 H W"]:
    """Replace the chosen images by their grey version."""
    return torch.where(chosen[:, None, None, None], grey(images), images)


def solarize(
    images: Float[Tensor, "B 3 H W"], chosen: Bool[Tensor, " B"], threshold: float = 0.5
) -> Float[Tensor, "B 3 H W"]:
    """Invert the pixels at or above the threshold in the chosen images."""
    hit = chosen[:, None, None, None] & (images >= threshold)
    return torch.where(hit, 1 - images, images)


def blur(
    images: Float[Tensor, "B 3 H W"], sigma: Float[Tensor, " B"], chosen: Bool[Tensor, " B"]
) -> Float[Tensor, "B 3 H W"]:
    """Blur the chosen images with a Gaussian of their own width, mirrored at the border.

    Args:
        images: Colours in [0, 1].
        sigma: Standard deviation in pixels; those not chosen stay as they are.
        chosen: Which images to blur.
    """
    rows, columns = (_blur_matrix(size, sigma, chosen) for size in images.shape[2:])
    return rows[:, None] @ images @ columns[:, None].mT


def _blur_matrix(
    size: int, sigma: Float[Tensor, " B"], chosen: Bool[Tensor, " B"]
) -> Float[Tensor, "B size size"]:
    """Gaussian blur along one axis as a matrix: kernel of radius size - 1, reflected inwards."""
    place = torch.arange(size, device=sigma.device)
    period = max(2 * (size - 1), 1)
    offset = torch.arange(-(size - 1), size, device=sigma.device)
    target = (place[:, None] + offset) % period  # (size, taps)
    target = torch.where(target >= size, period - target, target)
    kernel = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)  # (B, taps)
    fold = torch.nn.functional.one_hot(target, size).to(kernel.dtype)  # (size, taps, size)
    matrix = torch.einsum("bt,otp->bop", kernel, fold)
    return torch.where(chosen[:, None, None], matrix, torch.eye(size, device=sigma.device))


def erase(
    images: Float[Tensor, "B 3 H W"], draws: Float[Tensor, "B 5"], *, prob: float
) -> Float[Tensor, "B 3 H W"]:
    """Set a random rectangle of some normalised images to 0, the mean colour.

    Area 2 to 40 % of the image and aspect ratio 0.3 to 3.3, as in the paper; the published code of
    vits-for-small-scale-datasets fills normalised images with unnormalised means.

    Source:
        Zhong et al., 2020, Random Erasing Data Augmentation, https://arxiv.org/abs/1708.04896.
    """
    if prob == 0:
        return images
    height, width = images.shape[2:]
    area = 0.02 + 0.38 * draws[:, 0]
    aspect = 0.3 * (3.3 / 0.3) ** draws[:, 1]
    high = ((area * aspect).sqrt().clamp(max=1) * height).round()
    wide = ((area / aspect).sqrt().clamp(max=1) * width).round()
    top = (draws[:, 2] * (height - high + 1)).floor()
    left = (draws[:, 3] * (width - wide + 1)).floor()
    row = torch.arange(height, device=images.device)
    column = torch.arange(width, device=images.device)
    rows = (row >= top[:, None]) & (row < (top + high)[:, None])
    columns = (column >= left[:, None]) & (column < (left + wide)[:, None])
    hit = rows[:, :, None] & columns[:, None] & (draws[:, 4] < prob)[:, None, None]
    return images.masked_fill(hit[:, None], 0.0)
