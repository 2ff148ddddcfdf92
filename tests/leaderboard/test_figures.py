import pytest

from smallvit.core.errors import ConfigError
from smallvit.leaderboard.figures import kind_of, label_of
from smallvit.leaderboard.rows import Figure


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("calibration/ece_scaled", "ECE, scaled"),
        ("corruption/generated", "generated"),
        ("corruption/generated/gaussian_noise/3", "generated/gaussian noise/3"),
        ("attack/pgd/0.5", "PGD 0.5/255"),
        ("ood/auroc/msp/cifar100", "cifar100 AUROC, MSP"),
        ("ood/fpr95/max_logit/uniform-noise", "uniform-noise FPR@95, max logit"),
    ],
)
def test_the_longest_path_that_fits_says_what_a_figure_is(name, label):
    assert label_of(name) == label


def test_an_unknown_figure_is_refused_by_name():
    with pytest.raises(ConfigError, match="unknown figure 'accuracy/top7'"):
        kind_of("accuracy/top7")


def test_a_figure_of_one_seed_has_no_spread():
    assert Figure.of([0.25], several_seeds=False) == Figure(mean=0.25, std=None, n=1)
    assert Figure.of([0.0, 1.0], several_seeds=True).std == pytest.approx(0.5**0.5)
