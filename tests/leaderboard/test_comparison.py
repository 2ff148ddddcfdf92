import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from scipy import stats

from smallvit.leaderboard.comparison import (
    Comparison,
    Spread,
    compare,
    mcnemar,
    mcnemar_interval,
    paired_bootstrap,
    seeds_and_images,
    spread_over_seeds,
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
    found = compare(first, second, dataset="digits", names=NAMES)
    gain = first[0].astype(float) - second[0]
    half = 1.96 * gain.std() / np.sqrt(len(gain))
    assert (found.low, found.high) == pytest.approx((0.06 - half, 0.06 + half), abs=0.1 * half)


def test_resampling_kinds_of_images_is_resampling_images():
    generator = np.random.default_rng(1)
    gain = generator.choice([-1.0, -1 / 3, 0.0, 1.0], size=200, p=[0.1, 0.2, 0.4, 0.3])
    written_out = [gain[generator.integers(200, size=200)].mean() for _ in range(4000)]
    drawn = paired_bootstrap(gain)
    ends = [0.025, 0.25, 0.5, 0.75, 0.975]
    assert np.quantile(drawn, ends) == pytest.approx(np.quantile(written_out, ends), abs=0.01)


def test_seeds_that_disagree_leave_zero_in_the_interval():
    low, high, p_value = seeds_and_images(answers(900, 500, n=1000), answers(600, 600, n=1000))
    assert low < 0 < high
    assert p_value > 0.05


def test_several_seeds_are_students_t_of_both_sources_of_variance():
    first, second = answers(700, 720, 740, n=1000), answers(600, 610, 600, n=1000)
    gain = first.astype(float) - second
    # 10, 11 and 14 points over three seeds; the images' part as for one seed, of the mean gain.
    error = np.sqrt(np.var([0.10, 0.11, 0.14], ddof=1) / 3 + gain.mean(axis=0).var() / 1000)
    low, high, p_value = seeds_and_images(first, second)
    centre = np.mean([0.10, 0.11, 0.14])
    assert (low + high) / 2 == pytest.approx(centre)
    assert (high - low) / 2 == pytest.approx(4.302653 * error, rel=0.01)  # 97.5 % of t, 2 degrees
    assert p_value == pytest.approx(2 * stats.t(2).sf(centre / error), rel=0.02)
    turned = seeds_and_images(second, first)
    assert turned == pytest.approx((-high, -low, p_value), rel=0.03)


def test_the_spread_is_the_mean_variance_of_all_differences():
    accuracy = np.array([[0.5, 0.6, 0.4], [0.7, 0.9, 0.8], [0.1, 0.3, 0.2], [0.6, 0.6, 0.9]])
    pairs = [(a, b) for a in range(4) for b in range(a)]
    written_out = np.mean([np.var(accuracy[a] - accuracy[b], ddof=1) for a, b in pairs])
    assert spread_over_seeds(accuracy).variance == pytest.approx(written_out)
    assert spread_over_seeds(accuracy).degrees == 6
    alone = spread_over_seeds(accuracy[:2])
    assert alone.variance == pytest.approx(np.var(accuracy[0] - accuracy[1], ddof=1))
    assert alone.degrees == 2


def test_what_all_rows_share_of_a_seed_is_no_spread():
    accuracy = np.array([[0.5, 0.6, 0.4], [0.7, 0.8, 0.6]])
    assert spread_over_seeds(accuracy).variance == pytest.approx(0, abs=1e-12)


def test_the_spread_of_more_rows_tells_more_apart():
    first, second = answers(700, 720, 740, n=1000), answers(600, 610, 600, n=1000)
    own = compare(first, second, dataset="d", names=NAMES)
    pooled = compare(
        first, second, dataset="d", names=NAMES, spread=Spread(variance=0.0004, degrees=6)
    )
    assert pooled.high - pooled.low < own.high - own.low
    assert pooled.p_value < own.p_value
    assert pooled.difference == own.difference


def test_rows_of_equal_accuracy_are_rarely_told_apart():
    """Seeds that differ and nothing between the rows: a false alarm in 5 % at most."""
    generator = np.random.default_rng(0)
    alarms = 0
    for _ in range(200):
        difficulty = generator.normal(size=2000)
        sides = [
            (generator.normal(size=(3, 1)) * 0.02 + 0.5 + difficulty)
            > generator.normal(size=(3, 2000))
            for _ in range(2)
        ]
        alarms += seeds_and_images(*sides)[2] < 0.05
    assert alarms <= 20  # of 200: 10 expected at most, and twice that is beyond 3 deviations


def test_a_row_is_not_told_apart_from_itself():
    found = compare(answers(60, 61), answers(60, 61), dataset="digits", names=NAMES)
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    assert found.verdict == "not told apart"


def test_one_seed_is_tested_by_mcnemar_and_several_by_students_t():
    assert compare(answers(60), answers(50), dataset="d", names=NAMES).test == "McNemar"
    several = compare(answers(60, 60), answers(50, 50), dataset="d", names=NAMES)
    assert several.test == "t over seeds"


def test_two_seeds_need_a_difference_far_beyond_their_own():
    near = compare(answers(620, 640, n=1000), answers(600, 600, n=1000), dataset="d", names=NAMES)
    far = compare(answers(900, 901, n=1000), answers(600, 600, n=1000), dataset="d", names=NAMES)
    assert (near.verdict, far.verdict) == ("not told apart", "better")


def test_better_is_said_where_the_adjusted_test_does():
    assert comparison(0.01).verdict == "better"
    assert comparison(0.01, low=-0.02, high=-0.01).verdict == "worse"
    assert comparison(0.06, low=-0.01).verdict == "not told apart"


def test_the_same_call_gives_the_same_interval():
    sides = answers(60, 70), answers(50, 65)
    assert seeds_and_images(*sides) == seeds_and_images(*sides)


def test_of_several_comparisons_p_value_and_interval_are_adjusted_alike():
    sides = answers(62), answers(55)  # 7 images of 100: p = 2 / 2**7
    alone = compare(*sides, dataset="d", names=NAMES)
    together = compare(*sides, dataset="d", names=NAMES, num_comparisons=6)
    assert (alone.p_value, alone.p_adjusted) == pytest.approx((1 / 64, 1 / 64))
    assert (together.p_value, together.p_adjusted) == pytest.approx((1 / 64, 6 / 64))
    assert alone.low > 0 > together.low
    assert together.high > alone.high
    assert (alone.verdict, together.verdict) == ("better", "not told apart")
    many = compare(answers(60), answers(59), dataset="d", names=NAMES, num_comparisons=100)
    assert many.p_adjusted == 1.0


def test_mcnemars_interval_is_that_of_clopper_and_pearson_where_that_is_wider():
    first, second = np.arange(40) < 12, (np.arange(40) >= 10) & (np.arange(40) < 13)
    # 10 images for the first alone, 1 for the second: the published interval of 10 of 11.
    ends = stats.binomtest(10, 11).proportion_ci(0.95, method="exact")
    low, high = mcnemar_interval(first, second, 0.05)
    assert low == pytest.approx(min((2 * ends.low - 1) * 11 / 40, 9 / 40 - normal_half(10, 1, 40)))
    assert high == pytest.approx(9 / 40 + normal_half(10, 1, 40))
    assert mcnemar_interval(second, first, 0.05) == pytest.approx((-high, -low))


def normal_half(only_first: int, only_second: int, n: int) -> float:
    gain = (only_first - only_second) / n
    return 1.959964 * np.sqrt(((only_first + only_second) / n - gain**2) / n)


@settings(max_examples=200, deadline=None)
@given(
    counts=st.tuples(*[st.integers(0, 40)] * 4).filter(sum),
    num_comparisons=st.sampled_from([1, 2, 3, 6, 28, 300]),
)
def test_one_seeds_interval_leaves_zero_out_just_where_rows_are_told_apart(counts, num_comparisons):
    pairs = np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], counts, axis=0).astype(bool)
    agree(
        compare(pairs.T[:1], pairs.T[1:], dataset="d", names=NAMES, num_comparisons=num_comparisons)
    )


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(2, 4), st.integers(1, 60)),
    chance=st.tuples(*[st.sampled_from([0.0, 0.3, 0.5, 0.55, 0.9, 1.0])] * 2),
    num_comparisons=st.sampled_from([1, 3, 28]),
)
def test_over_seeds_the_interval_leaves_zero_out_just_where_rows_are_told_apart(
    seed, shape, chance, num_comparisons
):
    generator = np.random.default_rng(seed)
    sides = [generator.random(shape) < part for part in chance]
    agree(compare(*sides, dataset="d", names=NAMES, num_comparisons=num_comparisons))


def agree(found: Comparison) -> None:
    told_apart = found.verdict != "not told apart"
    assert told_apart == (found.p_adjusted < 0.05)
    assert told_apart == (found.low > 0 or found.high < 0)
    assert found.low <= found.difference + 1e-12
    assert found.difference <= found.high + 1e-12


def test_other_images_or_seeds_are_refused():
    with pytest.raises(TypeCheckError, match="second"):
        compare(answers(60), answers(50, 50), dataset="digits", names=NAMES)
