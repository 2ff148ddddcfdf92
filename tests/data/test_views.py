from dataclasses import replace
from pathlib import Path

import pytest
import torch

from smallvit.core import rng
from smallvit.core.errors import ConfigError
from smallvit.data import geometry, mix, policies
from smallvit.data.batches import LabeledBatch, TokenBox, ViewBatch
from smallvit.data.config import AugmentConfig, ViewsConfig
from smallvit.data.dataset import Dataset, Split
from smallvit.data.files.config import DataConfig
from smallvit.data.files.load import load_dataset
from smallvit.data.order import Draw, Order
from smallvit.data.views import LabeledBatches, ViewBatches, eval_batches, sample_token_box

pytestmark = pytest.mark.exact

CPU = torch.device("cpu")
SIDE = 16


def dataset(images: torch.Tensor, *, hflip: bool = True) -> Dataset:
    """All images for training; the labelled split is every second one, from the last to the first.

    Mean 0 and standard deviation 1, so that normalised images are the images.
    """
    num = len(images)
    labels = torch.arange(num)
    train = Split(images=images, labels=labels, index=torch.arange(num))
    labelled = Split(images=images, labels=labels, index=torch.arange(num - 1, -1, -2))
    return Dataset(
        name="made",
        class_names=tuple(map(str, range(num))),
        image_size=SIDE,
        splits={"train": train, "labelled": labelled},
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        hflip=hflip,
        fingerprint="",
        split_hashes={},
        broken=(),
        store_path=Path(),
    )


def noise_dataset(num: int = 12, *, hflip: bool = True) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (num, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    return dataset(pixels, hflip=hflip)


def ramp_dataset(num: int = 12) -> Dataset:
    """Rows, columns and the image's number as colours: linear, so that every kernel agrees."""
    ramp = torch.arange(SIDE) * 10
    rows, columns = ramp[:, None].expand(SIDE, SIDE), ramp.expand(SIDE, SIDE)
    images = [torch.stack([rows, columns, torch.full_like(rows, 20 * i)]) for i in range(num)]
    return dataset(torch.stack(images).to(torch.uint8))


def view_batches(data: Dataset, *, seed: int = 0, batch_size: int = 4, **changes) -> ViewBatches:
    order = Order(len(data.splits["train"]), batch_size, seed, CPU)
    return ViewBatches(data, order, ViewsConfig(**({"num_local": 2} | changes)), total_steps=10)


def labelled_batches(data: Dataset, *, seed: int = 0, batch_size: int = 6, **changes):
    keys = ("score_maps", "grid", "mix_token")
    options = {key: changes.pop(key) for key in keys if key in changes}
    repeats = changes.get("repeats", 1)
    order = Order(len(data.splits["labelled"]), batch_size, seed, CPU, repeats=repeats)
    return LabeledBatches(data, order, AugmentConfig(**changes), **options)


def own_images(data: Dataset):
    """Read as the score map of a labelled sample the sample's own image."""
    split = data.splits["labelled"]
    return lambda position: split.images[split.index[position]].float() / 255


MOVING = [policies.CODE[name] for name in policies.GEOMETRIC]


def drawn_operations(batches: LabeledBatches, draw: Draw) -> policies.Operations:
    """Sample again what the policy of a batch did."""
    first = 5 + 5 + 5 + mix.NUM_DRAWS
    num = first + policies.num_draws(batches.policy, batches.config.randaugment_ops)
    draws = rng.uniform(batches.order.seed, "augment", draw.epoch, draw.position, num)
    return policies.sample_operations(
        batches.policy,
        draws[:, first:],
        num_ops=batches.config.randaugment_ops,
        magnitude=batches.config.randaugment_magnitude,
        image_size=SIDE,
        rules=batches.config.autoaugment_rules,
    )


def equal(a: ViewBatch | LabeledBatch, b: ViewBatch | LabeledBatch) -> bool:
    pairs = zip(vars(a).values(), vars(b).values(), strict=True)
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


def test_views_of_a_step_are_the_same_when_made_twice_and_by_a_fresh_object():
    used, fresh = view_batches(noise_dataset()), view_batches(noise_dataset())
    first = used(4)
    used(0)
    assert equal(used(4), first)
    assert equal(fresh(4), first)


def test_labelled_batch_of_a_step_is_the_same_when_made_twice_and_by_a_fresh_object():
    data = noise_dataset()
    options = {
        "color_jitter": (0.4, 0.4, 0.4, 0.1),
        "erasing_prob": 0.5,
        "mix_token": True,
        "score_maps": own_images(data),
        "grid": (4, 4),
    }
    used, fresh = (labelled_batches(data, **options) for _ in range(2))
    first = used(3)
    used(0)
    assert equal(used(3), first)
    assert equal(fresh(3), first)


@pytest.mark.parametrize(
    "rules", [{}, {"autoaugment_rules": "deepvoltaire", "erasing_aspect": "uniform"}]
)
def test_making_steps_together_changes_no_image(rules):
    data = noise_dataset(24)
    options = rules | {
        "policy": "autoaugment-imagenet",
        "color_jitter": (0.4, 0.4, 0.4, 0.1),
        "erasing_prob": 0.5,
        "cutmix_alpha": 1.0,
        "repeats": 2,
    }
    together, alone = (labelled_batches(data, **options) for _ in range(2))
    alone.block_steps = 1
    assert together.block_steps > 4
    for step in (3, 0, 4):
        assert equal(together(step), alone(step))


def test_seed_and_step_change_the_views():
    first = view_batches(noise_dataset())(0).global_views
    assert not torch.equal(first, view_batches(noise_dataset(), seed=1)(0).global_views)
    assert not torch.equal(first, view_batches(noise_dataset())(1).global_views)


def test_an_image_gets_the_same_views_in_any_batch():
    # All of the first pass in one step, or in three: the same views in the same order.
    whole = view_batches(noise_dataset(), batch_size=12)(0).global_views
    parts = [view_batches(noise_dataset(), batch_size=4)(step).global_views for step in range(3)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


def test_views_have_their_sizes_and_the_progress_of_the_step():
    batch = view_batches(noise_dataset(), num_local=3, local_size=0.5)(6)
    assert batch.global_views.shape == (2, 4, 3, SIDE, SIDE)
    assert batch.local_views is not None
    assert batch.local_views.shape == (3, 4, 3, SIDE // 2, SIDE // 2)
    assert (batch.epoch, batch.progress) == (2.0, 0.6)


def test_views_of_one_image_differ_from_each_other():
    batch = view_batches(noise_dataset(), num_local=3)(0)
    assert batch.local_views is not None
    for views in (batch.global_views, batch.local_views):
        distance = torch.cdist(views.flatten(2).transpose(0, 1), views.flatten(2).transpose(0, 1))
        off = distance + torch.eye(len(views)) * 1e9
        assert off.min() > 0.1


def test_without_local_views_there_are_none():
    assert view_batches(noise_dataset(), num_local=0)(0).local_views is None


def test_views_without_colour_changes_are_crops_of_the_image():
    data = ramp_dataset()
    plain = {"color_jitter_prob": 0.0, "grey_prob": 0.0, "solarize_prob": 0.0}
    batches = view_batches(data, blur_prob=(0.0, 0.0, 0.0), **plain)
    batch, draw = batches(0), batches.order.draw(0)
    shade = draw.position * 20 / 255
    expected = shade[None, :, None, None].expand(2, -1, SIDE, SIDE)
    torch.testing.assert_close(batch.global_views[:, :, 2], expected, rtol=0, atol=1e-5)
    rows, columns = batch.global_views[:, :, 0], batch.global_views[:, :, 1]
    assert (rows.diff(dim=2) > -1e-5).all()
    assert rows.std(dim=3).max() < 1e-5
    assert columns.std(dim=2).max() < 1e-5


def test_views_are_mirrored_only_where_the_class_survives_it():
    def mirrored(hflip: bool) -> torch.Tensor:
        data = ramp_dataset()
        data = Dataset(**(vars(data) | {"hflip": hflip}))
        plain = {"color_jitter_prob": 0.0, "grey_prob": 0.0, "solarize_prob": 0.0}
        batch = view_batches(data, batch_size=12, blur_prob=(0.0, 0.0, 0.0), **plain)(0)
        return batch.global_views[:, :, 1, 0, 0] > batch.global_views[:, :, 1, 0, -1]

    assert not mirrored(False).any()
    assert 4 <= mirrored(True).sum() <= 20


def test_digits_are_never_mirrored(tmp_path):
    data = load_dataset(DataConfig(dataset="digits"), data_dir=tmp_path, cache_dir=tmp_path)
    batches = labelled_batches(data, batch_size=64, crop="none")
    batch, draw = batches(0), batches.order.draw(0)
    split = data.splits["labelled"]
    pixels = split.images[split.index[draw.position]].float() / 255
    mean = torch.tensor(data.mean)[:, None, None]
    std = torch.tensor(data.std)[:, None, None]
    assert data.hflip is False
    torch.testing.assert_close(batch.images, (pixels - mean) / std)
    assert torch.equal(batch.labels, split.labels[split.index[draw.position]])


def test_score_maps_are_shifted_and_mirrored_like_their_image():
    data = noise_dataset()
    batch = labelled_batches(
        data, crop="pad", padding=0.25, score_maps=own_images(data), grid=(SIDE, SIDE)
    )(0)
    assert batch.score_maps is not None
    # What the shift brings in is black in the image and the nearest cell in the map.
    inside = (batch.images != 0).any(dim=1, keepdim=True).expand_as(batch.images)
    torch.testing.assert_close(batch.score_maps[inside], batch.images[inside], rtol=0, atol=1e-5)
    assert 0.5 < inside.float().mean() < 1


def test_score_maps_are_cropped_and_mirrored_like_their_image():
    data = ramp_dataset()
    batch = labelled_batches(
        data, crop="resized", score_maps=own_images(data), grid=(SIDE, SIDE), batch_size=30
    )(0)
    assert batch.score_maps is not None
    inner = (..., slice(5, -5), slice(5, -5))  # where no kernel meets the border of a crop
    torch.testing.assert_close(batch.score_maps[inner], batch.images[inner], rtol=0, atol=1e-4)
    assert batch.images[:, 1, 8].std(dim=0).max() > 0.05  # the crops do differ


def test_score_maps_on_a_coarse_grid_follow_the_quadrants_of_the_image():
    data = ramp_dataset()
    batch = labelled_batches(
        data, crop="resized", score_maps=own_images(data), grid=(2, 2), batch_size=30
    )(0)
    assert batch.score_maps is not None
    pooled = torch.nn.functional.adaptive_avg_pool2d(batch.images, 2)
    torch.testing.assert_close(
        batch.score_maps, pooled, rtol=0, atol=0.05
    )  # a triangle is wider than a box


def quadrant_dataset(side: int, num: int = 1000) -> Dataset:
    """Equal images: red is full on the right, green at the bottom, blue everywhere.

    The middle row and column of an odd side are half each.
    """
    share = ((torch.arange(side) + 0.5 - side / 2).clamp(-0.5, 0.5) + 0.5) * 255
    columns, rows = share.expand(side, side), share[:, None].expand(side, side)
    image = torch.stack([columns, rows, torch.full((side, side), 255.0)])
    data = dataset(image.round().to(torch.uint8).expand(num, -1, -1, -1).contiguous())
    return replace(data, image_size=side)


def quadrant_maps(cells: int):
    maps = torch.zeros(4, cells, cells)
    half = cells // 2
    for i in range(4):
        top, left = half * (i // 2), half * (i % 2)
        maps[i, top : top + half, left : left + half] = 1
    return lambda position: maps.expand(len(position), -1, -1, -1)


def share_of_pixels(tokens: int, side: int) -> torch.Tensor:
    """Part that each pixel of an axis has of each token of it."""
    first = torch.arange(tokens)[:, None] * side / tokens
    pixel = torch.arange(side)
    part = torch.minimum(pixel + 1, first + side / tokens) - torch.maximum(pixel, first)
    return part.clamp(min=0) * tokens / side


@pytest.mark.parametrize("odd", [0, 1])
@pytest.mark.parametrize("grid", [4, 7, 8, 14])
@pytest.mark.parametrize("crop", ["pad", "resized"])
def test_every_token_of_four_coloured_quadrants_has_the_label_of_its_colour(crop, grid, odd):
    """500 crops and mirrors: the colour that most of a token shows is its likeliest class."""
    side = 4 * grid + odd
    batches = labelled_batches(
        quadrant_dataset(side), crop=crop, scale=(0.2, 1.0), batch_size=500, grid=(grid, grid)
    )
    for cells in (2, 4, 8, 16):
        batches.score_maps = quadrant_maps(cells)
        batch = batches(0)
        assert batch.score_maps is not None
        share = share_of_pixels(grid, side)
        red, green, blue = (share @ batch.images @ share.mT).unbind(1)
        right, bottom = red / blue.clamp(min=1e-6), green / blue.clamp(min=1e-6)
        # Not what lies half on either side, or in the black that a shift brought in.
        clear = (blue > 0.3) & ((right - 0.5).abs() > 0.05) & ((bottom - 0.5).abs() > 0.05)
        expected = 2 * (bottom > 0.5).long() + (right > 0.5)
        assert clear.float().mean() > 0.7
        assert torch.equal(batch.score_maps.argmax(dim=1)[clear], expected[clear])


def test_images_are_cropped_by_the_geometry_of_their_draws():
    data = noise_dataset()
    batches = labelled_batches(data, crop="resized", scale=(0.35, 1.0))
    draw = batches.order.draw(2)
    draws = rng.uniform(0, "augment", draw.epoch, draw.position, 5)
    where = geometry.sample_resized_crop(
        draws, scale=(0.35, 1.0), ratio=(0.75, 4 / 3), hflip=True, image_size=SIDE
    )
    images = own_images(data)(draw.position)
    expected = geometry.resample(images, where, (SIDE, SIDE), kernel="bicubic", fill="zero")
    torch.testing.assert_close(batches(2).images, expected.clamp(0, 1))


@pytest.mark.parametrize("policy", ["autoaugment-svhn", "randaugment", "trivialaugment"])
def test_score_maps_are_warped_like_their_image(policy):
    data = ramp_dataset()
    batches = labelled_batches(
        data,
        crop="none",
        policy=policy,
        randaugment_ops=1,
        score_maps=own_images(data),
        grid=(SIDE, SIDE),
        batch_size=60,
        repeats=5,
    )
    batch, draw = batches(0), batches.order.draw(0)
    assert batch.score_maps is not None
    operations = drawn_operations(batches, draw)
    moved = torch.isin(operations.code, torch.tensor(MOVING)).any(dim=1)
    colour = ((operations.code != 0) & ~torch.isin(operations.code, torch.tensor(MOVING))).any(1)
    alone = moved & ~colour
    # The image takes the nearest pixel, the map the mean of four: half a pixel of 10 levels.
    inside = (batch.images[alone] > 0).all(dim=1, keepdim=True)
    off = ((batch.images[alone] - batch.score_maps[alone]).abs() * inside)[:, :2]
    assert off.max() < 11 / 255
    assert alone.sum() >= 5
    assert inside.float().mean() > 0.3
    away = (batch.score_maps[moved] - own_images(data)(draw.position)[moved]).abs().amax((1, 2, 3))
    assert (away > 0.02).float().mean() > 0.7


def test_a_policy_is_applied_to_the_cropped_image():
    data = noise_dataset()
    batches = labelled_batches(data, crop="none", policy="randaugment")
    batch, draw = batches(0), batches.order.draw(0)
    images = labelled_batches(data, crop="none")(0).images
    expected = policies.apply_operations(images, drawn_operations(batches, draw))
    torch.testing.assert_close(batch.images, expected)


def test_autoaugment_is_applied_by_the_rules_of_the_settings():
    """What DeepVoltaire's moves bring in is grey; the map moves by the same whole pixels."""
    data = dataset(torch.full((24, 3, SIDE, SIDE), 255, dtype=torch.uint8))
    settings = {"crop": "none", "policy": "autoaugment-svhn", "batch_size": 96, "repeats": 8}
    black, grey = (
        labelled_batches(data, autoaugment_rules=rules, **settings)
        for rules in ("torchvision", "deepvoltaire")
    )
    operations = drawn_operations(grey, grey.order.draw(0))
    quiet = torch.tensor([*MOVING, policies.CODE["identity"]])
    alone = torch.isin(operations.code, quiet).all(dim=1) & (operations.code != 0).any(dim=1)
    assert alone.sum() >= 2
    assert ((grey(0).images[alone] * 255).round().unique()).tolist() == [128.0, 255.0]
    assert (black(0).images[alone] * 255).round().min() == 0


def test_autoaugment_takes_the_policy_of_the_dataset():
    named = Dataset(**(vars(noise_dataset()) | {"autoaugment": "svhn"}))
    assert labelled_batches(named, policy="autoaugment").policy == "autoaugment-svhn"
    assert labelled_batches(noise_dataset(), policy="autoaugment").policy == "autoaugment-imagenet"


def test_mixed_images_score_maps_and_shares_agree():
    data = noise_dataset()
    options = {"crop": "none", "score_maps": own_images(data), "grid": (SIDE, SIDE)}
    plain = labelled_batches(data, **options)(0)
    for alphas in ({"cutmix_alpha": 1.0}, {"mixup_alpha": 0.8}):
        mixed = labelled_batches(data, **options, **alphas)(0)
        assert mixed.score_maps is not None
        assert mixed.partner_share is not None
        torch.testing.assert_close(mixed.score_maps, mixed.images)
        share = mixed.partner_share[:, None, None, None]
        expected = torch.lerp(plain.images, plain.images.flip(0), share).mean(dim=(1, 2, 3))
        tolerance = 0.05 if "cutmix_alpha" in alphas else 1e-5  # noise: a box is near the mean
        torch.testing.assert_close(
            mixed.images.mean(dim=(1, 2, 3)), expected, rtol=0, atol=tolerance
        )


def test_repeated_images_are_augmented_anew_each_time():
    data = noise_dataset(24)
    batches = labelled_batches(data, repeats=3, batch_size=6)
    batch = batches(0)
    assert batch.labels[:3].unique().numel() == batch.labels[3:].unique().numel() == 1
    for i, j in ((0, 1), (1, 2), (3, 4)):
        assert not torch.equal(batch.images[i], batch.images[j])


def test_labels_are_those_of_the_labelled_images():
    data = ramp_dataset()
    batch = labelled_batches(data, crop="none")(1)
    assert torch.equal((batch.images[:, 2, 0, 0] * 255 / 20).round().long(), batch.labels)
    assert set(batch.labels.tolist()) == {1, 3, 5, 7, 9, 11}


def test_without_score_maps_and_mixing_there_are_none():
    batch = labelled_batches(noise_dataset())(0)
    assert batch.score_maps is None
    assert batch.mix_box is None


@pytest.mark.parametrize("grid", [(8, 8), (4, 14), (1, 1)])
def test_a_token_box_lies_inside_the_grid(grid):
    for step in range(200):
        box = sample_token_box(0, step, grid)
        assert 0 <= box.top <= box.bottom <= grid[0]
        assert 0 <= box.left <= box.right <= grid[1]


def test_the_area_drawn_for_a_token_box_is_uniform():
    areas = torch.tensor([rng.scalar(0, "mix_token", step, 3)[0] for step in range(2000)])
    assert areas.mean().item() == pytest.approx(1 / 2, abs=0.03)
    assert areas.var().item() == pytest.approx(1 / 12, abs=0.01)


def test_a_token_box_that_meets_no_border_has_the_area_drawn_in_even_sides():
    seen = 0
    for step in range(100):
        box = sample_token_box(0, step, (100, 100))
        if 0 < box.top < box.bottom < 100 and 0 < box.left < box.right < 100:
            side = int(100 * rng.scalar(0, "mix_token", step, 3)[0] ** 0.5) // 2 * 2
            assert (box.bottom - box.top, box.right - box.left) == (side, side)
            seen += 1
    assert seen > 10


def test_the_mean_area_of_clipped_token_boxes_is_that_of_cutmix():
    # A side s centred uniformly keeps s - s^2/4; squared, with s^2 uniform: 1/2 - 1/5 + 1/48.
    areas = [sample_token_box(0, step, (1000, 1000)).area / 1e6 for step in range(2000)]
    assert sum(areas) / len(areas) == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.02)


@pytest.mark.parametrize(("side", "share"), [(8, 0.234), (14, 0.270)])
def test_token_boxes_are_those_of_the_papers_code(side, share):
    """zihangJiang/TokenLabeling@9dbfd59, tlt/models/lvvit.py:43-59, over all it can draw."""
    cut = (side * (torch.arange(10_000) / 10_000).sqrt()).floor()  # int(W * cut_rat)
    centre = torch.arange(side)
    half = (cut / 2).floor()[:, None]  # cut_w // 2
    length = (centre + half).clamp(max=side) - (centre - half).clamp(min=0)
    expected = (length.mean(dim=1) ** 2).mean() / side**2
    assert expected == pytest.approx(share, abs=0.002)
    areas = [sample_token_box(0, step, (side, side)).share for step in range(8000)]
    assert sum(areas) / len(areas) == pytest.approx(expected.item(), abs=0.01)


def test_area_of_a_token_box_is_its_number_of_tokens():
    assert TokenBox(top=1, left=2, bottom=4, right=7, grid=(8, 8)).area == 15


def test_evaluation_walks_a_split_once_in_order():
    data = ramp_dataset(7)
    batches = list(eval_batches(data, data.splits["train"], 3))
    assert [len(labels) for _, labels in batches] == [3, 3, 1]
    assert torch.cat([labels for _, labels in batches]).tolist() == list(range(7))
    images = torch.cat([images for images, _ in batches])
    torch.testing.assert_close(images, data.splits["train"].images.float() / 255)


@pytest.mark.parametrize("name", ["global_scale", "local_scale", "ratio", "blur_sigma"])
def test_bounds_in_the_wrong_order_are_refused(name):
    with pytest.raises(ConfigError, match=rf"method\.views\.{name} must be \(low, high\)"):
        ViewsConfig(**{name: (0.9, 0.5)})
