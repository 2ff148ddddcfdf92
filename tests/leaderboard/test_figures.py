import pytest

from smallvit.core.errors import ConfigError
from smallvit.leaderboard.figures import FIGURES, Figure, kind_of, label_of


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


def test_cells_of_corruptions_are_drawn_and_their_mean_is_a_column():
    assert kind_of("corruption/official").column
    assert not kind_of("corruption/official/fog/1").column


def test_generated_and_official_corruptions_are_never_one_column():
    assert kind_of("corruption/generated").label != kind_of("corruption/official").label


def test_a_false_alarm_is_better_low_and_a_rank_better_high():
    assert kind_of("ood/fpr95/msp/svhn").better == "lower"
    assert kind_of("ood/auroc/energy/svhn").better == "higher"


def test_an_unknown_figure_is_refused_by_name():
    with pytest.raises(ConfigError, match="unknown figure 'accuracy/top7'"):
        kind_of("accuracy/top7")


def test_every_kind_has_a_unit_that_its_direction_goes_with():
    assert all(kind.unit for kind in FIGURES.values())
    assert FIGURES["calibration/temperature"].better is None


def test_a_figure_of_one_seed_has_no_spread():
    assert Figure.of([0.25], several_seeds=False) == Figure(mean=0.25, std=None, n=1)
    assert Figure.of([0.0, 1.0], several_seeds=True).std == pytest.approx(0.5**0.5)
