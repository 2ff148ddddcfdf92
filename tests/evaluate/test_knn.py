import math

import pytest
import torch

from smallvit.core.errors import DataError
from smallvit.evaluate.knn import knn_top1


def clusters(num: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three directions in four dimensions with a little noise."""
    labels = torch.arange(num) % 3
    noise = torch.randn(num, 4, generator=torch.Generator().manual_seed(seed))
    return torch.eye(4)[labels] + 0.05 * noise, labels


def test_separable_clusters_are_classified_without_error():
    assert knn_top1(*clusters(90, 0), *clusters(30, 1), num_classes=3) == 1.0


def test_a_bank_under_twenty_votes_as_a_whole():
    assert knn_top1(*clusters(6, 0), *clusters(30, 1), num_classes=3) == 1.0


def test_features_of_any_length_vote_alike():
    bank, labels = clusters(60, 0)
    scale = torch.linspace(0.1, 50, 60)[:, None]
    assert knn_top1(bank * scale, labels, *clusters(30, 1), num_classes=3) == 1.0


def test_a_near_neighbour_outvotes_several_far_ones():
    # One at similarity 1 against two at 0.9: exp(0) = 1 to 2 exp(-0.1 / 0.07) = 0.48.
    far = [0.9, math.sqrt(1 - 0.81)]
    bank = torch.tensor([[1.0, 0.0], far, far])
    query = torch.tensor([[1.0, 0.0]])
    score = knn_top1(bank, torch.tensor([0, 1, 1]), query, torch.tensor([0]), num_classes=2)
    assert score == 1.0


def test_five_far_neighbours_outvote_a_near_one():
    # 5 exp(-0.1 / 0.07) = 1.2 against 1.
    far = [0.9, math.sqrt(1 - 0.81)]
    bank = torch.tensor([[1.0, 0.0], *[far] * 5])
    labels = torch.tensor([0, 1, 1, 1, 1, 1])
    query = torch.tensor([[1.0, 0.0]])
    assert knn_top1(bank, labels, query, torch.tensor([1]), num_classes=2) == 1.0


def test_only_the_twenty_nearest_vote():
    near, far = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.99, math.sqrt(1 - 0.99**2)]])
    bank = torch.cat([near.repeat(20, 1), far.repeat(500, 1)])
    labels = torch.tensor([0] * 20 + [1] * 500)
    assert knn_top1(bank, labels, near, torch.tensor([0]), num_classes=2) == 1.0


def test_score_is_the_fraction_that_is_right_over_more_than_one_chunk():
    bank, labels = clusters(30, 0)
    features, truth = clusters(1500, 1)
    truth[:300] = (truth[:300] + 1) % 3
    assert knn_top1(bank, labels, features, truth, num_classes=3) == 0.8


def test_the_number_of_neighbours_decides_who_votes():
    far = [0.9, math.sqrt(1 - 0.81)]
    bank, labels = torch.tensor([[1.0, 0.0], *[far] * 5]), torch.tensor([0, 1, 1, 1, 1, 1])
    asked = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    scores = [knn_top1(bank, labels, *asked, num_classes=2, num_neighbors=k) for k in (1, 6)]
    assert scores == [1.0, 0.0]


def test_a_lower_temperature_lets_the_nearest_decide():
    # Five at similarity 0.9 weigh 5 exp(-0.1 / 0.02) = 0.03 against 1.
    far = [0.9, math.sqrt(1 - 0.81)]
    bank, labels = torch.tensor([[1.0, 0.0], *[far] * 5]), torch.tensor([0, 1, 1, 1, 1, 1])
    asked = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    assert knn_top1(bank, labels, *asked, num_classes=2, temp=0.02) == 1.0


@pytest.mark.parametrize(("bank", "asked"), [(0, 3), (3, 0)])
def test_a_vote_of_nobody_or_on_nothing_is_refused(bank, asked):
    with pytest.raises(DataError, match=f"{bank} in the bank, {asked} to classify"):
        knn_top1(*clusters(bank, 0), *clusters(asked, 1), num_classes=3)
