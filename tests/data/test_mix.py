import pytest
import torch
from torchvision.transforms.v2 import CutMix

from smallvit.data import mix

pytestmark = pytest.mark.exact


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def mask(draws: torch.Tensor, size: tuple[int, int] = (32, 32), **options: float) -> torch.Tensor:
    settings = {"cutmix_alpha": 0.0, "mixup_alpha": 0.0, "prob": 1.0} | options
    return mix.sample_mask(draws, size=size, **settings)


def test_a_cutmix_box_is_torchvisions_for_the_same_share_and_centre():
    # torchvision draws lambda, the part that is kept, and the centre in whole pixels.
    for seed in range(30):
        torch.manual_seed(seed)
        params = CutMix(num_classes=2)
        x1, y1, x2, y2 = params.make_params([torch.zeros(2, 3, 24, 32)])["box"]
        torch.manual_seed(seed)
        kept = float(params._dist.sample(()))
        column, row = (int(torch.randint(size, ())) for size in (32, 24))
        draws = torch.tensor([[0.0, 0.0, 1 - kept, (row + 0.5) / 24, (column + 0.5) / 32]])
        found = mask(draws, (24, 32), cutmix_alpha=1.0)[0, 0]
        expected = torch.zeros(24, 32)
        expected[y1:y2, x1:x2] = 1
        assert torch.equal(found, expected)


def test_mixup_takes_an_even_share_of_the_partner():
    images, draws = noise(4, 3, 8, 8), noise(4, 5)
    found = mix.blend_partner(images, mask(draws, (8, 8), mixup_alpha=1.0))
    share = draws[:, 2, None, None, None]
    expected = images * (1 - share) + images.flip(0) * share
    torch.testing.assert_close(found, expected)


def test_cutmix_takes_each_pixel_from_one_of_the_two():
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 16, 16).contiguous()
    part = mask(noise(4, 5), (16, 16), cutmix_alpha=1.0)
    mixed = mix.blend_partner(images, part)
    assert set(part.unique().tolist()) == {0.0, 1.0}
    expected = torch.where(part.bool(), images.flip(0), images)
    assert torch.equal(mixed, expected)


def test_the_image_in_the_middle_of_an_odd_batch_stays_as_it_is():
    images = noise(3, 3, 8, 8)
    mixed = mix.blend_partner(images, mask(noise(3, 5), (8, 8), mixup_alpha=1.0))
    torch.testing.assert_close(mixed[1], images[1])
    assert torch.equal(mix.blend_partner(images[:1], torch.ones(1, 1, 8, 8)), images[:1])


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 2.0])
def test_shares_follow_the_beta_distribution(alpha):
    draws = noise(20_000, 5)
    share = mask(draws, (1, 1), mixup_alpha=alpha).flatten()
    assert share.mean().item() == pytest.approx(0.5, abs=0.01)
    assert share.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), abs=0.004)


def test_both_kinds_are_used_equally_often_and_one_alone_always():
    draws = noise(4000, 5)
    both = mask(draws, (8, 8), cutmix_alpha=1.0, mixup_alpha=1.0).flatten(1)
    even = (both == both[:, :1]).all(dim=1) & (both[:, 0] > 0) & (both[:, 0] < 1)
    assert even.float().mean().item() == pytest.approx(0.5, abs=0.03)
    alone = mask(draws, (8, 8), cutmix_alpha=1.0)
    assert set(alone.unique().tolist()) == {0.0, 1.0}


def test_images_are_mixed_with_the_given_probability():
    part = mask(noise(4000, 5), (4, 4), mixup_alpha=1.0, prob=0.3)
    assert (part.amax(dim=(1, 2, 3)) > 0).float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert mask(noise(50, 5), (4, 4), mixup_alpha=1.0, prob=0.0).max() == 0


def test_the_grid_mask_is_the_covered_part_of_each_cell():
    part = torch.zeros(1, 1, 8, 8)
    part[0, 0, :3, :4] = 1
    found = mix.mask_on_grid(part, (2, 2))
    torch.testing.assert_close(found[0, 0], torch.tensor([[0.75, 0.0], [0.0, 0.0]]))
    torch.testing.assert_close(found.mean(), part.mean())
