import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from smallvit.data.geometry import (
    Geometry,
    compose,
    resample,
    sample_padded_crop,
    sample_resized_crop,
    warp,
)

pytestmark = pytest.mark.exact


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def box(top: float, left: float, height: float, width: float, *, hflip: bool = False) -> Geometry:
    one = torch.ones(1)
    return Geometry(
        top=top * one,
        left=left * one,
        height=height * one,
        width=width * one,
        hflip=one > 1 - hflip,
    )


def quadrant_map(size: int) -> torch.Tensor:
    """One channel a quadrant, 1 inside it: top left, top right, bottom left, bottom right."""
    maps = torch.zeros(1, 4, size, size)
    half = size // 2
    for i in range(4):
        top, left = half * (i // 2), half * (i % 2)
        maps[0, i, top : top + half, left : left + half] = 1
    return maps


@pytest.mark.parametrize("out", [4, 8], ids=["half grid", "full grid"])
@pytest.mark.parametrize("quadrant", range(4))
def test_crop_of_a_quadrant_returns_that_quadrant_and_no_other(quadrant, out):
    crop = box(0.5 * (quadrant // 2), 0.5 * (quadrant % 2), 0.5, 0.5)
    found = resample(quadrant_map(8), crop, (out, out), kernel="bilinear", fill="edge")
    expected = torch.zeros(1, 4, out, out)
    expected[:, quadrant] = 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_top_right_crop_is_never_the_bottom_left_one():
    # The published token-label crop passes x where y belongs and so returns the mirror quadrant.
    top_right = box(0.0, 0.5, 0.5, 0.5)
    found = resample(quadrant_map(8), top_right, (4, 4), kernel="bilinear", fill="edge")
    assert found[0, 1].min() > 0.999
    assert found[0, 2].max() < 1e-6


def test_mirrored_top_right_crop_is_the_mirror_image_of_it():
    maps = noise(1, 2, 8, 8)
    found = resample(
        maps, box(0, 0.5, 0.5, 0.5, hflip=True), (4, 4), kernel="bilinear", fill="edge"
    )
    torch.testing.assert_close(found, maps[:, :, :4, 4:].flip(3))


def test_crop_of_an_image_and_of_an_equal_map_agree_inside_the_box():
    image, draws = noise(6, 3, 16, 16), noise(6, 5)
    crop = sample_resized_crop(
        draws, scale=(0.2, 1.0), ratio=(0.75, 4 / 3), hflip=True, image_size=16
    )
    pixels = resample(image, crop, (16, 16), kernel="bilinear", fill="zero")
    cells = resample(image.clone(), crop, (16, 16), kernel="bilinear", fill="edge")
    inner = (..., slice(3, -3), slice(3, -3))  # where no kernel meets a border
    torch.testing.assert_close(pixels[inner], cells[inner])


def test_a_cell_that_the_box_cuts_counts_in_full():
    """Closed form: boxes of 2 x 2 quadrants end in the middle of the second cell."""
    maps = torch.tensor([[0.0, 1.0]]).expand(1, 1, 2, 2).contiguous()
    found = resample(maps, box(0, 0, 1, 0.75), (1, 3), kernel="bilinear", fill="edge")
    # Centres at 0.25, 0.75 and 1.25 cells, the cells' at 0.5 and 1.5.
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([0.0, 0.25, 0.75]))


@pytest.mark.parametrize("cells", [2, 4, 8, 16])
@pytest.mark.parametrize("tokens", [4, 7, 8, 14])
def test_a_token_has_most_of_the_side_that_its_centre_is_on(cells, tokens):
    """Any box, also one that reaches over the map, and any token whose centre is on no edge."""
    draws = noise(400, 4)
    height, width = 0.2 + 0.8 * draws[:, 0], 0.2 + 0.8 * draws[:, 1]
    top, left = 1.25 * draws[:, 2] * (1 - height) - 0.125, draws[:, 3] * (1 - width)
    crop = Geometry(top=top, left=left, height=height, width=width, hflip=draws[:, 0] > 2)
    maps = quadrant_map(cells).expand(400, -1, -1, -1)
    found = resample(
        maps, replace(crop, margin=0.125), (tokens, tokens), kernel="bilinear", fill="edge"
    )
    place = (torch.arange(tokens) + 0.5) / tokens
    y, x = top[:, None] + place * height[:, None], left[:, None] + place * width[:, None]
    expected = 2 * (y > 0.5)[:, :, None] + (x > 0.5)[:, None]
    clear = ((y - 0.5).abs() > 1e-5)[:, :, None] & ((x - 0.5).abs() > 1e-5)[:, None]
    assert clear.float().mean() > 0.99
    assert torch.equal(found.argmax(dim=1)[clear], expected[clear])


@pytest.mark.parametrize(
    ("top", "left", "height", "width", "size"),
    [
        (3, 5, 24, 20, (8, 8)),
        (0, 0, 32, 32, (12, 7)),
        (4, 9, 10, 6, (32, 32)),
        (1, 2, 5, 30, (9, 9)),
    ],
    ids=["shrinks", "shrinks the whole", "grows", "grows one side and shrinks the other"],
)
@pytest.mark.parametrize("kernel", ["bicubic", "bilinear"])
def test_whole_pixel_boxes_equal_torchvision_resized_crop(top, left, height, width, size, kernel):
    image = noise(1, 3, 32, 32)
    crop = box(top / 32, left / 32, height / 32, width / 32)
    found = resample(image, crop, size, kernel=kernel, fill="zero")
    mode = InterpolationMode(kernel)
    expected = tvf.resized_crop(image, top, left, height, width, list(size), mode, antialias=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_boxes_of_a_batch_equal_each_box_alone():
    image, draws = noise(5, 3, 12, 12), noise(5, 5)
    sampling = {"scale": (0.2, 0.9), "ratio": (0.75, 4 / 3), "hflip": True, "image_size": 12}
    crop = sample_resized_crop(draws, **sampling)
    together = resample(image, crop, (6, 6), kernel="bicubic", fill="zero")
    for i in range(5):
        alone = sample_resized_crop(draws[i : i + 1], **sampling)
        found = resample(image[i : i + 1], alone, (6, 6), kernel="bicubic", fill="zero")
        torch.testing.assert_close(found[0], together[i])


@pytest.mark.parametrize(("fill", "mode"), [("zero", "constant"), ("edge", "replicate")])
def test_padded_crop_equals_padding_and_slicing(fill, mode):
    image = noise(20, 3, 16, 16)
    draws = noise(20, 3)
    crop = sample_padded_crop(draws, padding_px=2, image_size=16, hflip=False)
    found = resample(image, crop, (16, 16), kernel="bicubic", fill=fill)
    padded = torch.nn.functional.pad(image, (2, 2, 2, 2), mode=mode)
    shifts = (draws[:, :2] * 5).floor().long().tolist()
    expected = torch.stack(
        [padded[i, :, y : y + 16, x : x + 16] for i, (y, x) in enumerate(shifts)]
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert len({tuple(shift) for shift in shifts}) > 5


def test_padded_crop_of_an_odd_size_is_whole_pixels_too():
    image = noise(30, 3, 28, 28)
    draws = noise(30, 3)
    crop = sample_padded_crop(draws, padding_px=3, image_size=28, hflip=False)
    found = resample(image, crop, (28, 28), kernel="bicubic", fill="zero")
    padded = torch.nn.functional.pad(image, (3, 3, 3, 3))
    shifts = (draws[:, :2] * 7).floor().long().tolist()
    expected = torch.stack(
        [padded[i, :, y : y + 28, x : x + 28] for i, (y, x) in enumerate(shifts)]
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_padded_crop_shifts_cover_every_pixel_of_the_padding_and_none_beyond():
    crop = sample_padded_crop(noise(500, 3), padding_px=4, image_size=32, hflip=True)
    assert set((crop.top * 32).tolist()) == set(range(-4, 5))
    assert set((crop.left * 32).tolist()) == set(range(-4, 5))
    assert crop.margin == 4 / 32
    assert 0.4 < crop.hflip.float().mean() < 0.6


def test_half_cell_shift_averages_two_cells():
    maps = torch.tensor([[0.0, 2.0, 4.0, 8.0]]).expand(1, 1, 4, 4).contiguous()
    one = torch.ones(1)
    crop = Geometry(
        top=0 * one, left=one / 8, height=one, width=one, hflip=one.bool() & False, margin=0.25
    )
    found = resample(maps, crop, (4, 4), kernel="bilinear", fill="edge")
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([1.0, 3.0, 6.0, 8.0]))


def test_mirroring_equals_torchvision_horizontal_flip():
    image = noise(1, 3, 9, 9)
    found = resample(image, box(0, 0, 1, 1, hflip=True), (9, 9), kernel="bicubic", fill="zero")
    torch.testing.assert_close(found, tvf.horizontal_flip(image), rtol=0, atol=1e-6)


def test_a_box_of_the_whole_image_leaves_it_as_it_is():
    image = noise(1, 3, 8, 8)
    found = resample(image, box(0, 0, 1, 1), (8, 8), kernel="bicubic", fill="zero")
    torch.testing.assert_close(found, image, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kernel", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [3, 8, 20])
def test_a_constant_map_stays_constant(kernel, size):
    crop = sample_resized_crop(
        noise(50, 5), scale=(0.01, 1.0), ratio=(0.5, 2.0), hflip=True, image_size=7
    )
    maps = torch.full((50, 2, 7, 7), 0.3)
    found = resample(maps, crop, (size, size), kernel=kernel, fill="edge")
    torch.testing.assert_close(found, torch.full((50, 2, size, size), 0.3), rtol=0, atol=1e-5)


def test_a_constant_map_stays_constant_under_padded_crops_with_edge_fill():
    crop = sample_padded_crop(noise(50, 3), padding_px=3, image_size=32, hflip=True)
    found = resample(torch.full((50, 2, 8, 8), 0.7), crop, (4, 4), kernel="bilinear", fill="edge")
    torch.testing.assert_close(found, torch.full((50, 2, 4, 4), 0.7), rtol=0, atol=1e-6)


def test_resized_crops_lie_inside_the_image_with_area_and_ratio_in_bounds():
    crop = sample_resized_crop(
        noise(2000, 5), scale=(0.2, 0.5), ratio=(0.75, 4 / 3), hflip=True, image_size=1000
    )
    area, ratio = crop.height * crop.width, crop.width / crop.height
    eps = 5e-3  # sides are rounded to whole pixels
    assert ((area > 0.2 - eps) & (area < 0.5 + eps)).all()
    assert ((ratio > 0.75 - eps) & (ratio < 4 / 3 + eps)).all()
    assert (crop.top >= 0).all()
    assert (crop.left >= 0).all()
    assert (crop.top + crop.height <= 1 + 1e-6).all()
    assert (crop.left + crop.width <= 1 + 1e-6).all()
    assert area.mean().item() == pytest.approx(0.35, abs=0.01)
    assert ratio.log().mean().item() == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize(("size", "steps"), [(8, 64), (28, 56), (32, 64), (48, 48), (64, 64)])
def test_boxes_of_small_images_lie_on_steps_and_reach_both_borders(size, steps):
    crop = sample_resized_crop(
        noise(4000, 5), scale=(0.2, 0.5), ratio=(0.75, 4 / 3), hflip=True, image_size=size
    )
    assert crop.steps == steps
    for value in (crop.top, crop.left, crop.height, crop.width):
        torch.testing.assert_close((value * steps).round() / steps, value, rtol=0, atol=1e-7)
    assert (crop.top == 0).any()
    assert (crop.top + crop.height == 1).any()
    assert len(crop.height.unique()) > 15


def test_draws_map_to_area_ratio_and_place_in_closed_form():
    draws = torch.tensor([[0.5, 1.0, 0.5, 0.25, 0.9]])
    settings = {"scale": (0.0, 0.25), "ratio": (0.5, 2.0), "hflip": True}
    crop = sample_resized_crop(draws, image_size=100, **settings)
    found = [x.item() for x in (crop.height, crop.width, crop.top, crop.left)]
    assert found == pytest.approx([0.25, 0.5, 0.5 * 0.75, 0.25 * 0.5])
    assert not crop.hflip.item()
    # On 64 steps, 16 by 32 of them: one of 49 rows and one of 33 columns is drawn.
    crop = sample_resized_crop(draws, image_size=32, **settings)
    found = [x.item() * 64 for x in (crop.height, crop.width, crop.top, crop.left)]
    assert found == pytest.approx([16, 32, 24, 8])


@pytest.mark.parametrize("size", [(8, 8), (16, 16)])
@pytest.mark.parametrize("kernel", ["bicubic", "bilinear"])
def test_tabled_weights_equal_computed_ones(size, kernel):
    image, draws = noise(40, 3, 16, 16), noise(40, 5)
    crops = [
        sample_resized_crop(draws, scale=(0.1, 1.0), ratio=(0.5, 2.0), hflip=True, image_size=16),
        sample_padded_crop(draws[:, 2:], padding_px=3, image_size=16, hflip=True),
    ]
    for crop in crops:
        tabled = resample(image, crop, size, kernel=kernel, fill="edge")
        computed = resample(image, replace(crop, steps=0), size, kernel=kernel, fill="edge")
        torch.testing.assert_close(tabled, computed, rtol=0, atol=1e-6)


def test_the_result_does_not_depend_on_how_the_images_lie_in_memory():
    image, draws = noise(4, 3, 16, 16), noise(4, 5)
    crop = sample_resized_crop(
        draws, scale=(0.2, 1.0), ratio=(0.75, 4 / 3), hflip=True, image_size=16
    )
    by_rows = image.transpose(1, 2).contiguous().transpose(1, 2)
    results = [resample(x, crop, (8, 8), kernel="bicubic", fill="zero") for x in (image, by_rows)]
    assert torch.equal(*results)


@pytest.mark.parametrize(("grid", "out"), [((4, 4), (8, 8)), ((8, 8), (8, 8)), ((3, 5), (2, 4))])
def test_a_map_whose_classes_are_neighbours_in_memory_is_moved_alike(grid, out):
    maps, draws = noise(6, 20, *grid), noise(6, 5)
    by_place = maps.contiguous(memory_format=torch.channels_last)
    padded = sample_padded_crop(draws[:, :3], padding_px=4, image_size=32, hflip=True)
    cut = sample_resized_crop(
        draws, scale=(0.2, 1.0), ratio=(0.75, 4 / 3), hflip=True, image_size=32
    )
    for crop in (padded, cut):
        one, other = (
            resample(x, crop, out, kernel="bilinear", fill="edge") for x in (maps, by_place)
        )
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("grid", [(8, 8), (3, 5), (1, 1)])
def test_bilinear_means_of_maps_equal_those_of_grid_sample(grid):
    maps, to_source = noise(6, 20, *grid), noise(6, 2, 3) * 3 - 1.5
    places = F.affine_grid(to_source, [6, 20, *grid], align_corners=False)
    expected = F.grid_sample(maps, places, padding_mode="border", align_corners=False)
    moved = warp(maps, to_source, nearest=False, fill="edge")
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)


ANGLE = math.radians(30)
TURN = torch.tensor(
    [[[math.cos(ANGLE), -math.sin(ANGLE), 0.0], [math.sin(ANGLE), math.cos(ANGLE), 0.0]]]
)


def test_a_quarter_turn_about_the_centre_is_rot90():
    quarter = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]])
    image = noise(1, 3, 8, 8)
    found = warp(image, quarter, nearest=False, fill="zero")
    torch.testing.assert_close(found, image.rot90(1, (2, 3)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("fill", "expected"), [("zero", 0.0), ("edge", 7.0)])
def test_what_a_shift_brings_in_is_black_or_the_nearest_cell(fill, expected):
    right = torch.tensor([[[1.0, 0.0, -0.5], [0.0, 1.0, 0.0]]])  # a quarter of the side
    found = warp(torch.full((1, 1, 8, 8), 7.0), right, nearest=True, fill=fill)
    assert found[0, 0, :, :2].unique().item() == expected
    assert found[0, 0, :, 2:].unique().item() == 7.0


def test_composed_transforms_are_the_inner_one_and_then_the_outer():
    # Coordinates are linear, so that bilinear sampling is exact where nothing enters.
    ramp = torch.linspace(-1, 1, 33)
    image = torch.stack([ramp.expand(33, 33), ramp[:, None].expand(33, 33)])[None]
    shift = torch.tensor([[[1.0, 0.0, 0.25], [0.0, 1.0, -0.125]]])
    step = warp(warp(image, shift, nearest=False, fill="edge"), TURN, nearest=False, fill="edge")
    once = warp(image, compose(TURN, shift), nearest=False, fill="edge")
    middle = (..., slice(13, 20), slice(13, 20))
    torch.testing.assert_close(once[middle], step[middle], rtol=0, atol=1e-5)
    other = warp(image, compose(shift, TURN), nearest=False, fill="edge")
    assert (other[middle] - step[middle]).abs().max() > 0.01


def test_no_box_is_mirrored_where_mirroring_is_off():
    draws = noise(100, 5)
    crop = sample_resized_crop(draws, scale=(0.2, 0.5), ratio=(1.0, 1.0), hflip=False, image_size=8)
    shift = sample_padded_crop(draws[:, :3], padding_px=1, image_size=8, hflip=False)
    assert not crop.hflip.any()
    assert not shift.hflip.any()
