"""Paired tests between two rows of a leaderboard, on the same test images.

Shapes in this file:
    S    seeds that both rows have
    N    test images
    R    resamples; rows of a leaderboard
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import beta, binomtest, norm
from scipy.stats import t as student_t

RESAMPLES = 10_000
ALPHA = 0.05  # part of the cases in which any of the statements made together may be wrong
ROUNDING = 1e-12  # of accuracies


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What paired tests say of the accuracy of two rows.

    Interval, p-value and verdict are adjusted alike for the comparisons that are made together, so
    they always agree: the interval leaves zero out where the rows are told apart, and only there.

    Attributes:
        dataset: Name of the dataset.
        first: Name of the row whose accuracy the difference is counted from.
        second: Name of the row that it is compared with.
        difference: Accuracy of ``first`` minus that of ``second``, over the shared seeds.
        low: Lower end of the interval of the difference; in 95 % of all cases the intervals of all
            comparisons of the dataset hold at once.
        high: Upper end.
        p_value: Two-sided: of McNemar's exact test with one seed, of Student's t with several.
        p_adjusted: That times the number of comparisons, at most 1 (Bonferroni).
        test: Which of them it is.
        num_seeds: Seeds that both rows have.
        n_test: Test images.
        num_comparisons: Comparisons of the dataset, which are made together.
    """

    dataset: str
    first: str
    second: str
    difference: float
    low: float
    high: float
    p_value: float
    p_adjusted: float
    test: Literal["McNemar", "t over seeds"]
    num_seeds: int
    n_test: int
    num_comparisons: int = 1

    @property
    def verdict(self) -> Literal["better", "worse", "not told apart"]:
        """Say ``better`` or ``worse`` of ``first`` only where the adjusted test does."""
        if self.p_adjusted < ALPHA:
            return "better" if self.difference > 0 else "worse"
        return "not told apart"


def mcnemar(first: Bool[np.ndarray, " N"], second: Bool[np.ndarray, " N"]) -> float:
    """Return the exact two-sided p-value that two classifiers err equally often.

    Only images that exactly one of them gets right count: under the hypothesis each of those is
    a fair coin.

    Source:
        McNemar, 1947, Note on the Sampling Error of the Difference Between Correlated Proportions
        or Percentages, Psychometrika 12, 153-157; in its exact binomial form.
    """
    only_first = int((first & ~second).sum())
    only_second = int((second & ~first).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def mcnemar_interval(
    first: Bool[np.ndarray, " N"], second: Bool[np.ndarray, " N"], alpha: float
) -> tuple[float, float]:
    """Return the differences in accuracy that McNemar's exact test does not refuse.

    Of the images that exactly one classifier gets right, the part that is the first one's has the
    interval of Clopper and Pearson; it leaves one half out just where the test's p-value is below
    ``alpha``. That takes the number of those images as given, and an end can be the difference
    itself. So each end reaches as far as the normal interval of the mean gain, where that is wider
    and does not cross zero against the test.

    Args:
        first: Whether each image is classified correctly.
        second: The same of the other classifier.
        alpha: Part of the cases in which the interval may miss the difference.

    Source:
        Clopper and Pearson, 1934, The Use of Confidence or Fiducial Limits Illustrated in the Case
        of the Binomial, Biometrika 26, 404-413.
    """
    only_first = int((first & ~second).sum())
    only_second = int((second & ~first).sum())
    apart, n = only_first + only_second, len(first)
    if apart == 0:
        return 0.0, 0.0
    lowest = beta.ppf(alpha / 2, only_first, only_second + 1) if only_first else 0.0
    highest = beta.isf(alpha / 2, only_first + 1, only_second) if only_second else 1.0
    low, high = (float(2 * part - 1) * apart / n for part in (lowest, highest))
    gain = (only_first - only_second) / n
    half = float(norm.isf(alpha / 2)) * ((apart / n - gain**2) / n) ** 0.5
    if low <= 0 or gain - half > 0:
        low = min(low, gain - half)
    if high >= 0 or gain + half < 0:
        high = max(high, gain + half)
    return low, high


def paired_bootstrap(gain: Float[np.ndarray, " N"], *, seed: int = 0) -> Float[np.ndarray, " R"]:
    """Resample the mean of the images' gains, images drawn with replacement.

    Args:
        gain: What one row is right and the other is not, of each image: 1, 0 or -1, or their mean
            over seeds.
        seed: Seed of the resampling.

    Source:
        Efron and Tibshirani, 1993, An Introduction to the Bootstrap, chapter 6.
    """
    # Images of one gain are one kind, so a resample of all N images is one draw of how many there
    # are of each kind: the same distribution, in time that does not grow with N.
    kinds, counts = np.unique(gain, return_counts=True)
    shares = counts / counts.sum()
    drawn = np.random.default_rng(seed).multinomial(len(gain), shares, size=RESAMPLES)
    return drawn @ kinds / len(gain)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How much the differences between rows vary over seeds.

    Attributes:
        variance: Of the difference of two rows, from seed to seed.
        degrees: Degrees of freedom that it was estimated with.
    """

    variance: float
    degrees: int


def spread_over_seeds(accuracy: Float[np.ndarray, "R S"]) -> Spread:
    """Estimate how much differences vary over seeds from all rows that are compared together.

    It is the residual of an analysis of variance with seeds as blocks, doubled: the mean, over all
    pairs of rows, of the variance of their difference. Three seeds of two rows alone would leave
    two degrees of freedom, of four rows they leave six.

    Args:
        accuracy: Of each row, R, with each seed, S; at least two of both.

    Source:
        Fisher, 1935, The Design of Experiments, chapter 4 (randomised blocks).
    """
    num_rows, num_seeds = accuracy.shape
    rows, seeds = accuracy.mean(axis=1, keepdims=True), accuracy.mean(axis=0, keepdims=True)
    residual = accuracy - rows - seeds + accuracy.mean()
    degrees = (num_rows - 1) * (num_seeds - 1)
    return Spread(variance=float(2 * np.square(residual).sum() / degrees), degrees=degrees)


def seeds_and_images(
    first: Bool[np.ndarray, "S N"],
    second: Bool[np.ndarray, "S N"],
    spread: Spread | None = None,
    *,
    alpha: float = ALPHA,
) -> tuple[float, float, float]:
    """Test the difference of two accuracies over two seeds or more.

    Its variance is that of the mean over seeds plus that of the draw of the images, by the
    bootstrap; both rows have the same seeds and images. The quantiles are those of Student's t,
    which is wide where few seeds were seen. Seeds are not resampled: of S seeds that finds
    (S - 1) / S of their variance, half of it with two.

    Args:
        first: Whether each image is classified correctly, a row for each seed.
        second: The same of the other, seeds in the same order.
        spread: Over seeds; ``None`` takes it from these two rows.
        alpha: Part of the cases in which the interval may miss the difference.

    Returns:
        Lower and upper end of the interval of ``first - second``, and the two-sided p-value.
    """
    if spread is None:
        spread = spread_over_seeds(np.stack([first.mean(axis=1), second.mean(axis=1)]))
    of_images = (first.astype(np.float64) - second).mean(axis=0)
    difference = float(of_images.mean())
    error = np.sqrt(spread.variance / len(first) + paired_bootstrap(of_images).var())
    if error < ROUNDING:
        same = abs(difference) < ROUNDING
        only = 0.0 if same else difference
        return only, only, float(same)
    t = student_t(spread.degrees)
    half = error * t.isf(alpha / 2)
    p_value = 2 * t.sf(abs(difference) / error)
    return float(difference - half), float(difference + half), float(p_value)


def compare(
    first: Bool[np.ndarray, "S N"],
    second: Bool[np.ndarray, "S N"],
    *,
    dataset: str,
    names: tuple[str, str],
    spread: Spread | None = None,
    num_comparisons: int = 1,
) -> Comparison:
    """Compare two rows on the same test images and seeds.

    Args:
        first: Whether each image is classified correctly, a row for each shared seed.
        second: The same of the other row.
        dataset: Name of the dataset.
        names: What the rows are called.
        spread: Over seeds, of all rows that are compared together; ``None`` takes it from these.
        num_comparisons: How many are made together, this one among them: each is made at that part
            of 5 %.

    Source:
        Dunn, 1961, Multiple Comparisons among Means, Journal of the American Statistical
        Association 56, 52-64 (simultaneous intervals by Bonferroni's inequality).
    """
    num_seeds, n_test = first.shape
    alpha = ALPHA / num_comparisons
    if num_seeds == 1:
        low, high = mcnemar_interval(first[0], second[0], alpha)
        p_value = mcnemar(first[0], second[0])
    else:
        low, high, p_value = seeds_and_images(first, second, spread, alpha=alpha)
    return Comparison(
        dataset=dataset,
        first=names[0],
        second=names[1],
        difference=float(first.mean() - second.mean()),
        low=low,
        high=high,
        p_value=p_value,
        p_adjusted=min(1.0, num_comparisons * p_value),
        num_comparisons=num_comparisons,
        test="McNemar" if num_seeds == 1 else "t over seeds",
        num_seeds=num_seeds,
        n_test=n_test,
    )
