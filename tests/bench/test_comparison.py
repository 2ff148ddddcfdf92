import numpy as np
import pytest
from jaxtyping import TypeCheckError

from smallvit.bench.comparison import (
    Comparison,
    compare,
    correct_for_number,
    mcnemar,
    paired_bootstrap,
)

NAMES = ("both", "scratch")


def answers(*right: int, n: int = 100) -> np.ndarray:
    """One row a seed: the first images are right."""
    return np.stack([np.arange(n) < count for count in right])


def comparison(p_value: float, *, low=0.01, high=0.02) -> Comparison:
    return Comparison(
        dataset="digits",
        first="both",
        second="scratch",
        difference=(low + high) / 2,
        low=low,
        high=high,
        p_value=p_value,
        p_adjusted=p_value,
        test="McNemar",
        num_seeds=1,
        n_test=100,
    )


def test_mcnemar_tosses_a_fair_coin_for_each_image_that_one_gets_right():
    first = np.array([True] * 9 + [False] * 1 + [True] * 5 + [False] * 5)
    second = np.array([False] * 9 + [True] * 1 + [True] * 5 + [False] * 5)
    # Of 10 tosses at most one on the rarer side: (1 + 10) / 2**10, on either side.
    assert mcnemar(first, second) == pytest.approx(2 * 11 / 1024)
    assert mcnemar(second, first) == pytest.approx(2 * 11 / 1024)


def test_mcnemar_of_equal_answers_tells_nothing():
    assert mcnemar(*answers(40, 40)) == 1.0


def test_one_seeds_interval_is_that_of_the_mean_of_the_images_gains():
    first, second = answers(700, n=1000), answers(640, n=1000)
    low, high, _ = paired_bootstrap(first, second)
    gain = first[0].astype(float) - second[0]
    half = 1.96 * gain.std() / np.sqrt(len(gain))
    assert (low, high) == pytest.approx((0.06 - half, 0.06 + half), abs=0.1 * half)


def test_resampling_kinds_of_images_is_resampling_images():
    generator = np.random.default_rng(1)
    first, second = generator.random((2, 3, 200)) < np.array([0.7, 0.6])[:, None, None]
    gain = first.astype(float) - second
    drawn = []
    for _ in range(4000):  # written out: one image and one seed after the other
        images = generator.integers(200, size=200)
        seeds = generator.integers(3, size=3)
        drawn.append(gain[seeds][:, images].mean())
    low, high, _ = paired_bootstrap(first, second)
    assert (low, high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.006)


def test_seeds_that_disagree_leave_zero_in_the_interval():
    low, high, p_value = paired_bootstrap(answers(900, 500, n=1000), answers(600, 600, n=1000))
    assert low < 0 < high
    assert p_value > 0.05


def test_three_seeds_that_agree_leave_zero_out():
    better, worse = answers(700, 710, 720, n=1000), answers(600, 610, 620, n=1000)
    low, high, p_value = paired_bootstrap(better, worse)
    assert 0 < low < 0.1 < high
    assert p_value < 0.01
    turned = paired_bootstrap(worse, better)
    assert (-turned[1], -turned[0]) == pytest.approx((low, high), abs=0.004)


def test_a_row_is_not_told_apart_from_itself():
    found = compare(answers(60, 61), answers(60, 61), dataset="digits", names=NAMES)
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    assert found.verdict == "not told apart"


def test_one_seed_is_tested_by_mcnemar_and_several_by_the_bootstrap():
    assert compare(answers(60), answers(50), dataset="d", names=NAMES).test == "McNemar"
    assert compare(answers(60, 60), answers(50, 50), dataset="d", names=NAMES).test == "bootstrap"


def test_better_is_said_only_where_interval_and_test_both_say_it():
    assert comparison(0.01).verdict == "better"
    assert comparison(0.01, low=-0.02, high=-0.01).verdict == "worse"
    assert comparison(0.06).verdict == "not told apart"
    assert comparison(0.01, low=-0.01).verdict == "not told apart"


def test_the_same_call_gives_the_same_interval():
    sides = answers(60, 70), answers(50, 65)
    assert paired_bootstrap(*sides) == paired_bootstrap(*sides)


def test_holm_multiplies_the_smallest_p_by_the_number_of_tests_and_never_falls():
    adjusted = correct_for_number([comparison(p) for p in (0.01, 0.04, 0.03)])
    assert [c.p_adjusted for c in adjusted] == pytest.approx([0.03, 0.06, 0.06])
    assert [c.p_value for c in adjusted] == [0.01, 0.04, 0.03]
    assert correct_for_number([comparison(0.7), comparison(0.6)])[1].p_adjusted == 1.0


def test_other_images_or_seeds_are_refused():
    with pytest.raises(TypeCheckError, match="second"):
        compare(answers(60), answers(50, 50), dataset="digits", names=NAMES)
