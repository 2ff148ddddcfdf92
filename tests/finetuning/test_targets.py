import math

import pytest
import torch

from smallvit.finetuning.config import TokenLabelConfig
from smallvit.finetuning.online import fit_grid
from smallvit.finetuning.targets import image_target, smooth, token_targets

MAPS = torch.tensor([[[[0.6, 0.2]], [[0.3, 0.2]], [[0.1, 0.6]]]])  # (1, 3, 1, 2)
POOLED = torch.tensor([[0.4, 0.25, 0.35]])


def one_hot(index: int) -> torch.Tensor:
    return torch.eye(3)[[index]]


def test_the_pooled_target_is_the_mean_of_the_map():
    found = image_target(one_hot(2), MAPS, "pooled", smoothing=0.0)
    torch.testing.assert_close(found, POOLED)


def test_the_pooled_target_is_smoothed_as_labels_are():
    found = image_target(one_hot(2), MAPS, "pooled", smoothing=0.3)
    torch.testing.assert_close(found, 0.7 * POOLED + 0.1)


@pytest.mark.parametrize(("label", "part"), [(0, 0.5), (1, 0.9), (2, 0.9)])
def test_a_blend_trusts_the_map_more_where_it_disagrees_with_the_label(label, part):
    """Parts of zihangJiang/TokenLabeling@9dbfd59, tlt/loss/cross_entropy.py."""
    found = image_target(one_hot(label), MAPS, "blend", smoothing=0.0)
    torch.testing.assert_close(found, part * POOLED + (1 - part) * one_hot(label))


def test_the_label_stays_as_it_is():
    labels = smooth(one_hot(1), 0.1)
    assert image_target(labels, MAPS, "label", smoothing=0.1) is labels


def test_soft_token_targets_are_the_teachers_and_hard_ones_its_likeliest_class():
    prob = MAPS.flatten(2).mT
    assert token_targets(prob, "soft", smoothing=0.0) is prob
    assert token_targets(prob, "hard", smoothing=0.0).tolist() == [[[1, 0, 0], [0, 0, 1]]]


def test_token_targets_are_smoothed():
    found = token_targets(MAPS.flatten(2).mT, "hard", smoothing=0.3)
    torch.testing.assert_close(found[0, 0], torch.tensor([0.8, 0.1, 0.1]))


def test_drawn_token_targets_come_as_often_as_the_teacher_says():
    """30,000 draws: three standard deviations are below 0.009."""
    torch.manual_seed(0)
    prob = torch.tensor([0.6, 0.3, 0.1, 0.0]).expand(30_000, 4)
    drawn = token_targets(prob, "gumbel", smoothing=0.0)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(drawn.sum(dim=1), torch.ones(30_000))
    torch.testing.assert_close(drawn.mean(dim=0), prob[0], atol=0.009, rtol=0)
    assert drawn[:, 3].sum() == 0


def test_drawn_token_targets_are_those_of_torchs_seed():
    prob = torch.rand(50, 4).softmax(dim=1)
    torch.manual_seed(1)
    first = token_targets(prob, "gumbel", smoothing=0.0)
    torch.manual_seed(1)
    assert torch.equal(token_targets(prob, "gumbel", smoothing=0.0), first)


@pytest.mark.parametrize("grid", [(1, 1), (4, 4), (2, 8), (7, 3)])
def test_maps_on_another_grid_are_still_distributions(grid):
    maps = torch.randn(2, 5, 3, 4).softmax(dim=1)
    found = fit_grid(maps, grid)
    assert found.shape == (2, 5, *grid)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2, *grid))


def test_on_a_coarser_grid_each_place_is_a_mean_of_what_it_covers():
    """Triangle of width 4 over 4 cells: weights 1, 3, 3, 1 of those inside, made to sum to 1."""
    row = torch.tensor([1.0, 0.0, 0.0, 0.0])
    maps = torch.stack([row, 1 - row])[None, :, None, :].expand(1, 2, 4, 4)
    found = fit_grid(maps, (2, 2))[0, 0]
    torch.testing.assert_close(found, torch.tensor([[3 / 7, 0.0], [3 / 7, 0.0]]))


def test_maps_on_the_students_grid_are_taken_as_they_are():
    assert fit_grid(MAPS, (1, 2)) is MAPS


@pytest.mark.parametrize(
    ("decay", "progress", "share"),
    [
        ("constant", 0.49, 1.0),
        ("constant", 0.5, 0.0),
        ("linear", 0.0, 1.0),
        ("linear", 0.125, 0.75),
        ("linear", 0.5, 0.0),
        ("cosine", 0.0, 1.0),
        ("cosine", 0.25, 0.5),
        ("cosine", 0.125, (1 + math.cos(math.pi / 4)) / 2),
        ("cosine", 0.9, 0.0),
    ],
)
def test_the_weight_falls_to_zero_at_its_point(decay, progress, share):
    config = TokenLabelConfig(token_until=0.5, token_decay=decay)
    assert config.share_at(progress) == pytest.approx(share)


def test_the_weight_stays_by_default():
    assert TokenLabelConfig().share_at(0.999) == 1.0


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, 10),
        ({"token_until": 0.4}, 4),
        ({"token_until": 0.4, "cls_target": "blend"}, 10),
        ({"token_weight": 0.0}, 0),
        ({"token_weight": 0.0, "cls_target": "pooled"}, 10),
    ],
)
def test_maps_are_read_in_the_steps_that_need_them(settings, steps):
    assert TokenLabelConfig(**settings).mapped_steps(10) == steps
