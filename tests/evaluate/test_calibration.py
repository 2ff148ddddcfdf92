import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import brier_score_loss

from smallvit.core.errors import DataError
from smallvit.evaluate.calibration import (
    MAX_TEMPERATURE,
    brier,
    calibration_metrics,
    expected_calibration_error,
    fit_temperature,
    reliability_bins,
)


def example(num: int = 400, classes: int = 6, scale: float = 3.0) -> tuple:
    """Logits that are right about half of the time, and much surer than that."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(num) % classes
    logits = torch.randn(num, classes, generator=generator) + torch.eye(classes)[labels]
    return scale * logits, labels


def sure_of(probability: float, num: int, num_right: int) -> tuple:
    """Two classes, all predicted to be the first with one probability."""
    logits = torch.tensor([[math.log(probability / (1 - probability)), 0.0]]).expand(num, 2)
    return logits.contiguous(), (torch.arange(num) >= num_right).long()


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_brier_of_uniform_logits_is_one_less_one_over_the_classes(classes):
    found = brier(torch.zeros(4, classes), torch.tensor([0, 1, 1, 0]))
    assert found == pytest.approx(1 - 1 / classes)


def test_brier_of_a_sure_network_is_zero_where_right_and_two_where_wrong():
    logits = 1000 * torch.eye(3)
    assert brier(logits, torch.tensor([0, 1, 2])) == 0.0
    assert brier(logits, torch.tensor([1, 2, 0])) == 2.0


def test_brier_of_two_classes_is_twice_the_score_of_scikit_learn():
    logits, labels = example(classes=2)
    wanted = brier_score_loss(labels.numpy(), softmax(logits.double().numpy(), axis=1)[:, 1])
    assert brier(logits, labels) == pytest.approx(2 * wanted)


def test_the_error_of_one_confidence_is_its_distance_from_the_accuracy():
    assert expected_calibration_error(*sure_of(0.9, 20, 14)) == pytest.approx(0.2)
    assert expected_calibration_error(*sure_of(0.7, 20, 14)) == pytest.approx(0, abs=1e-6)
    assert expected_calibration_error(*sure_of(0.55, 20, 14)) == pytest.approx(0.15)


def test_errors_of_opposite_bins_do_not_cancel():
    # Mean confidence and accuracy are both 0.75: by bins, half is 0.15 too low, half too high.
    logits, labels = zip(sure_of(0.6, 20, 15), sure_of(0.9, 20, 15), strict=True)
    found = expected_calibration_error(torch.cat(logits), torch.cat(labels))
    assert found == pytest.approx(0.15)


def test_calibration_error_equals_a_plain_loop_over_bins():
    logits, labels = example()
    probability = softmax(logits.double().numpy(), axis=1)
    confidence, right = probability.max(axis=1), probability.argmax(axis=1) == labels.numpy()
    wanted = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            wanted += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(logits, labels) == pytest.approx(wanted)
    assert wanted > 0.1


def test_bins_hold_every_image_once_with_their_own_means():
    logits, labels = example()
    bins = reliability_bins(logits, labels)
    probability = softmax(logits.double().numpy(), axis=1)
    place = np.ceil(probability.max(axis=1) * 15).astype(int) - 1
    right = probability.argmax(axis=1) == labels.numpy()
    assert bins.count == tuple(np.bincount(place, minlength=15))
    for number, accuracy in enumerate(bins.accuracy):
        if bins.count[number]:
            assert accuracy == pytest.approx(right[place == number].mean())


def test_an_empty_bin_has_neither_confidence_nor_accuracy():
    bins = reliability_bins(*sure_of(0.7, 4, 3), num_bins=5)
    assert bins.count == (0, 0, 0, 4, 0)
    assert bins.accuracy == (None, None, None, 0.75, None)
    assert [value is None for value in bins.confidence] == [True, True, True, False, True]


def test_an_upper_edge_belongs_to_its_bin():
    half = reliability_bins(torch.zeros(3, 2), torch.tensor([0, 0, 1]), num_bins=2)
    assert half.count == (3, 0)
    full = reliability_bins(torch.tensor([[1000.0, 0.0]]), torch.tensor([0]))
    assert full.count[-1] == 1


def test_temperature_is_where_the_cross_entropy_is_lowest():
    logits, labels = example()

    def nll(temperature: float) -> float:
        scaled = log_softmax(logits.double().numpy() / temperature, axis=1)
        return -scaled[np.arange(len(labels)), labels.numpy()].mean()

    wanted = minimize_scalar(nll, bounds=(0.1, 50), method="bounded", options={"xatol": 1e-8})
    assert fit_temperature(logits, labels) == pytest.approx(wanted.x, rel=1e-4)


@pytest.mark.parametrize("factor", [0.1, 1.0, 7.0])
def test_logits_that_are_multiplied_have_a_temperature_that_undoes_it(factor):
    logits, labels = example()
    wanted = factor * fit_temperature(logits, labels)
    assert fit_temperature(factor * logits, labels) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("num", [1, 3, 300])
def test_validation_without_an_error_leaves_the_temperature_at_1(num):
    # The lower the better, for ever: as little as three images would make the network sure.
    logits = torch.tensor([[2.0, 0.0, -1.0]]).repeat(num, 1)
    assert fit_temperature(logits, torch.zeros(num, dtype=torch.int64)) == 1.0


def test_one_error_in_a_separated_set_is_enough_for_a_temperature():
    # Gap g, n right and one wrong: the odds n : 1 are reached at g / T = log n.
    logits = torch.tensor([[3.0, 0.0]]).repeat(9, 1)
    labels = torch.tensor([0] * 8 + [1])
    assert fit_temperature(logits, labels) == pytest.approx(3 / math.log(8))


def test_logits_against_the_labels_get_the_highest_temperature():
    logits, labels = sure_of(0.9, 10, 2)
    assert fit_temperature(logits, labels) == pytest.approx(MAX_TEMPERATURE)


def test_equal_logits_have_a_temperature_all_the_same():
    assert math.isfinite(fit_temperature(torch.zeros(5, 3), torch.tensor([0, 1, 2, 0, 0])))


def test_a_temperature_from_no_images_is_refused():
    with pytest.raises(DataError, match="needs validation images, and there are none"):
        fit_temperature(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))


def test_dividing_by_the_temperature_calibrates_a_network_that_is_too_sure():
    logits, labels = example(num=4000)
    temperature = fit_temperature(logits[::2], labels[::2])
    metrics = calibration_metrics(logits[1::2], labels[1::2], temperature=temperature)
    assert metrics["temperature"] == temperature
    assert metrics["ece_scaled"] < 0.05 < 0.2 < metrics["ece"]
    assert metrics["brier_scaled"] < metrics["brier"]
    assert metrics["nll_scaled"] < torch.nn.functional.cross_entropy(logits, labels).item()


def test_at_temperature_1_both_halves_of_the_metrics_agree():
    metrics = calibration_metrics(*example(), temperature=1.0)
    assert metrics["ece_scaled"] == metrics["ece"]
    assert metrics["brier_scaled"] == metrics["brier"]
