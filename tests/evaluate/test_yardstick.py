import numpy as np
import pytest
from scipy.stats import binom

from smallvit.evaluate.yardstick import measure_yardstick

NAMES = ("cat", "dog", "owl")


def test_naming_the_commonest_class_always_scores_its_part_of_the_images():
    found = measure_yardstick([[5, 5, 0], [0, 60, 0], [10, 0, 20]], NAMES)
    assert (found.commonest, found.commonest_share) == ("dog", 0.6)
    assert (found.named, found.named_share) == ("dog", 0.65)
    assert found.top1 == 0.85
    assert found.mean_per_class == pytest.approx((1 / 2 + 1 + 2 / 3) / 3)
    assert found.n == 100
    assert found.fault == ""


def test_its_accuracy_must_be_told_apart_from_that_of_the_commonest_class():
    # 3,781 photographs of ten classes, the commonest 13.98 %: 52 of the 372 test images.
    others = np.full(9, 35)
    others[:5] += 1
    confusion = np.diag([52, *others])
    confusion[1:, 0] = others - 1  # 'c0' for nearly all
    np.fill_diagonal(confusion, [52, *[1] * 9])
    found = measure_yardstick(confusion, [f"c{i}" for i in range(10)])
    assert found.top1 == pytest.approx(0.164, abs=0.001)
    assert found.p_value == pytest.approx(binom.sf(60, 372, 52 / 372))
    assert "it names 'c0' for 97.58 % of the images" in found.fault
    assert "not told apart from the 13.98 % of naming 'c0' always" in found.fault


def test_more_right_answers_than_the_commonest_class_has_images_are_told_apart():
    even = [[30, 20, 0], [10, 40, 0], [0, 20, 30]]
    assert measure_yardstick(even, NAMES).fault == ""
    chance = [[17, 17, 16], [17, 17, 16], [16, 17, 17]]
    assert "not told apart" in measure_yardstick(chance, NAMES).fault


def test_naming_one_class_nearly_always_is_a_fault_only_at_the_cost_of_the_others():
    # 95 of 100 are of one class, and 45 of the 50 others are found among 1,000.
    rare = [[945, 5], [5, 45]]
    found = measure_yardstick(rare, ("sound", "ill"))
    assert found.named_share == 0.95
    assert not found.names_one_class
    assert found.fault == ""
    # Significantly above 80 %, by answering nearly everything alike.
    blind = measure_yardstick([[800, 0], [150, 50]], ("sound", "ill"))
    assert blind.p_value < 0.05
    assert blind.fault == "it names 'sound' for 95.00 % of the images"


def test_classes_are_uneven_from_one_and_a_half_times_the_smallest_on():
    assert not measure_yardstick(np.diag([10, 14, 10]), NAMES).uneven
    assert measure_yardstick(np.diag([10, 15, 10]), NAMES).uneven
    assert not measure_yardstick(np.diag([10, 10, 0]), NAMES).uneven  # one that has no images


def test_one_class_alone_tells_nothing_of_a_classifier():
    assert "not told apart from the 100.00 %" in measure_yardstick(np.diag([8, 0, 0]), NAMES).fault
