import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from smallvit.data import contact_sheet, geometry
from smallvit.data.augment import to_float
from smallvit.data.canvas import Canvas
from smallvit.data.config import AugmentConfig, ViewsConfig
from smallvit.data.contact_sheet import (
    Box,
    choose_images,
    color_top_classes,
    draw_batch,
    draw_images,
    draw_score_maps,
    draw_views,
    name_classes,
    sample_batch,
    sample_views,
)
from smallvit.data.dataset import Dataset, Split

SIDE = 16
WHOLE = 64  # where boxes lie at whole pixels
UNCHANGED = ViewsConfig(
    num_local=3,
    color_jitter_prob=0.0,
    grey_prob=0.0,
    blur_prob=(0.0, 0.0, 0.0),
    solarize_prob=0.0,
)
COLOURS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]])
RUN = {"num": 40, "seed": 3, "recipe": "digits/vit_tiny"}


def dataset(images: torch.Tensor, labels: list[int], class_names: tuple[str, ...]) -> Dataset:
    split = Split(images=images, labels=torch.tensor(labels), index=torch.arange(len(images)))
    return Dataset(
        name="made",
        class_names=class_names,
        image_size=images.shape[-1],
        splits={"train": split, "labelled": split},
        mean=(0.2, 0.4, 0.6),
        std=(0.3, 0.2, 0.1),
        hflip=True,
        fingerprint="",
        split_hashes={},
        broken=(),
        store_path=Path(),
    )


def noise(
    num: int = 12, num_classes: int = 3, *, labelled: bool = True, side: int = SIDE
) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (num, 3, side, side), generator=generator, dtype=torch.uint8)
    labels = [i % num_classes for i in range(num)] if labelled else [-1] * num
    names = tuple(f"class {i}" for i in range(num_classes)) if labelled else ()
    return dataset(pixels, labels, names)


def quadrants(num: int = 40) -> tuple[Dataset, torch.Tensor]:
    """Images with a colour in each quadrant, and maps with that quadrant's class in its cells."""
    number = torch.tensor([[0, 1], [2, 3]])
    pixels = COLOURS[number].permute(2, 0, 1).repeat_interleave(8, 1).repeat_interleave(8, 2)
    images = pixels.to(torch.uint8).expand(num, -1, -1, -1).contiguous()
    cells = number.repeat_interleave(4, 0).repeat_interleave(4, 1)
    maps = torch.nn.functional.one_hot(cells, 4).permute(2, 0, 1).float()
    return dataset(images, [0] * num, ("red", "green", "blue", "white")), maps


def cut_out(image: torch.Tensor, box: Box, side: int) -> torch.Tensor:
    """Resize what a box covers, and mirror it where told; the levels are whole numbers."""
    cut = image[None, :, int(box.top) :, int(box.left) :]
    cut = to_float(cut[..., : int(box.height), : int(box.width)])
    zero, one = torch.zeros(1), torch.ones(1)
    whole = geometry.Geometry(top=zero, left=zero, height=one, width=one, hflip=zero.bool())
    made = geometry.resample(cut, whole, (side, side), kernel="bicubic", fill="zero")[0]
    return ((made.flip(2) if box.mirrored else made).clamp(0, 1) * 255).round()


def test_as_many_images_of_each_class_are_chosen_as_it_has():
    labels = [0] * 50 + [1] * 5 + [2] * 3
    data = dataset(torch.zeros(58, 3, 8, 8, dtype=torch.uint8), labels, ("a", "b", "c"))
    chosen = choose_images(data.splits["train"], 18, seed=0)
    assert torch.tensor(labels)[chosen].bincount().tolist() == [10, 5, 3]
    assert len(set(chosen.tolist())) == 18
    assert choose_images(data.splits["train"], 18, seed=1).tolist() != chosen.tolist()
    assert sorted(choose_images(data.splits["train"], 99, seed=0).tolist()) == list(range(58))


def test_each_class_is_chosen_once_where_there_are_more_than_images_wanted():
    data = noise(60, 30)
    chosen = choose_images(data.splits["train"], 20, seed=0)
    assert len(set(data.splits["train"].labels[chosen].tolist())) == 20


def test_the_boxes_of_a_sheet_are_where_its_views_come_from():
    data = noise(side=WHOLE)
    sheet = sample_views(data, UNCHANGED, num=6, seed=3)
    assert [view.shape[-1] for view in sheet.views] == [64, 64, 32, 32, 32]
    assert {box.mirrored for boxes in sheet.boxes for box in boxes} == {True, False}
    for view, boxes in zip(sheet.views, sheet.boxes, strict=True):
        for i, box in enumerate(boxes):
            assert 0 <= box.left <= WHOLE - box.width
            assert 0 <= box.top <= WHOLE - box.height
            off = cut_out(sheet.images[i], box, view.shape[-1]) - view[i].float()
            assert off.abs().max() <= 1  # rounding


def test_the_box_of_a_batch_is_where_its_crop_comes_from():
    sheet = sample_batch(noise(side=WHOLE), AugmentConfig(crop="resized"), num=6, seed=3)
    for image, crop, box in zip(sheet.images, sheet.augmented, sheet.boxes, strict=True):
        assert box.width < WHOLE or box.height < WHOLE
        assert (cut_out(image, box, WHOLE) - crop.float()).abs().max() <= 1  # rounding


def test_a_batch_is_shown_without_normalisation_and_with_its_partners():
    data = noise()
    plain = sample_batch(data, AugmentConfig(crop="none"), num=6, seed=3)
    kept = (plain.augmented == plain.images).flatten(1).all(1)
    flipped = (plain.augmented == plain.images.flip(3)).flatten(1).all(1)
    assert (kept | flipped).all()
    assert kept.tolist() == [not box.mirrored for box in plain.boxes]
    assert plain.names == [data.class_names[label] for label in plain.labels]
    mixed = sample_batch(data, AugmentConfig(crop="none", mixup_alpha=1.0), num=6, seed=3)
    share = mixed.partner_share[:, None, None, None]
    expected = torch.lerp(plain.augmented.float(), plain.augmented.flip(0).float(), share)
    assert (expected - mixed.augmented).abs().max() <= 1
    assert share.min() > 0


@pytest.mark.parametrize("crop", ["pad", "resized", "none"])
def test_the_map_of_a_crop_lies_on_the_quadrants_of_that_crop(crop):
    data, maps = quadrants()
    sheet = sample_batch(
        data,
        AugmentConfig(crop=crop),
        num=40,
        seed=3,
        score_maps=lambda position: maps.expand(len(position), -1, -1, -1),
        grid=(8, 8),
    )
    assert sheet.score_maps is not None
    cells = torch.nn.functional.avg_pool2d(sheet.augmented.float(), 2)
    seen = (cells[:, None] - COLOURS[:, :, None, None]).abs().sum(2)  # (B, C, h, w)
    pure = seen.amin(1) < 30  # cells across a border, and what padding brings in, are neither
    assert pure.float().mean() > 0.5
    agree = (sheet.score_maps.argmax(1) == seen.argmin(1))[pure]
    assert agree.float().mean() > 0.98
    assert (sheet.score_maps.flip(3).argmax(1) == seen.argmin(1))[pure].float().mean() < 0.6


def test_cells_have_the_colour_of_their_top_class_as_opaque_as_it_is_probable():
    score_map = torch.tensor([[[0.7, 0.1]], [[0.2, 0.1]], [[0.1, 0.8]]])
    named = name_classes(score_map, 1)
    assert named == (2, 0, 1)
    colors = color_top_classes(score_map, named[:1])
    assert colors.shape == (1, 2, 4)
    assert colors[0, :, 3] == pytest.approx([0.8 * 0.7, 0.8 * 0.8])
    assert colors[0, 1, :3] == pytest.approx([0xE6 / 255, 0x9F / 255, 0])  # the first colour
    assert colors[0, 0, :3] == pytest.approx([0x77 / 255] * 3)  # class 0 is not among the named


def test_the_label_is_named_though_its_probability_is_small():
    score_map = torch.linspace(0.3, 0.01, 9)[:, None, None]
    assert name_classes(score_map, 8) == (0, 1, 2, 3, 4, 8)
    assert name_classes(score_map, 2) == (0, 1, 2, 3, 4)


def test_numbers_of_boxes_do_not_cover_each_other(tmp_path, monkeypatch):
    badges = []
    monkeypatch.setattr(Canvas, "badge", lambda _, x, y, *words: badges.append((x, y)))
    draw_views(tmp_path / "views.png", noise(), ViewsConfig(num_local=6), **{**RUN, "num": 1})
    assert len(badges) == 8
    for (x, y), (a, b) in itertools.combinations(badges, 2):
        assert abs(x - a) >= 16 or abs(y - b) >= 13


def test_sheets_are_written_and_replaced_at_sizes_that_fit_their_images(tmp_path):
    data = noise()
    draw_images(tmp_path / "images.png", data, num=12, seed=0)
    with Image.open(tmp_path / "images.png") as image:
        # Tiles of 8 x 16 px and a line of text, gaps of 10; margins of 16 and the title.
        assert image.size == (8 * 138 - 10 + 32, 2 * (15 + 128 + 10) - 10 + 16 + 58)
    draw_images(tmp_path / "images.png", data, num=4, seed=0)
    with Image.open(tmp_path / "images.png") as image:
        assert image.size[1] == 15 + 128 + 16 + 58
    draw_views(tmp_path / "views.png", data, ViewsConfig(num_local=3), **RUN)
    draw_views(tmp_path / "large.png", data, ViewsConfig(num_local=0), **RUN)

    draw_batch(tmp_path / "batch.png", data, AugmentConfig(mixup_alpha=1.0, repeats=2), **RUN)
    sizes = {}
    for name in ("views", "large", "batch"):
        with Image.open(tmp_path / f"{name}.png") as image:
            sizes[name] = image.size
    assert sizes["views"][0] == 21 * 16 + 3 * (160 + 10) + 32
    assert sizes["batch"][1] == 3 * (30 + 128 + 10) - 10 + 16 + 58  # 24 images


def test_one_large_view_is_drawn_with_the_small_ones_in_their_own_columns(tmp_path):
    views = ViewsConfig(num_global=1, num_local=2)
    assert [view.shape[-1] for view in sample_views(noise(), views, num=1, seed=3).views] == [
        SIDE,
        SIDE // 2,
        SIDE // 2,
    ]
    draw_views(tmp_path / "views.png", noise(), views, num=1, seed=3, recipe="made")
    with Image.open(tmp_path / "views.png") as image:
        shown = np.array(image.convert("RGB"))
    middle = 58 + 15 + 160 // 2
    for left, colour in ((336 + 10, contact_sheet.GLOBAL), (336 + 10 + 170, contact_sheet.LOCAL)):
        edge = shown[middle, 16 + left - 2 : 16 + left + 3]
        assert tuple(bytes.fromhex(colour[1:])) in {tuple(pixel) for pixel in edge.tolist()}


def test_a_single_view_is_as_large_as_its_image(tmp_path):
    views = ViewsConfig(num_global=1, num_local=0)
    draw_views(tmp_path / "views.png", noise(), views, num=2, seed=3, recipe="made")
    with Image.open(tmp_path / "views.png") as image:
        assert image.height == 2 * (15 + 160) + 20 + 58 + 16


def test_images_are_enlarged_by_whole_numbers_and_shown_pixel_by_pixel(tmp_path):
    data = noise()
    draw_images(tmp_path / "images.png", data, num=1, seed=0)
    position = choose_images(data.splits["train"], 1, 0)
    with Image.open(tmp_path / "images.png") as image:
        shown = torch.from_numpy(np.array(image.convert("RGB")))
    centres = shown[58 + 15 + 4 : 58 + 15 + 128 : 8, 16 + 4 : 16 + 128 : 8]
    assert (centres == data.splits["train"].take(position)[0].permute(1, 2, 0)).all()


def test_class_names_of_any_kind_are_drawn_without_a_warning(tmp_path):
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    names = ("costs $5$ or more, in a name that is far too long for a tile", "\u9ce5")
    draw_images(tmp_path / "images.png", dataset(images, [0, 1], names), num=2, seed=0)
    draw_images(tmp_path / "unlabelled.png", noise(labelled=False), num=2, seed=0)
    assert (tmp_path / "images.png").stat().st_size > 1000


def test_score_maps_are_drawn_beside_their_crops(tmp_path):
    data, maps = quadrants()
    draw_score_maps(
        tmp_path / "maps.png",
        data,
        AugmentConfig(),
        lambda position: maps.expand(len(position), -1, -1, -1),
        grid=(8, 8),
        teacher="resnet8_small",
        **RUN,
    )
    with Image.open(tmp_path / "maps.png") as image:
        assert image.width > 4 * 192
        assert image.height > 8 * 192
