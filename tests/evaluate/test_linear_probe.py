import torch

from smallvit.evaluate.linear_probe import linear_top1


def sides(num: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points on both sides of a plane with a gap between them."""
    points = torch.randn(num, 3, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(num) % 2
    points[:, 0] = points[:, 0].abs().clamp(min=0.5) * (2 * labels - 1)
    return points, labels


def test_separable_features_are_classified_without_error():
    assert linear_top1(*sides(200, 0), *sides(50, 1)) == 1.0


def test_scale_and_offset_of_the_features_do_not_matter():
    (bank, labels), (features, truth) = sides(200, 0), sides(50, 1)
    scale, offset = torch.tensor([1000.0, 0.01, 1.0]), torch.tensor([-5.0, 3.0, 100.0])
    found = linear_top1(bank * scale + offset, labels, features * scale + offset, truth)
    assert found == linear_top1(bank, labels, features, truth)


def test_score_is_the_fraction_that_is_right():
    features, labels = sides(50, 1)
    labels[:10] = 1 - labels[:10]
    assert linear_top1(*sides(200, 0), features, labels) == 0.8


def test_a_solver_that_is_cut_short_still_scores_and_says_nothing():
    # Warnings are errors here; one step does not converge, and finds the plane's side.
    assert linear_top1(*sides(200, 0), *sides(50, 1), max_iterations=1) > 0.9
