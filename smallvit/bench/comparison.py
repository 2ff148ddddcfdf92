"""Paired tests between two rows of a leaderboard, on the same test images.

Shapes in this file:
    S    seeds that both rows have
    N    test images
    R    resamples; rows of a leaderboard
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import binomtest
from scipy.stats import t as student_t

RESAMPLES = 10_000
CONFIDENCE = 0.95
ROUNDING = 1e-12  # of accuracies


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What paired tests say of the accuracy of two rows.

    Attributes:
        dataset: Name of the dataset.
        first: Name of the row whose accuracy the difference is counted from.
        second: Name of the row that it is compared with.
        difference: Accuracy of ``first`` minus that of ``second``, over the shared seeds.
        low: Lower end of the 95 % interval of the difference: with one seed the bootstrap's.
        high: Upper end.
        p_value: Two-sided: of McNemar's exact test with one seed, of Student's t with several.
        p_adjusted: That after Holm's correction for all comparisons of the dataset.
        test: Which of them it is.
        num_seeds: Seeds that both rows have.
        n_test: Test images.
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

    @property
    def verdict(self) -> Literal["better", "worse", "not told apart"]:
        """Say ``better`` or ``worse`` of ``first`` only where interval and test both do."""
        if self.p_adjusted < 1 - CONFIDENCE and (self.low > 0 or self.high < 0):
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
    first: Bool[np.ndarray, "S N"], second: Bool[np.ndarray, "S N"], spread: Spread | None = None
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

    Returns:
        Lower and upper end of the 95 % interval of ``first - second``, and the two-sided p-value.
    """
    if spread is None:
        spread = spread_over_seeds(np.stack([first.mean(axis=1), second.mean(axis=1)]))
    of_images = (first.astype(np.float64) - second).mean(axis=0)
    difference = float(of_images.mean())
    error = np.sqrt(spread.variance / len(first) + paired_bootstrap(of_images).var())
    if error < ROUNDING:
        return difference, difference, float(abs(difference) < ROUNDING)
    t = student_t(spread.degrees)
    half = error * t.ppf((1 + CONFIDENCE) / 2)
    p_value = 2 * t.sf(abs(difference) / error)
    return float(difference - half), float(difference + half), float(p_value)


def compare(
    first: Bool[np.ndarray, "S N"],
    second: Bool[np.ndarray, "S N"],
    *,
    dataset: str,
    names: tuple[str, str],
    spread: Spread | None = None,
) -> Comparison:
    """Compare two rows on the same test images and seeds, as if nothing else were compared.

    Args:
        first: Whether each image is classified correctly, a row for each shared seed.
        second: The same of the other row.
        dataset: Name of the dataset.
        names: What the rows are called.
        spread: Over seeds, of all rows that are compared together; ``None`` takes it from these.
    """
    num_seeds, n_test = first.shape
    if num_seeds == 1:
        drawn = paired_bootstrap(first[0].astype(np.float64) - second[0])
        tail = (1 - CONFIDENCE) / 2
        low, high = (float(end) for end in np.quantile(drawn, [tail, 1 - tail]))
        p_value = mcnemar(first[0], second[0])
    else:
        low, high, p_value = seeds_and_images(first, second, spread)
    return Comparison(
        dataset=dataset,
        first=names[0],
        second=names[1],
        difference=float(first.mean() - second.mean()),
        low=low,
        high=high,
        p_value=p_value,
        p_adjusted=p_value,
        test="McNemar" if num_seeds == 1 else "t over seeds",
        num_seeds=num_seeds,
        n_test=n_test,
    )


def correct_for_number(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Adjust the p-values of comparisons that are made together, in the order given.

    Source:
        Holm, 1979, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal
        of Statistics 6, 65-70.
    """
    order = sorted(range(len(comparisons)), key=lambda index: comparisons[index].p_value)
    adjusted = [1.0] * len(comparisons)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, (len(comparisons) - rank) * comparisons[index].p_value)
        adjusted[index] = min(1.0, highest)
    return [
        replace(comparison, p_adjusted=value)
        for comparison, value in zip(comparisons, adjusted, strict=True)
    ]
