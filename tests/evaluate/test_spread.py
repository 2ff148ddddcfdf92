import math

import pytest
import torch

from smallvit.evaluate.spread import effective_rank, feature_std


def gaussian(num: int, dim: int) -> torch.Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(0))


def test_features_that_are_all_the_same_have_no_spread_and_rank_one():
    features = torch.tensor([0.3, -2.0, 1.0, 0.5]).repeat(10, 1)
    assert feature_std(features).item() == pytest.approx(0, abs=1e-6)
    assert effective_rank(features).item() == pytest.approx(1, abs=1e-4)


def test_orthogonal_features_of_one_length_fill_every_dimension():
    features = 3 * torch.eye(8).repeat(5, 1)
    assert effective_rank(features).item() == pytest.approx(8, rel=1e-4)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_two_singular_values_have_the_rank_of_a_coin(share):
    entropy = -(share * math.log(share) + (1 - share) * math.log(1 - share))
    features = torch.diag(torch.tensor([share, 1 - share, 0.0]))
    assert effective_rank(features).item() == pytest.approx(math.exp(entropy), rel=1e-4)


def test_directions_drawn_alike_have_a_spread_of_one():
    assert feature_std(gaussian(20_000, 16)).item() == pytest.approx(1, abs=0.01)


def test_half_the_features_on_either_end_of_an_axis_spread_over_that_axis_alone():
    features = torch.tensor([[2.0, 0.0, 0.0, 0.0], [-5.0, 0.0, 0.0, 0.0]])
    assert feature_std(features).item() == pytest.approx(1 / 4 * math.sqrt(4))


def test_the_length_of_a_feature_does_not_count_for_its_spread():
    features = gaussian(50, 4)
    lengths = torch.linspace(0.1, 9, 50)[:, None]
    torch.testing.assert_close(feature_std(features * lengths), feature_std(features))


def test_the_mean_is_not_taken_off_before_the_rank():
    features = gaussian(50, 4)
    assert effective_rank(features + 100).item() < 1.2 < effective_rank(features).item()


def test_features_that_are_all_zero_have_finite_values():
    features = torch.zeros(6, 3)
    assert feature_std(features).item() == 0
    assert effective_rank(features).item() == pytest.approx(1, abs=1e-4)
