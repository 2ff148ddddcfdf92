import pytest
import torch
from torchvision.transforms.v2 import functional as tvf

from smallvit.core.errors import ConfigError
from smallvit.data import augment
from smallvit.data.config import AugmentConfig

pytestmark = pytest.mark.exact


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def jitter_draws(batch: int, **columns: float) -> torch.Tensor:
    """Draws that leave a colour as it is (0.5 is factor 1), but for the named columns."""
    names = ("brightness", "contrast", "saturation", "hue", "active")
    values = [columns.get(name, 0.5) for name in names]
    return torch.tensor(values).expand(batch, 5).contiguous()


def strength(**of: float) -> tuple[float, float, float, float]:
    return (of.get("brightness", 0.0), of.get("contrast", 0.0), of.get("saturation", 0.0), 0.0)


@pytest.mark.parametrize("draw", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_jitter_equals_torchvision_with_the_same_factor(name, draw):
    images = noise(3, 3, 8, 8)
    found = augment.jitter_color_(
        images.clone(), jitter_draws(3, **{name: draw}), strength=strength(**{name: 0.8}), prob=1.0
    )
    factor = 1 + (2 * draw - 1) * 0.8
    expected = torch.stack([getattr(tvf, f"adjust_{name}")(image, factor) for image in images])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 0.25, 0.4])
def test_turned_hue_equals_torchvision_adjust_hue(turn):
    images = torch.cat([noise(2, 3, 16, 16), torch.full((1, 3, 16, 16), 0.4)])
    found = augment.turn_hue(images, torch.full((3,), turn))
    torch.testing.assert_close(found, tvf.adjust_hue(images, turn), rtol=0, atol=2e-3)


def test_jitter_turns_the_hue_by_its_draw():
    images = noise(2, 3, 8, 8)
    found = augment.jitter_color_(
        images.clone(), jitter_draws(2, hue=0.75), strength=(0.0, 0.0, 0.0, 0.4), prob=1.0
    )
    torch.testing.assert_close(found, tvf.adjust_hue(images, 0.2), rtol=0, atol=2e-3)


def test_a_third_of_the_circle_sends_red_to_green():
    red = torch.tensor([1.0, 0.0, 0.0])[None, :, None, None]
    found = augment.turn_hue(red, torch.full((1,), 1 / 3))
    torch.testing.assert_close(found.flatten(), torch.tensor([0.0, 1.0, 0.0]), rtol=0, atol=1e-5)


def test_jitter_changes_only_the_images_whose_draw_is_below_the_probability():
    images = noise(2, 3, 4, 4)
    draws = jitter_draws(2, brightness=0.0)
    draws[:, 4] = torch.tensor([0.29, 0.31])
    found = augment.jitter_color_(images.clone(), draws, strength=(0.5, 0.5, 0.5, 0.1), prob=0.3)
    assert not torch.equal(found[0], images[0])
    torch.testing.assert_close(found[1], images[1], rtol=0, atol=1e-6)


def test_jitter_with_probability_or_strength_zero_changes_nothing():
    images, draws = noise(2, 3, 4, 4), jitter_draws(2, brightness=0.9, active=0.0)
    full = (0.4, 0.4, 0.4, 0.1)
    assert torch.equal(
        augment.jitter_color_(images.clone(), draws, strength=full, prob=0.0), images
    )
    none = (0.0, 0.0, 0.0, 0.0)
    assert torch.equal(
        augment.jitter_color_(images.clone(), draws, strength=none, prob=1.0), images
    )


def test_colours_stay_in_range_under_the_strongest_jitter():
    images, draws = noise(64, 3, 4, 4), noise(64, 5)
    found = augment.jitter_color_(images.clone(), draws, strength=(1.0, 1.0, 1.0, 0.5), prob=1.0)
    assert found.min() >= -1e-6
    assert found.max() <= 1 + 1e-6


def test_grey_equals_torchvision_rgb_to_grayscale():
    images = noise(2, 3, 8, 8)
    torch.testing.assert_close(augment.grey(images), tvf.rgb_to_grayscale(images))


def test_colour_is_dropped_from_the_chosen_images_only():
    images = noise(2, 3, 8, 8)
    found = augment.drop_color_(images.clone(), torch.tensor([True, False]))
    torch.testing.assert_close(found[0], tvf.rgb_to_grayscale(images[0], num_output_channels=3))
    assert torch.equal(found[1], images[1])


def test_solarize_equals_torchvision_in_the_chosen_images_only():
    images = noise(2, 3, 8, 8)
    images[0, 0, 0, 0] = 0.5
    found = augment.solarize_(images.clone(), torch.tensor([True, False]))
    torch.testing.assert_close(found[0], tvf.solarize(images[0], 0.5))
    assert torch.equal(found[1], images[1])


@pytest.mark.parametrize("sigma", [0.1, 1.0, 2.0])
@pytest.mark.parametrize("shape", [(16, 16), (12, 20)])
def test_blur_equals_torchvision_gaussian_blur_with_a_wide_kernel(sigma, shape):
    images = noise(2, 3, *shape)
    found = augment.blur(images, torch.tensor([sigma, 0.7]))
    for image, blurred, width in zip(images, found, (sigma, 0.7), strict=True):
        expected = tvf.gaussian_blur(image, kernel_size=[23, 23], sigma=[width, width])
        torch.testing.assert_close(blurred, expected, rtol=0, atol=1e-5)


def test_blur_keeps_a_constant_image_constant():
    images = torch.full((1, 3, 8, 8), 0.6)
    torch.testing.assert_close(augment.blur(images, torch.tensor([1.5])), images)


def test_only_the_chosen_images_change_each_by_its_own_parameter():
    images, factor = noise(4, 3, 4, 4), torch.tensor([2.0, 3.0, 4.0, 5.0])
    chosen = torch.tensor([True, False, True, False])
    found = augment.change_chosen_(
        images.clone(), chosen, lambda part, by: part * by[:, None, None, None], factor
    )
    expected = images * torch.tensor([2.0, 1.0, 4.0, 1.0])[:, None, None, None]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("turn", [-0.1, 0.0, 0.05, 0.1])
def test_a_small_turn_needs_no_channel_renamed(turn):
    images = noise(2, 3, 16, 16)
    found = augment.turn_hue(images, torch.full((2,), turn), limit=0.1)
    torch.testing.assert_close(found, tvf.adjust_hue(images, turn), rtol=0, atol=2e-3)


def test_bytes_are_scaled_and_normalised_in_closed_form():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8)[None, :, None, None]
    mean, std = torch.tensor([0.0, 0.1, 0.5]), torch.tensor([1.0, 0.2, 0.25])
    found = augment.normalize(augment.to_float(images), mean, std)
    torch.testing.assert_close(found.flatten(), torch.tensor([0.0, 0.5, 2.0]))


def test_erased_rectangle_is_zero_of_bounded_area_and_leaves_the_rest():
    images, draws = noise(200, 3, 64, 64) + 1, noise(200, 5)
    found = augment.erase_(images.clone(), draws, prob=1.0)
    hit = (found == 0).all(dim=1)
    area = hit.float().mean(dim=(1, 2))
    # Half a pixel of rounding on sides of at least 5 pixels.
    assert area.min() > 0.02 * 0.8
    assert area.max() < 0.4 * 1.1
    sides = hit.any(dim=2).sum(dim=1) * hit.any(dim=1).sum(dim=1)
    assert torch.equal(hit.sum(dim=(1, 2)), sides)  # a full rectangle
    assert torch.equal(
        found[~hit[:, None].expand_as(found)], images[~hit[:, None].expand_as(images)]
    )


def test_an_erased_rectangle_is_torchvisions_for_the_same_box():
    images, draws = noise(20, 3, 32, 32) + 1, noise(20, 5)
    found = augment.erase_(images.clone(), draws, prob=1.0)
    for image, erased in zip(images, found, strict=True):
        rows, columns = (erased[0] == 0).nonzero().T
        top, left = int(rows.min()), int(columns.min())
        height, width = int(rows.max()) - top + 1, int(columns.max()) - left + 1
        expected = tvf.erase(image, top, left, height, width, torch.zeros(3, 1, 1))
        assert torch.equal(erased, expected)


def test_erase_reaches_every_border():
    hit = augment.erase_(torch.ones(500, 3, 16, 16), noise(500, 5), prob=1.0)[:, 0] == 0
    for edge in (hit[:, 0], hit[:, -1], hit[:, :, 0], hit[:, :, -1]):
        assert edge.any()


def rejected(side: int, num: int) -> torch.Tensor:
    """Sides of rectangles by hananshafi/vits-for-small-scale-datasets@43a7493, random_erasing.py.

    Area and aspect are uniform, and drawn again until both sides are shorter than the image's.
    """
    generator = torch.Generator().manual_seed(1)
    area, aspect = torch.rand(2, num, generator=generator, dtype=torch.float64)
    area, aspect = (0.02 + 0.38 * area) * side**2, 0.3 + (1 / 0.3 - 0.3) * aspect
    sides = torch.stack([(area * aspect).sqrt().round(), (area / aspect).sqrt().round()])
    return sides[:, (sides < side).all(dim=0)]


@pytest.mark.parametrize("side", [16, 32, 33])
def test_uniformly_erased_rectangles_are_those_of_redrawing_what_does_not_fit(side):
    hit = (
        augment.erase_(
            torch.ones(20_000, 3, side, side), noise(20_000, 5), prob=1.0, aspect="uniform"
        )[:, 0]
        == 0
    )
    found = torch.stack([hit.any(dim=2).sum(dim=1), hit.any(dim=1).sum(dim=1)]).double()
    expected = rejected(side, 400_000)
    assert found.max() == side - 1
    for ours, theirs in ((found, expected), (found.prod(0), expected.prod(0))):
        torch.testing.assert_close(ours.mean(-1), theirs.mean(-1), rtol=0.01, atol=0)
        torch.testing.assert_close(ours.std(-1), theirs.std(-1), rtol=0.02, atol=0)
    assert found[0].mean() > 1.2 * found[1].mean()  # most are tall


def test_erase_spares_images_whose_draw_is_not_below_the_probability():
    images, draws = torch.ones(2, 3, 16, 16), torch.full((2, 5), 0.5)
    draws[:, 4] = torch.tensor([0.24, 0.25])
    found = augment.erase_(images.clone(), draws, prob=0.25)
    assert (found[0] == 0).any()
    assert torch.equal(found[1], images[1])
    assert torch.equal(augment.erase_(images.clone(), 0 * draws, prob=0.0), images)


@pytest.mark.parametrize("name", ["scale", "ratio"])
def test_bounds_in_the_wrong_order_are_refused(name):
    with pytest.raises(ConfigError, match=rf"augment\.{name} must be \(low, high\)"):
        AugmentConfig(**{name: (0.9, 0.5)})
