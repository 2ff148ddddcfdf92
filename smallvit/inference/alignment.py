"""A picture of images and their score maps, cut with one box: do they lie on one another?

Shapes in this file:
    B    images
    C    classes
    H W  image in pixels
    h w  the teacher's grid
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from smallvit.core import rng
from smallvit.data import geometry
from smallvit.data.augment import to_float
from smallvit.data.canvas import GAP, LINE, Canvas, boxes_of, tile_side, to_pixels

TILES = (144, 192)  # in pixels, as in contact_sheet.py
SCALE = (0.25, 0.5)  # area of a crop: small enough to move what is seen
RATIO = (0.75, 4 / 3)
FINEST = 16  # cells a side of a crop's map, at most
CROP = "#00a0ff"  # no colour of the heat
HEAT = {"cmap": "inferno", "vmin": 0, "vmax": 1, "alpha": 0.6}


def draw_alignment(
    path: Path,
    images: UInt8[Tensor, "B 3 H W"],
    score_maps: Float[Tensor, "B C h w"],
    labels: Int[Tensor, " B"],
    class_names: Sequence[str],
    *,
    hflip: bool,
    seed: int,
    title: str,
) -> None:
    """Draw images and crops of them, with the score maps of their class over both.

    Image and map are cut, resized and mirrored by one geometry with the functions that make
    training batches. Where another class has the largest mean over the crop, its map is drawn too.

    Args:
        path: PNG to write.
        images: A few, as they are packed.
        score_maps: Of these images; the channel axis sums to 1.
        labels: Of these images.
        class_names: In the order of the channels.
        hflip: Whether some of the crops are mirrored.
        seed: Of the crops.
        title: First line.
    """
    count, (height, width) = len(images), images.shape[2:]
    draws = rng.uniform(seed, "alignment", torch.zeros(count).long(), torch.arange(count), 5)
    where = geometry.sample_resized_crop(
        draws, scale=SCALE, ratio=RATIO, hflip=hflip, image_size=max(height, width)
    )
    crops = geometry.resample(
        to_float(images), where, (height, width), kernel="bicubic", fill="zero"
    )
    crops = (crops * 255).round().clamp(0, 255).to(torch.uint8)
    # As many cells as the student would have, but for very fine grids.
    grid = score_maps.shape[2], score_maps.shape[3]
    fine = min(max(grid[0], 8), FINEST), min(max(grid[1], 8), FINEST)
    cut = geometry.resample(score_maps, where, fine, kernel="bilinear", fill="edge")

    tile = tile_side(width, TILES)
    high = round(tile * height / width)
    row = LINE + high + GAP
    lefts = [column * (tile + GAP) for column in range(5)]
    canvas = Canvas(
        5 * (tile + GAP) - GAP,
        LINE + count * row,
        title,
        f"p(class) as heat, black is 0 and yellow is 1; {grid[0]}x{grid[1]} cells an image; a crop "
        "and its map are cut by the same box",
    )
    heads = ("image, crop box", "map of its class", "crop", "map of its class", "map of top class")
    for left, head in zip(lefts, heads, strict=True):
        canvas.text(left, 0, head, tile, weight="bold")
    boxes = boxes_of(where, width, height)
    for i, (label, image, crop, box) in enumerate(
        zip(labels.tolist(), images, crops, boxes, strict=True)
    ):
        top = LINE + i * row + LINE
        mean = cut[i].mean(dim=(1, 2))
        likeliest = int(mean.argmax())
        tiles = [
            (class_names[label], image, None),
            (f"mean {score_maps[i, label].mean():.2f}", image, score_maps[i, label]),
            ("mirrored" if box.mirrored else "", crop, None),
            (f"mean {mean[label]:.2f}", crop, cut[i, label]),
            (f"{class_names[likeliest]}: {mean[likeliest]:.2f}", crop, cut[i, likeliest]),
        ]
        if likeliest == label:
            tiles.pop()
            canvas.text(lefts[4], top - LINE, "the same", tile)
        for left, (text, pixels, heat) in zip(lefts, tiles, strict=False):
            canvas.text(left, top - LINE, text, tile)
            canvas.image(left, top, tile, to_pixels(pixels, grey=heat is not None), height=high)
            if heat is not None:
                canvas.image(left, top, tile, heat.numpy(), height=high, **HEAT)
        for left in lefts[:2]:
            canvas.box(left, top, tile / width, box, CROP)
    canvas.save(path)
