"""Batched augmentation on the device: each image has its own parameters, each operation one call.

Shapes in this file:
    B    images
    H W  image in pixels; values in [0, 1] until ``normalize``
"""

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor

from smallvit.data.config import ErasingAspect
from smallvit.data.geometry import products, within

Images = Float[Tensor, "B 3 H W"]  # colours, or normalised
LEVELS = 255
QUANTILES = 1 << 16
LUMINANCE = (0.2989, 0.587, 0.114)  # of red, green and blue, ITU-R 601


def to_float(images: UInt8[Tensor, "B 3 H W"]) -> Images:
    """Scale bytes to [0, 1]."""
    return images.float().div_(255)


def normalize(
    images: Images,
    mean: Float[Tensor, "3"],
    std: Float[Tensor, "3"],
    *,
    out: Images | None = None,
) -> Images:
    """Subtract the mean and divide by the standard deviation of each channel.

    Args:
        images: Colours in [0, 1].
        mean: Of each channel.
        std: Of each channel.
        out: Where the result goes; a new tensor by default.
    """
    return torch.sub(images, mean[:, None, None], out=out).mul_(1 / std[:, None, None])


def change_chosen_(
    images: Images,
    chosen: Bool[Tensor, " B"],
    change: Callable[..., Tensor],
    *parameters: Tensor,
) -> Images:
    """Change some images of a batch in place.

    On the CPU only the chosen ones are computed. On a GPU all are, and the others are thrown
    away: counting them would make the host wait.

    Args:
        images: The batch, which is overwritten.
        chosen: Which images to change.
        change: Takes images and, for each image, ``parameters``; may overwrite the images, and
            returns them or new ones.
        parameters: One entry an image.

    Returns:
        The batch.
    """
    if images.is_cuda:
        changed = change(images.clone(), *parameters)
        return images.copy_(torch.where(each(chosen), changed, images))
    index = chosen.nonzero()[:, 0]
    if len(index) == 0:
        return images
    part = (value.index_select(0, index) for value in parameters)
    return images.index_copy_(0, index, change(images.index_select(0, index), *part))


def grey(images: Images) -> Float[Tensor, "B 1 H W"]:
    """Luminance by the weights of ITU-R 601, as in PIL and torchvision."""
    red, green, blue = images.split(1, dim=1)
    return (red * LUMINANCE[0]).add_(green, alpha=LUMINANCE[1]).add_(blue, alpha=LUMINANCE[2])


def adjust_brightness_(images: Images, factor: Float[Tensor, " B"]) -> Images:
    """Blend with black, in place: 0 is black, 1 the image, more is brighter."""
    return images.mul_(each(factor)).clamp_(0, 1)


def adjust_contrast_(images: Images, factor: Float[Tensor, " B"]) -> Images:
    """Blend with the mean luminance, in place: 0 is an even grey, 1 the image."""
    center = _mean_luminance(images)
    return images.mul_(each(factor)).add_(each(center * (1 - factor))).clamp_(0, 1)


def _mean_luminance(images: Images) -> Float[Tensor, " B"]:
    """Return the mean luminance of each image, the same to the last bit in any batch and layout.

    A sum of floats depends on the order that a processor adds in. Colours in [0, 1] are rounded to
    multiples of 2**-24, as fine as float32 is, whose sums float64 holds exactly.
    """
    whole = (images * 2.0**24).round_().sum(dim=(2, 3), dtype=torch.float64)
    red, green, blue = (whole * (2.0**-24 / images[0, 0].numel())).unbind(1)
    return (red * LUMINANCE[0] + green * LUMINANCE[1] + blue * LUMINANCE[2]).float()


def adjust_saturation_(images: Images, factor: Float[Tensor, " B"]) -> Images:
    """Blend with the luminance, in place: 0 is grey, 1 the image."""
    luminance = grey(images).mul_(each(1 - factor))
    return images.mul_(each(factor)).add_(luminance).clamp_(0, 1)


def turn_hue(images: Images, turn: Float[Tensor, " B"], *, limit: float = 0.5) -> Images:
    """Turn the hue by a fraction of the colour circle, in HSV space.

    With chroma C (largest less smallest channel), hue times C is a difference of channels, and
    each new channel is a trapezoid of it; so nothing is divided, and grey stays grey.

    Args:
        images: Colours in [0, 1].
        turn: Fraction of the circle, in [-limit, limit].
        limit: Largest turn that can occur, in [0, 0.5].
    """
    if limit > 1 / 6:  # whole thirds of the circle only rename the channels
        thirds = (3 * turn).round()
        channel = (torch.arange(3, device=images.device) - thirds[:, None].long()) % 3
        images = images.gather(1, channel[:, :, None, None].expand_as(images))
        turn = turn - thirds / 3
    red, green, blue = images.unbind(1)
    top = torch.maximum(torch.maximum(red, green), blue)
    base = torch.minimum(torch.minimum(red, green), blue)
    chroma = top - base
    # Hue times chroma, in sixths of the circle from red: within [-3, 3] times chroma.
    hue = (red - green).sub_(chroma, alpha=2)  # where blue is the largest
    hue = hue.lerp_((blue - red).add_(chroma, alpha=2), _equal(green, top))
    hue = hue.lerp_(green - blue, _equal(red, top))
    hue.add_(chroma * (6 * turn)[:, None, None])  # within [-4, 4] times chroma
    out = torch.empty_like(images)
    # Red is full within 1 of its place at 0; green's place is 2, blue's -2.
    torch.sub(2 * chroma, hue.abs(), out=out[:, 0])
    four = 4 * chroma
    torch.minimum((hue + chroma).abs_().sub_(chroma), four - hue, out=out[:, 1])
    torch.minimum((hue - chroma).abs_().sub_(chroma), four + hue, out=out[:, 2])
    torch.minimum(out.clamp_(min=0), chroma[:, None], out=out)
    return out.add_(base[:, None])


def jitter_color_(
    images: Images,
    draws: Float[Tensor, "B 5"],
    *,
    strength: tuple[float, float, float, float],
    prob: float,
) -> Images:
    """Change brightness, contrast, saturation and hue of some images, in place.

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
    change = (2 * draws[:, :4] - 1) * constant(strength, images.device)

    def jitter(part: Tensor, change: Tensor) -> Tensor:
        if strength[0]:
            part = adjust_brightness_(part, 1 + change[:, 0])
        if strength[1]:
            part = adjust_contrast_(part, 1 + change[:, 1])
        if strength[2]:
            part = adjust_saturation_(part, 1 + change[:, 2])
        if strength[3]:
            part = turn_hue(part, change[:, 3], limit=strength[3])
        return part

    return change_chosen_(images, draws[:, 4] < prob, jitter, change)


def drop_color_(images: Images, chosen: Bool[Tensor, " B"]) -> Images:
    """Replace the chosen images by their grey version, in place."""
    return change_chosen_(images, chosen, lambda part: grey(part).expand_as(part))


def solarize_(images: Images, chosen: Bool[Tensor, " B"], threshold: float = 0.5) -> Images:
    """Invert the pixels at or above the threshold in the chosen images, in place."""
    return change_chosen_(
        images, chosen, lambda part: torch.where(part >= threshold, 1 - part, part)
    )


def adjust_sharpness(images: Images, factor: Float[Tensor, " B"]) -> Images:
    """Blend with a smoothed version: 0 is smooth, 1 the image; the border stays as it is."""
    if min(images.shape[2:]) < 3:
        return images
    inner = images[:, :, 1:-1, 1:-1]
    # Every pixel once and the middle four times more, of 13.
    rows = (images[:, :, :-2] + images[:, :, 1:-1]).add_(images[:, :, 2:])
    smooth = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:]).add_(inner, alpha=4).div_(13)
    out = images.clone()
    out[:, :, 1:-1, 1:-1] += (inner - smooth).mul_(each(factor - 1))
    return out.clamp_(0, 1)


def posterize_(images: Images, bits: Float[Tensor, " B"]) -> Images:
    """Keep the upper bits of each of 256 levels, whole numbers from 0 to 8, in place."""
    powers = constant(tuple(float(1 << n) for n in range(9)), images.device)
    step = each(powers[8 - bits.long()])
    return images.mul_(LEVELS).round_().div_(step).floor_().mul_(step).div_(LEVELS)


def solarize_above_(images: Images, level: Float[Tensor, " B"]) -> Images:
    """Invert the pixels at or above a level in [0, 255], in place."""
    # Half a level lower: a level of exactly the threshold must not depend on rounding.
    threshold = each((level.ceil() - 0.5).div_(LEVELS))
    return images.sub_(images.clone().ge_(threshold)).abs_()  # |x - 1| where inverted


def autocontrast_(images: Images) -> Images:
    """Stretch each channel to the whole range, in place; an even channel stays as it is."""
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    even = high <= low
    low, spread = torch.where(even, 0.0, low), torch.where(even, 1.0, high - low)
    return images.sub_(low).div_(spread).clamp_(0, 1)


def equalize(images: Images) -> Images:
    """Flatten each channel's histogram by PIL's integer rule; one or two levels may stay."""
    pixels = images.shape[2] * images.shape[3]
    levels = (images * LEVELS).round_().flatten(2).long()  # (B, 3, H W)
    # Whole numbers below 2**24, which float32 holds and divides exactly enough to round down.
    histogram = images.new_zeros(*levels.shape[:2], LEVELS + 1)
    histogram.scatter_add_(2, levels, images.new_ones(1).expand(levels.shape))
    highest = levels.amax(dim=2, keepdim=True)
    step = ((pixels - histogram.gather(2, highest)) / LEVELS).floor_()
    below = histogram.cumsum(dim=2).sub_(histogram)
    table = below.add_((step / 2).floor_()).div_(step.clamp(min=1)).floor_().clamp_(max=LEVELS)
    same = torch.arange(LEVELS + 1, device=images.device, dtype=images.dtype)
    table = torch.where(step == 0, same, table).div_(LEVELS)
    return table.gather(2, levels).reshape(images.shape)


def blur(images: Images, sigma: Float[Tensor, " B"]) -> Images:
    """Blur each image with a Gaussian of its own width, mirrored at the border.

    Args:
        images: Colours in [0, 1].
        sigma: Standard deviation in pixels.
    """
    batch, channels, height, width = images.shape
    rows = _blur_matrix(height, sigma)
    columns = rows if width == height else _blur_matrix(width, sigma)
    # One product an image and axis for all channels, as in ``geometry.resample``.
    out = products(images.reshape(batch, channels * height, width), columns.mT)
    out = out.reshape(batch, channels, height, width).transpose(1, 2)
    out = products(rows, out.reshape(batch, height, channels * width))
    return out.reshape(batch, height, channels, width).transpose(1, 2)


def _blur_matrix(size: int, sigma: Float[Tensor, " B"]) -> Float[Tensor, "B size size"]:
    """Gaussian blur along one axis as a matrix: kernel of radius size - 1, reflected inwards."""
    # In float64 until it is rounded: the last bit must not depend on the lane of a vector unit.
    distance = torch.arange(size, device=sigma.device)
    kernel = torch.exp(-0.5 * (distance / sigma[:, None].double()) ** 2)
    kernel = (kernel / (2 * kernel.sum(dim=1, keepdim=True) - kernel[:, :1])).float()
    kernel = F.pad(kernel, (0, 1))  # beyond the radius: nothing
    direct, before, behind = _distances(size, sigma.device)
    matrix = kernel.index_select(1, direct)
    matrix += kernel.index_select(1, before)
    matrix += kernel.index_select(1, behind)
    return matrix.reshape(-1, size, size)


@lru_cache(maxsize=16)
def _distances(size: int, device: torch.device) -> tuple[Int[Tensor, " pairs"], ...]:
    """Distance of every pixel from every one, and from its images at both ends of the axis.

    ``size`` stands for images that the kernel does not reach, or that a pixel does not have.
    """
    last = size - 1
    to, of = torch.arange(size, device=device)[:, None], torch.arange(size, device=device)
    direct = (to - of).abs()
    before = torch.where((of > 0) & (to + of <= last), to + of, size)
    behind = torch.where((of < last) & (to + of >= last), 2 * last - to - of, size)
    return direct.flatten(), before.flatten(), behind.flatten()


@lru_cache(maxsize=64)
def constant(values: tuple[float, ...], device: torch.device) -> Float[Tensor, " n"]:
    """Return numbers as a tensor that is made once: each copy to a GPU makes the host wait."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def each(value: Shaped[Tensor, " B"]) -> Shaped[Tensor, "B 1 1 1"]:
    """Give one number an image the axes of a batch."""
    return value[:, None, None, None]


def _equal(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """1 where equal, else 0: as numbers these mix faster on the CPU than as truth values."""
    return a.clone().eq_(b)


def erase_(
    images: Images,
    draws: Float[Tensor, "B 5"],
    *,
    prob: float,
    aspect: ErasingAspect = "log-uniform",
) -> Images:
    """Set a random rectangle of some normalised images to 0, the mean colour, in place.

    Area 2 to 40 % of the image and aspect ratio 0.3 to 3.3, as in the paper; the published code of
    vits-for-small-scale-datasets fills normalised images with unnormalised means.

    Args:
        images: Normalised; overwritten.
        draws: Uniform numbers.
        prob: Probability that an image has a rectangle erased.
        aspect: ``log-uniform``, as torchvision and timm: tall and wide are alike, and a side longer
            than the image's is cut to it. ``uniform``, as the authors' code: most are tall, and
            area and aspect are drawn again where a side would not be shorter than the image's.

    Source:
        Zhong et al., 2020, Random Erasing Data Augmentation, https://arxiv.org/abs/1708.04896.
        Of ``uniform``: hananshafi/vits-for-small-scale-datasets@43a7493, utils/random_erasing.py.
    """
    if prob == 0:
        return images
    height, width = images.shape[2:]
    if aspect == "uniform":
        index = (draws[:, 0] * QUANTILES).long()
        area = _erased_areas(height, width, images.device)[index]
        least, most = _erased_aspects(area, height, width)
        ratio = least + (most - least) * draws[:, 1]
    else:
        area = 0.02 + 0.38 * draws[:, 0]
        ratio = (0.3 * (3.3 / 0.3) ** draws[:, 1].double()).float()
    high = ((area * ratio).sqrt().clamp(max=1) * height).round()
    wide = ((area / ratio).sqrt().clamp(max=1) * width).round()
    top = (draws[:, 2] * (height - high + 1)).floor()
    left = (draws[:, 3] * (width - wide + 1)).floor()
    bottom = torch.where(draws[:, 4] < prob, top + high, top)  # no rows: nothing is erased
    rows = within(height, top, bottom)[:, :, None]
    columns = within(width, left, left + wide)[:, None]
    return images.mul_((1 - rows * columns)[:, None])


def _erased_aspects(
    area: Float[Tensor, " n"], height: int, width: int
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Bound the aspects of a rectangle both of whose sides round to less than the image's."""
    least, most = area / (1 - 0.5 / width) ** 2, (1 - 0.5 / height) ** 2 / area
    return least.clamp(min=0.3), most.clamp(max=1 / 0.3)


@lru_cache(maxsize=8)
def _erased_areas(height: int, width: int, device: torch.device) -> Float[Tensor, " quantiles"]:
    """Quantiles of the area that is left when misfits of uniform areas and aspects are redrawn."""
    area = torch.linspace(0.02, 0.4, QUANTILES, dtype=torch.float64)
    least, most = _erased_aspects(area, height, width)
    # How likely an area is goes by the width of the aspects that fit it.
    share = (most - least).clamp(min=0).cumsum(dim=0)
    middle = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES
    index = torch.searchsorted(share / share[-1], middle).clamp(max=QUANTILES - 1)
    return area[index].float().to(device)
