"""Contact sheets: what training sees, as pictures that a person can judge.

Each sheet is made by the code that makes the batches of a run, from the first images of its order.

Shapes in this file:
    B    images
    C    classes
    H W  image or view in pixels
    h w  token grid
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from matplotlib.colors import to_rgb
from torch import Tensor

from smallvit.core import rng
from smallvit.data.canvas import (
    BADGE,
    GAP,
    LINE,
    VIRIDIS,
    Box,
    Canvas,
    boxes_of,
    tile_side,
    to_pixels,
)
from smallvit.data.config import AugmentConfig, ViewsConfig
from smallvit.data.dataset import Dataset, Split, channel_tensors
from smallvit.data.order import Order
from smallvit.data.views import LabeledBatches, ScoreMapReader, ViewBatches

COLUMNS = 8
# In pixels, as all lengths: smaller images are enlarged to about the first, larger ones reduced to
# the second.
TILES = (128, 256)
VIEW_TILES = (160, 176)
MAP_TILES = (192, 224)
LEGEND = 190  # width
MOST_VIEWED = 6  # images whose views are shown
MOST_MAPPED = 8  # images whose score maps are shown
MAP_HEADS = (
    "image, crop",
    "what the network sees",
    "top class of each cell",
    "p(label), bright is 1",
    "mean of the map",
)
MOST_NAMED = 5  # classes named beside a score map
GLOBAL, LOCAL = "#d55e00", "#0072b2"  # told apart by colour-blind eyes too
CROP = "#009e73"
CLASS_COLORS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#cc79a7", "#d55e00")
OTHER_CLASS = "#777777"


@dataclass(frozen=True, kw_only=True)
class ViewSheet:
    """Some images with their stage-1 views.

    Attributes:
        images: The images as they are packed.
        names: Class of each; empty text without labels.
        views: All images in each view, without normalisation; the large ones come first.
        boxes: For each view, where it lies in each image.
    """

    images: UInt8[Tensor, "B 3 H W"]
    names: list[str]
    views: list[Tensor]
    boxes: list[list[Box]]


@dataclass(frozen=True, kw_only=True)
class BatchSheet:
    """A stage-2 batch.

    Attributes:
        images: The images as they are packed.
        names: Class of each.
        labels: The same as numbers.
        augmented: What the network sees, without normalisation.
        boxes: Where the crop of each lies in its image; a policy may have moved it further.
        partner_share: Part that comes from the partner; 0 where nothing is mixed.
        score_maps: Cropped, moved and mixed like the image; ``None`` without a reader.
    """

    images: UInt8[Tensor, "B 3 H W"]
    names: list[str]
    labels: Int[Tensor, " B"]
    augmented: UInt8[Tensor, "B 3 H W"]
    boxes: list[Box]
    partner_share: Float[Tensor, " B"]
    score_maps: Float[Tensor, "B C h w"] | None


def choose_images(split: Split, num: int, seed: int) -> Int[Tensor, " B"]:
    """Draw images of a split at random, as evenly over the classes as they go, by class."""
    order = rng.permutation(seed, "contact_sheet", 0, len(split)).numpy()
    labels = split.labels[split.index].numpy()[order]
    by_class = np.argsort(labels, kind="stable")
    in_class = labels[by_class]
    rank = np.empty(len(order), dtype=np.int64)  # how many of its class came before it
    rank[by_class] = np.arange(len(order)) - np.searchsorted(in_class, in_class)
    chosen = np.argsort(rank, kind="stable")[:num]
    return torch.from_numpy(order[chosen[np.argsort(labels[chosen], kind="stable")]])


def sample_views(dataset: Dataset, config: ViewsConfig, *, num: int, seed: int) -> ViewSheet:
    """Make the views of the first images of a stage-1 run with that seed."""
    split = dataset.splits["train"]
    order = Order(len(split), min(num, len(split)), seed, split.index.device)
    batches = ViewBatches(dataset, order, config, total_steps=1)
    batch, position, side = batches(0), order.draw(0).position, dataset.image_size
    views = [*batch.global_views, *(() if batch.local_views is None else batch.local_views)]
    return ViewSheet(
        images=split.take(position),
        names=_names(dataset, split, position),
        views=[_to_bytes(view, dataset) for view in views],
        boxes=[boxes_of(where, side, side) for where in batches.geometries(0)],
    )


def sample_batch(
    dataset: Dataset,
    config: AugmentConfig,
    *,
    num: int,
    seed: int,
    score_maps: ScoreMapReader | None = None,
    grid: tuple[int, int] = (1, 1),
) -> BatchSheet:
    """Make a batch of the first images of a stage-2 run with that seed.

    Args:
        dataset: With labels.
        config: The augmentation.
        num: Images, at most.
        seed: Seed of the run.
        score_maps: Returns the maps of samples by their position in the labelled split.
        grid: The student's token grid.
    """
    split = dataset.splits["labelled"]
    most = len(split) * config.repeats
    order = Order(len(split), min(num, most), seed, split.index.device, repeats=config.repeats)
    batches = LabeledBatches(dataset, order, config, score_maps=score_maps, grid=grid)
    batch, position = batches(0), order.draw(0).position
    share = batch.partner_share
    return BatchSheet(
        images=split.take(position),
        names=_names(dataset, split, position),
        labels=batch.labels,
        augmented=_to_bytes(batch.images, dataset),
        boxes=boxes_of(batches.where(0), dataset.image_size, dataset.image_size),
        partner_share=torch.zeros(len(position)) if share is None else share,
        score_maps=batch.score_maps,
    )


def draw_images(path: Path, dataset: Dataset, *, num: int, seed: int) -> None:
    """Draw training images, evenly over the classes, with their classes."""
    split = dataset.splits["train"]
    position = choose_images(split, num, seed)
    draw_grid(
        path,
        split.take(position),
        [[name] for name in _names(dataset, split, position)],
        title=f"{dataset.name}: training images",
        below=f"{len(position):,} of {len(split):,}, drawn with seed {seed}, "
        f"{dataset.image_size} px, "
        + (f"{dataset.num_classes} classes" if dataset.labelled else "without labels"),
    )


def draw_batch(
    path: Path, dataset: Dataset, config: AugmentConfig, *, num: int, seed: int, recipe: str
) -> None:
    """Draw a stage-2 batch as the network sees it, with labels and shares of partners."""
    sheet = sample_batch(dataset, config, num=num, seed=seed)
    mixing = bool(config.mix_prob and (config.cutmix_alpha or config.mixup_alpha))
    texts = [[name] for name in sheet.names]
    if mixing:
        texts = [[*text, _partner(sheet, i)] for i, text in enumerate(texts)]
    draw_grid(
        path,
        sheet.augmented,
        texts,
        title=f"{dataset.name}: a training batch of stage 2",
        below=f"recipe {recipe}: the first {len(texts)} images of a run with seed {seed}, as the "
        "network sees them"
        + (", each mixed with the image at the mirrored position" if mixing else ""),
    )


def draw_grid(
    path: Path,
    images: UInt8[Tensor, "B 3 H W"],
    texts: Sequence[Sequence[str]],
    *,
    title: str,
    below: str,
) -> None:
    """Draw images in rows with lines of text above each.

    Args:
        path: PNG to write.
        images: The images.
        texts: Lines of each image, as many for every one.
        title: First line of the sheet.
        below: Second line.
    """
    tile = tile_side(images.shape[-1], TILES)
    head = LINE * max(map(len, texts))
    columns = min(COLUMNS, len(images))
    canvas = Canvas(
        columns * (tile + GAP) - GAP,
        math.ceil(len(images) / columns) * (head + tile + GAP) - GAP,
        title,
        below,
    )
    for i, (image, lines) in enumerate(zip(images, texts, strict=True)):
        left = i % columns * (tile + GAP)
        top = i // columns * (head + tile + GAP)
        for number, line in enumerate(lines):
            canvas.text(left, top + LINE * number, line, tile)
        canvas.image(left, top + head, tile, to_pixels(image))
    canvas.save(path)


def draw_views(
    path: Path, dataset: Dataset, config: ViewsConfig, *, num: int, seed: int, recipe: str
) -> None:
    """Draw some images with the boxes of their stage-1 views, and the views beside them."""
    sheet = sample_views(dataset, config, num=min(num, MOST_VIEWED), seed=seed)
    tile = tile_side(dataset.image_size, VIEW_TILES)
    num_large, num_small = config.num_global, config.num_local
    colors = [GLOBAL] * num_large + [LOCAL] * num_small
    lines = max(num_large, min(num_small, 2))  # of views beside an image
    row = lines * (LINE + tile + GAP) - GAP
    # As high as the views beside it; small images at a whole multiple.
    large = row - LINE
    if dataset.image_size <= VIEW_TILES[0] // 2:
        large -= large % dataset.image_size
    columns = math.ceil(num_small / lines)  # of small views
    canvas = Canvas(
        large + (1 + columns) * (GAP + tile),
        len(sheet.images) * (row + 2 * GAP) - 2 * GAP,
        f"{dataset.name}: views of stage 1",
        f"recipe {recipe}: the first {len(sheet.images)} images of a run with seed {seed}, each "
        f"with {_count(num_large, 'large view')}"
        + (f" and {_count(num_small, 'small one')}" if num_small else ""),
    )
    for i, image in enumerate(sheet.images):
        top = i * (row + 2 * GAP)
        canvas.text(0, top, sheet.names[i], large)
        canvas.image(0, top + LINE, large, to_pixels(image))
        taken: list[tuple[float, float]] = []
        scale = large / dataset.image_size
        # Small boxes first: their numbers have fewer places to go to.
        for number, color in reversed([*enumerate(colors)]):
            box = sheet.boxes[number][i]
            canvas.box(0, top + LINE, scale, box, color)
            place = _free_place(box, scale, taken, limit=large)
            taken.append(place)
            canvas.badge(place[0], top + LINE + place[1], str(number + 1), color)
        for number, view in enumerate(sheet.views):
            column, line = (0, number)
            if number >= num_large:
                column, line = 1 + (number - num_large) % columns, (number - num_large) // columns
            left = large + GAP + column * (tile + GAP)
            upper = top + line * (LINE + tile + GAP)
            mirrored = ", mirrored" if sheet.boxes[number][i].mirrored else ""
            color = colors[number]
            text = f"{number + 1}: {view.shape[-1]} px{mirrored}"
            canvas.text(left, upper, text, tile, color=color)
            canvas.image(left, upper + LINE, tile, to_pixels(view[i]), frame=color)
    canvas.save(path)


def draw_score_maps(
    path: Path,
    dataset: Dataset,
    config: AugmentConfig,
    score_maps: ScoreMapReader,
    *,
    grid: tuple[int, int],
    num: int,
    seed: int,
    recipe: str,
    teacher: str,
) -> None:
    """Draw images, their crops, and the score maps of the same crops over them.

    Args:
        path: PNG to write.
        dataset: With labels.
        config: The augmentation.
        score_maps: Returns the maps of samples by their position in the labelled split.
        grid: The student's token grid.
        num: Images, at most.
        seed: Seed of the run.
        recipe: Name of the recipe.
        teacher: What wrote the maps.
    """
    sheet = sample_batch(
        dataset,
        config,
        num=min(num, MOST_MAPPED),
        seed=seed,
        score_maps=score_maps,
        grid=grid,
    )
    assert sheet.score_maps is not None
    tile = tile_side(dataset.image_size, MAP_TILES)
    scale = tile / dataset.image_size
    # A padded crop reaches over the image, and its box with it.
    over = math.ceil(scale * max(_overhang(box, dataset.image_size) for box in sheet.boxes))
    lefts = [over + n * (tile + GAP) + (over if n else 0) for n in range(4)]
    legend = lefts[-1] + tile + GAP
    row = LINE + tile + 2 * over + GAP
    canvas = Canvas(
        legend + LEGEND,
        2 * LINE + len(sheet.images) * row,
        f"{dataset.name}: score maps of {teacher}",
        f"recipe {recipe}: the first {len(sheet.images)} images of a run with seed {seed}; maps on "
        f"the student's grid of {grid[0]}x{grid[1]}",
    )
    for left, head in zip((*lefts, legend), MAP_HEADS, strict=True):
        canvas.text(left, 0, head, tile, weight="bold")
    for i, score_map in enumerate(sheet.score_maps):
        top = 2 * LINE + i * row
        canvas.text(lefts[0], top, sheet.names[i], tile)
        upper, label = top + LINE + over, int(sheet.labels[i])
        canvas.text(lefts[1], upper - LINE, _partner(sheet, i), tile)
        canvas.image(lefts[0], upper, tile, to_pixels(sheet.images[i]))
        canvas.box(lefts[0], upper, scale, sheet.boxes[i], CROP)
        canvas.image(lefts[1], upper, tile, to_pixels(sheet.augmented[i]))
        named = name_classes(score_map, label)
        canvas.image(lefts[2], upper, tile, to_pixels(sheet.augmented[i], grey=True))
        canvas.image(lefts[2], upper, tile, color_top_classes(score_map, named))
        canvas.image(lefts[3], upper, tile, score_map[label].numpy(), **VIRIDIS)
        mean = score_map.mean(dim=(1, 2))
        lines = [
            (color, f"{mean[number]:.2f} {dataset.class_names[number]}", number == label)
            for color, number in zip(CLASS_COLORS, named, strict=False)
        ]
        if len(named) < len(mean):
            rest = max(1 - mean[list(named)].sum().item(), 0)
            lines.append((OTHER_CLASS, f"{rest:.2f} others", False))
        for line, (color, text, bold) in enumerate(lines):
            lower, weight = upper + line * LINE, "bold" if bold else "normal"
            canvas.swatch(legend, lower, color)
            canvas.text(legend + LINE, lower, text, LEGEND - LINE, weight=weight)
    canvas.save(path)


def name_classes(score_map: Float[Tensor, "C h w"], label: int) -> tuple[int, ...]:
    """Return the classes of the largest mean probability, the label's last if not among them."""
    mean = score_map.mean(dim=(1, 2))
    named = mean.topk(min(MOST_NAMED, len(mean))).indices.tolist()
    return (*named, label) if label not in named else tuple(named)


def color_top_classes(score_map: Float[Tensor, "C h w"], named: Sequence[int]) -> np.ndarray:
    """Colour each cell by its top class, as opaque as that class is probable.

    Args:
        score_map: Distributions over the classes.
        named: Classes that have a colour of their own, in the order of ``CLASS_COLORS``.

    Returns:
        Red, green, blue and opacity in [0, 1], of shape (h, w, 4).
    """
    prob, top = score_map.max(dim=0)
    colors = np.tile(to_rgb(OTHER_CLASS), (len(score_map), 1))
    for number, color in zip(named, CLASS_COLORS, strict=False):
        colors[number] = to_rgb(color)
    return np.concatenate([colors[top.numpy()], 0.8 * prob.numpy()[..., None]], axis=2)


def _free_place(
    box: Box, scale: float, taken: Sequence[tuple[float, float]], *, limit: float
) -> tuple[float, float]:
    """Find a place along the inner edge of a box where no other badge lies."""
    left, top = scale * box.left, scale * box.top
    right = max(left, min(left + scale * box.width, limit) - BADGE[0])
    bottom = max(top, min(top + scale * box.height, limit) - BADGE[1])
    across = np.linspace(left, right, max(2, int((right - left) / BADGE[0]) + 1))
    down = np.linspace(top, bottom, max(2, int((bottom - top) / BADGE[1]) + 1))
    edge = [(x, y) for y in (top, bottom) for x in (left, right)]
    edge += [(x, y) for y in (top, bottom) for x in across]
    edge += [(x, y) for x in (left, right) for y in down]
    for x, y in edge:
        if all(abs(x - a) >= BADGE[0] or abs(y - b) >= BADGE[1] for a, b in taken):
            return float(x), float(y)
    return left, top


def _overhang(box: Box, side: int) -> float:
    right, bottom = box.left + box.width - side, box.top + box.height - side
    return max(0.0, -box.left, -box.top, right, bottom)


def _to_bytes(images: Float[Tensor, "B 3 H W"], dataset: Dataset) -> UInt8[Tensor, "B 3 H W"]:
    """Undo the normalisation."""
    mean, std = channel_tensors(dataset, images.device)
    colors = images * std[:, None, None] + mean[:, None, None]
    return (colors * 255).round().clamp(0, 255).to(torch.uint8)


def _names(dataset: Dataset, split: Split, position: Int[Tensor, " B"]) -> list[str]:
    if not dataset.labelled:
        return [""] * len(position)
    return [dataset.class_names[label] for label in split.labels[split.index[position]].tolist()]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _partner(sheet: BatchSheet, i: int) -> str:
    share = float(sheet.partner_share[i])
    return f"+ {share:.0%} of {sheet.names[len(sheet.names) - 1 - i]}" if share else ""
