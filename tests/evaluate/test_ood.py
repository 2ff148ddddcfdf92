import math

import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from smallvit.core.errors import DataError
from smallvit.evaluate.ood import auroc, fpr95, noise_images, ood_metrics, ood_scores


def scores(num: int, shift: float, seed: int, *, ties: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(num, generator=generator, dtype=torch.float64) + shift
    return (2 * values).round() if ties else values


def both(own: torch.Tensor, foreign: torch.Tensor) -> tuple:
    labels = torch.cat([torch.ones(len(own)), torch.zeros(len(foreign))])
    return labels.numpy(), torch.cat([own, foreign]).numpy()


def test_scores_are_those_of_closed_forms():
    found = ood_scores(torch.tensor([[math.log(6.0), math.log(3.0), 0.0]]))
    assert found["msp"].item() == pytest.approx(0.6)
    assert found["max_logit"].item() == pytest.approx(math.log(6))
    assert found["energy"].item() == pytest.approx(math.log(10))


def test_sure_images_are_still_told_apart():
    # In float32 both probabilities are 1.
    msp = ood_scores(torch.tensor([[20.0, 0.0], [25.0, 0.0]]))["msp"]
    assert msp[0] < msp[1]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sizes", [(200, 200), (37, 150), (1, 9)])
def test_auroc_equals_that_of_scikit_learn(ties, sizes):
    own, foreign = scores(sizes[0], 0.7, 0, ties=ties), scores(sizes[1], 0.0, 1, ties=ties)
    assert auroc(own, foreign) == pytest.approx(roc_auc_score(*both(own, foreign)))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sizes", [(200, 200), (37, 150), (20, 40), (1, 9)])
def test_fpr95_is_the_first_point_of_the_curve_that_accepts_95_percent(ties, sizes):
    own, foreign = scores(sizes[0], 0.7, 0, ties=ties), scores(sizes[1], 0.0, 1, ties=ties)
    fpr, tpr, _ = roc_curve(*both(own, foreign), drop_intermediate=False)
    assert fpr95(own, foreign) == pytest.approx(fpr[tpr >= 0.95].min())


def test_own_images_are_the_positives():
    # 19 of 20 own images score 2 or more; 3 of 10 foreign ones do. The other way round, 95 % of the
    # foreign score 4 or less, and so do all the own.
    own = torch.tensor([0.0] + [2.0] * 19)
    foreign = torch.tensor([1.0] * 7 + [2.0, 3.0, 4.0])
    assert fpr95(own, foreign) == pytest.approx(0.3)


def test_equal_scores_are_as_good_as_chance_and_separate_ones_perfect():
    flat = torch.ones(8)
    assert (auroc(flat, flat), fpr95(flat, flat)) == (0.5, 1.0)
    assert (auroc(flat + 1, flat), fpr95(flat + 1, flat)) == (1.0, 0.0)
    assert auroc(flat, flat + 1) == 0.0


def test_metrics_name_both_figures_of_all_scores():
    generator = torch.Generator().manual_seed(0)
    own = 4 * torch.randn(50, 5, generator=generator)
    foreign = torch.randn(80, 5, generator=generator)
    metrics = ood_metrics(own, foreign)
    assert set(metrics) == {
        f"{score}_{figure}"
        for score in ("msp", "max_logit", "energy")
        for figure in ("auroc", "fpr95")
    }
    msp = [logits.softmax(dim=1).amax(dim=1) for logits in (own, foreign)]
    assert metrics["msp_auroc"] == pytest.approx(roc_auc_score(*both(*msp)), abs=1e-6)
    energy = [logits.exp().sum(dim=1) for logits in (own, foreign)]
    assert metrics["energy_auroc"] == pytest.approx(roc_auc_score(*both(*energy)), abs=1e-6)


@pytest.mark.parametrize(("own", "foreign"), [(0, 3), (3, 0)])
def test_a_side_without_images_is_refused(own, foreign):
    with pytest.raises(DataError, match=f"{own} own, {foreign} foreign"):
        ood_metrics(torch.zeros(own, 4), torch.zeros(foreign, 4))


@pytest.mark.parametrize("kind", ["uniform-noise", "gaussian-noise"])
def test_a_noise_image_depends_on_its_number_and_the_seed_alone(kind):
    images = noise_images(kind, torch.arange(6), 8, seed=0)
    assert torch.equal(noise_images(kind, torch.tensor([4, 1]), 8, seed=0), images[[4, 1]])
    assert not torch.equal(noise_images(kind, torch.arange(6), 8, seed=1), images)
    assert len(images.flatten(1).unique(dim=0)) == 6


def test_uniform_noise_has_all_levels_alike():
    levels = noise_images("uniform-noise", torch.arange(40), 32, seed=0).flatten()
    counts = torch.bincount(levels.long(), minlength=256).double()
    # 480 of each expected, with a standard deviation of 22.
    assert (counts - len(levels) / 256).abs().max() < 6 * 22


def test_gaussian_noise_has_the_stated_mean_and_spread():
    levels = noise_images("gaussian-noise", torch.arange(40), 32, seed=0).double() / 255
    # Cut off at 2 standard deviations: 0.25 * sqrt(0.9205) = 0.2399 is left.
    assert levels.mean().item() == pytest.approx(0.5, abs=0.005)
    assert levels.std().item() == pytest.approx(0.2399, abs=0.003)
    assert (levels == 0).double().mean().item() == pytest.approx(0.0231, abs=0.002)
