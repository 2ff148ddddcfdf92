"""Geometry as a value: where in its image each view lies, applied alike to images and score maps.

Shapes in this file:
    B    images
    C    channels (colours of an image, classes of a score map)
    H W  input in pixels or cells
    h w  output in pixels or cells
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

Kernel = Literal["bicubic", "bilinear"]
Fill = Literal["zero", "edge"]
LEVEL_ROUNDING = 1e-3  # levels; what floats lose must not cut a whole level off
ROUNDING = 1e-3  # cells; a box that ends at an edge between two does not touch the second
MOST_TABLED = 64  # pixels; every crop of a 64 px image to 64 px is 68 MB of weights


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """One crop box and one mirror flag an image.

    Attributes:
        top: Upper edge of the box as a fraction of the image's height; negative above the image.
        left: Left edge as a fraction of the width.
        height: Height of the box as a fraction of the image's height.
        width: Width of the box as a fraction of the image's width.
        hflip: Whether the box is mirrored left to right after it was cut out.
        margin: Largest overhang of any box over the image, as a fraction of its side; where it is
            not 0, every box is as large as the image.
        steps: Steps into which each side of the image is divided where all boxes begin and end at
            a step; 0 where they lie anywhere.
    """

    top: Float[Tensor, " B"]
    left: Float[Tensor, " B"]
    height: Float[Tensor, " B"]
    width: Float[Tensor, " B"]
    hflip: Bool[Tensor, " B"]
    margin: float = 0.0
    steps: int = 0


def sample_resized_crop(
    draws: Float[Tensor, "B 5"],
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    hflip: bool,
    image_size: int,
) -> Geometry:
    """Turn uniform numbers into random resized crops of square images.

    Area and logarithm of the aspect ratio are uniform, and every place of the box is equally
    likely; a side longer than the image's is cut to it, where torchvision draws again. Boxes of
    images up to 64 pixels lie on a grid of about 64 steps a side, whole parts of pixels, so that
    their weights can be looked up; torchvision rounds to whole pixels, which on 8 pixels costs
    stage 1 much of its accuracy (docs/log.md). Those of larger images lie anywhere.

    Args:
        draws: Uniform numbers in [0, 1).
        scale: Bounds of the box's area as a fraction of the image's.
        ratio: Bounds of the box's width over its height.
        hflip: Whether half of the boxes are mirrored.
        image_size: Side of the images, in pixels.
    """
    area = scale[0] + (scale[1] - scale[0]) * draws[:, 0]
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = (low + (high - low) * draws[:, 1].double()).exp().float()
    height = (area / aspect).sqrt().clamp(max=1.0)
    width = (area * aspect).sqrt().clamp(max=1.0)
    hflips = (draws[:, 4] < 0.5) & hflip
    if image_size > MOST_TABLED:
        top, left = draws[:, 2] * (1 - height), draws[:, 3] * (1 - width)
        return Geometry(top=top, left=left, height=height, width=width, hflip=hflips)
    steps = image_size * round(MOST_TABLED / image_size)
    height, width = ((side * steps).round().clamp(1, steps) for side in (height, width))
    return Geometry(
        top=(draws[:, 2] * (steps - height + 1)).floor() / steps,
        left=(draws[:, 3] * (steps - width + 1)).floor() / steps,
        height=height / steps,
        width=width / steps,
        hflip=hflips,
        steps=steps,
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
        steps=image_size,
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

    Score maps (bilinear, filled with the nearest cell) have few, large cells, which the border of
    a box cuts in two. A cell that the box touches counts in full, since its label holds for the
    part inside, and beyond the box the outermost of these go on. So each place of the result has
    most of the cell that its centre lies in, or of the cells of that side of an edge; weighed by
    how much of it the box covers, a cut cell would lose to its neighbour.

    Args:
        maps: Images in [0, 1] or score maps; fastest where they lie in memory as (B, H, C, W), for
            few channels, or as (B, H, W, C), for many.
        geometry: Boxes and mirror flags.
        size: Output (h, w).
        kernel: Cubic convolution (a = -0.5) or triangle.
        fill: What lies outside the map: black, or the nearest cell.
    """
    batch, channels, height, width = maps.shape
    if geometry.margin and geometry.steps == height == width and size == (height, width):
        return shift(maps, geometry, fill=fill)
    rows = _box_weights(
        geometry.top, geometry.height, None, geometry, height, size[0], kernel, fill
    )
    columns = _box_weights(
        geometry.left, geometry.width, geometry.hflip, geometry, width, size[1], kernel, fill
    )
    if maps.is_contiguous(memory_format=torch.channels_last):
        # Score maps of many classes: (B, h, H) x (B, H, W C), then (B h, w, W) x (B h, W, C).
        out = products(rows, maps.movedim(1, 3).flatten(2)).reshape(-1, width, channels)
        out = products(columns.repeat_interleave(size[0], dim=0), out)
        return out.reshape(batch, *size, channels).movedim(3, 1)
    # One product an image and axis for all channels: (B, h, H) x (B, H, C W), then
    # (B, h C, W) x (B, W, w).
    out = products(rows, maps.transpose(1, 2).reshape(batch, height, channels * width))
    out = products(out.reshape(batch, size[0] * channels, width), columns.mT)
    return out.reshape(batch, size[0], channels, size[1]).transpose(1, 2)


def products(left: Float[Tensor, "B m k"], right: Float[Tensor, "B k n"]) -> Float[Tensor, "B m n"]:
    """Multiply matrices in pairs so that each product is the same whatever else is in the batch.

    A library of matrix products may add in another order where a matrix begins at another distance
    from a boundary of 64 bytes. So on the CPU sides are filled up with zeros to multiples of 4, of
    which a whole number of such blocks consists; most sides are.
    """
    rows, columns = left.shape[1], right.shape[2]
    extra = [-size % 4 for size in (rows, left.shape[2], columns)]
    if left.is_cuda or not any(extra):
        return left @ right
    left = F.pad(left, (0, extra[1], 0, extra[0]))
    return (left @ F.pad(right, (0, extra[2], 0, extra[1])))[:, :rows, :columns]


def within(
    size: int, start: Float[Tensor, " B"], stop: Float[Tensor, " B"]
) -> Float[Tensor, "B size"]:
    """Mark the positions along an axis that lie in [start, stop) by 1, others by 0."""
    position = torch.arange(size, device=start.device)
    return ((position >= start[:, None]) & (position < stop[:, None])).float()


def shift(
    maps: Shaped[Tensor, "B C H W"], geometry: Geometry, *, fill: Fill
) -> Shaped[Tensor, "B C H W"]:
    """Move maps by whole cells and mirror them where told; values are copied, not computed.

    Args:
        maps: Images, as bytes or not.
        geometry: Boxes as large as the image, at whole pixels of it, as ``sample_padded_crop``
            returns them.
        fill: What lies outside the map: black, or the nearest cell.
    """
    channels, height, width = maps.shape[1:]
    row = torch.arange(height, device=maps.device)
    column = torch.arange(width, device=maps.device)
    rows = row + (geometry.top * height).round().long()[:, None]
    columns = torch.where(geometry.hflip[:, None], column.flip(0), column)
    columns = columns + (geometry.left * width).round().long()[:, None]
    near_rows, near_columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    index = (near_rows[:, :, None] * width + near_columns[:, None]).flatten(1)
    out = maps.flatten(2).gather(2, index[:, None].expand(-1, channels, -1))
    out = out.unflatten(2, (height, width))
    if fill == "zero":
        out.mul_(((rows == near_rows)[:, :, None] & (columns == near_columns)[:, None])[:, None])
    return out


def warp(
    maps: Float[Tensor, "B C H W"],
    to_source: Float[Tensor, "B 2 3"],
    *,
    nearest: bool,
    fill: Fill | float,
) -> Float[Tensor, "B C H W"]:
    """Move each map by an affine transform about its centre.

    Args:
        maps: Images or score maps.
        to_source: Where each place (x, y, 1) of the result comes from; x runs right and y down
            from the centre, in units of half a side, so that it fits a map of any size.
        nearest: Take the nearest cell, as the published augmentation policies do, and not the
            bilinear mean of four.
        fill: What lies outside the map: black, the nearest cell, or a level in [0, 1].
    """
    height, width = maps.shape[2:]
    places = _moved(_cell_centers(height, width, maps.device), to_source)
    if fill == "edge" and not nearest and not maps.is_cuda:
        return _mean_of_four(maps, places)
    out = F.grid_sample(
        maps,
        places.unflatten(1, (height, width)),
        mode="nearest" if nearest else "bilinear",
        padding_mode="zeros" if fill == "zero" else "border",
        align_corners=False,
    )
    if isinstance(fill, float):
        outside = ((places < -1) | (places >= 1)).any(dim=2).unflatten(1, (height, width))
        out = out.masked_fill_(outside[:, None], fill)
    return out


def shear(
    images: Float[Tensor, "B C H W"], slope: Float[Tensor, " B"], *, fill: float
) -> Float[Tensor, "B C H W"]:
    """Shear images of 256 levels along their rows, bicubic, as PIL's affine transform does.

    The upper left corner stays. A pixel takes four of its row; results are cut to whole levels.
    To shear along columns, give the images transposed.

    Args:
        images: Colours in [0, 1].
        slope: Pixels that a row's source lies further right than that of the row above.
        fill: What lies outside the image, in [0, 1].
    """
    channels, height, width = images.shape[1:]
    row, column = (torch.arange(side, device=slope.device) for side in (height, width))
    source = column + slope[:, None, None] * (row[:, None] + 0.5)  # of pixel centres: (B, H, W)
    first = source.floor()
    x = source - first
    # Cubic convolution with a = -1: of the pixel before, the two around the place, and the next.
    weights = (
        x * (-1 + x * (2 - x)),
        1 + x * x * (x - 2),
        x * (1 + x * (1 - x)),
        x * x * (x - 1),
    )
    out = torch.zeros_like(images)
    for i, weight in enumerate(weights):
        index = (first.long() + (i - 1)).clamp(0, width - 1)[:, None].expand(-1, channels, -1, -1)
        out += images.gather(3, index) * weight[:, None]
    out = (out * 255 + LEVEL_ROUNDING).floor_().clamp_(0, 255).div_(255)
    outside = (source < -0.5) | (source >= width - 0.5)
    return out.masked_fill_(outside[:, None], fill)


def _moved(
    places: Float[Tensor, "places 3"], to_source: Float[Tensor, "B 2 3"]
) -> Float[Tensor, "B places 2"]:
    """Apply each transform to all places (x, y, 1); entry by entry, as ``compose``.

    The order in which a matrix product adds may depend on how many transforms there are.
    """
    x, y, _ = places[:, None].unbind(2)
    column = to_source[:, None].unbind(3)  # each (B, 1, 2)
    return x * column[0] + y * column[1] + column[2]


def _mean_of_four(
    maps: Float[Tensor, "B C H W"], places: Float[Tensor, "B cells 2"]
) -> Float[Tensor, "B C H W"]:
    """Take the bilinear mean of the four cells around each place; outside, of the nearest ones.

    What ``grid_sample`` computes, but over cells whose channels are neighbours in memory: on a CPU
    a quarter of the time for 200 classes.
    """
    batch, channels, height, width = maps.shape
    sides = places.new_tensor([width, height])
    x, y = ((places + 1) * (sides / 2) - 0.5).clamp(min=0).minimum(sides - 1).unbind(2)
    left, top = x.floor(), y.floor()
    right_share, bottom_share = x - left, y - top
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    cells = torch.stack([r * width + c for r in (top, bottom) for c in (left, right)], dim=2)
    shares = torch.stack(
        [r * c for r in (1 - bottom_share, bottom_share) for c in (1 - right_share, right_share)],
        dim=2,
    )
    first = torch.arange(batch, device=maps.device)[:, None, None] * (height * width)
    out = F.embedding_bag(
        (cells.long() + first).flatten(0, 1),
        # Contiguous: of one map alone reshape makes a view, whose sums round otherwise.
        maps.movedim(1, 3).reshape(-1, channels).contiguous(),
        per_sample_weights=shares.flatten(0, 1),
        mode="sum",
    )
    return out.reshape(batch, height, width, channels).movedim(3, 1)


@lru_cache(maxsize=16)
def _cell_centers(height: int, width: int, device: torch.device) -> Float[Tensor, "cells 3"]:
    """Place (x, y, 1) of every cell, row by row, in units of half a side from the centre."""
    y, x = ((torch.arange(n, device=device) + 0.5) * (2 / n) - 1 for n in (height, width))
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)], dim=2).flatten(0, 1)


def compose(outer: Float[Tensor, "B 2 3"], inner: Float[Tensor, "B 2 3"]) -> Float[Tensor, "B 2 3"]:
    """Return the transform that warps by ``inner`` first and by ``outer`` after it."""
    # Sources are looked up from the result backwards: through the outer one, then the inner.
    first, second, shift = inner.split(1, dim=2)  # each (B, 2, 1)
    moved = first * outer[:, :1] + second * outer[:, 1:]
    return torch.cat([moved[:, :, :2], moved[:, :, 2:] + shift], dim=2)


def _box_weights(
    start: Float[Tensor, " B"],
    extent: Float[Tensor, " B"],
    mirrored: Bool[Tensor, " B"] | None,
    geometry: Geometry,
    in_size: int,
    out_size: int,
    kernel: Kernel,
    fill: Fill,
) -> Float[Tensor, "B out in"]:
    """Weights of one axis: looked up for small images cut at whole steps, else computed."""
    steps = geometry.steps
    if not steps or geometry.margin or in_size > MOST_TABLED:
        weights = _axis_weights(start, extent, in_size, out_size, geometry.margin, kernel, fill)
        if mirrored is None:
            return weights
        return torch.where(mirrored[:, None, None], weights.flip(1), weights)
    table = _weight_table(in_size, out_size, steps, kernel, fill, start.device)
    first, length = (start * steps).round().long(), (extent * steps).round().long()
    # The index of a box in the table: after all shorter ones, which have more positions each.
    number = (length - 1) * (steps + 1) - length * (length - 1) // 2 + first
    if mirrored is not None:
        number = number + mirrored * (len(table) // 2)
    return table.index_select(0, number)


@lru_cache(maxsize=16)
def _weight_table(
    in_size: int, out_size: int, steps: int, kernel: Kernel, fill: Fill, device: torch.device
) -> Float[Tensor, "boxes out in"]:
    """Weights along one axis of every box on the grid of steps, then of every one mirrored."""
    boxes = [(i, n) for n in range(1, steps + 1) for i in range(steps - n + 1)]
    first, length = (torch.tensor(boxes, device=device) / steps).unbind(1)
    weights = _axis_weights(first, length, in_size, out_size, 0.0, kernel, fill)
    return torch.cat([weights, weights.flip(1)])


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
    whole_cells = kernel == "bilinear" and fill == "edge"
    pad = math.ceil(margin * in_size)
    if whole_cells:  # all cells that a kernel can reach
        pad = math.ceil(margin * in_size + max(in_size / out_size, 1.0))
    device = start.device
    first, length = (start * in_size)[:, None], (extent * in_size)[:, None]
    scale = length / out_size
    center = first + (torch.arange(out_size, device=device) + 0.5) * scale  # (B, out)
    cell = torch.arange(-pad, in_size + pad, device=device, dtype=start.dtype)
    distance = (cell + 0.5 - center[..., None]) / scale.clamp(min=1.0)[..., None]  # (B, out, in)
    weights = _cubic(distance) if kernel == "bicubic" else (1 - distance.abs()).clamp(min=0)
    if not whole_cells:
        covered = torch.minimum(cell + 1, first + length) - torch.maximum(cell, first)  # (B, in)
        weights = weights * covered.clamp(0, 1)[:, None]
    weights = weights / weights.sum(dim=2, keepdim=True)
    if whole_cells:
        return products(weights, _nearest_touched(cell, first, length, in_size))
    inside = weights[..., pad : pad + in_size]
    if fill == "edge" and pad:
        inside = inside.clone()
        inside[..., 0] += weights[..., :pad].sum(dim=2)
        inside[..., -1] += weights[..., pad + in_size :].sum(dim=2)
    return inside


def _nearest_touched(
    cell: Float[Tensor, " cells"],
    first: Float[Tensor, "B 1"],
    length: Float[Tensor, "B 1"],
    in_size: int,
) -> Float[Tensor, "B cells in"]:
    """Say which cell of the map stands for each, as ones: the nearest that the box touches."""
    lowest = (first + ROUNDING).floor()
    highest = (first + length - ROUNDING).ceil() - 1
    nearest = cell.clamp(lowest, highest).clamp(0, in_size - 1)
    return F.one_hot(nearest.long(), in_size).to(first.dtype)


def _cubic(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Cubic convolution kernel with a = -0.5, the one of PIL and of torch when it antialiases.

    Source:
        Keys, 1981, Cubic convolution interpolation for digital image processing.
    """
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
