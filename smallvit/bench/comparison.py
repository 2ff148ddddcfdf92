"""Paired tests between two rows of a leaderboard, on the same test images.

Shapes in this file:
    S    seeds that both rows have
    N    test images
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool
from scipy.stats import binomtest

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What paired tests say of the accuracy of two rows.

    Attributes:
        dataset: Name of the dataset.
        first: Name of the row whose accuracy the difference is counted from.
        second: Name of the row that it is compared with.
        difference: Accuracy of ``first`` minus that of ``second``, over the shared seeds.
        low: Lower end of the bootstrap's 95 % interval of the difference.
        high: Upper end.
        p_value: Two-sided: of McNemar's exact test with one seed, of the bootstrap with several.
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
    test: Literal["McNemar", "bootstrap"]
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


def paired_bootstrap(
    first: Bool[np.ndarray, "S N"], second: Bool[np.ndarray, "S N"], *, seed: int = 0
) -> tuple[float, float, float]:
    """Resample the difference of two accuracies over images and over seeds.

    Each resample draws N images and S seeds with replacement, the same for both rows: what the
    draw of the images and the few seeds leave open is both in the interval. With two or three
    seeds it leaves zero out only where every seed has the same sign.

    Args:
        first: Whether each image is classified correctly, a row for each seed.
        second: The same of the other, seeds in the same order.
        seed: Seed of the resampling.

    Returns:
        Lower and upper end of the 95 % percentile interval of ``first - second``, and the
        two-sided p-value, at least ``2 / (RESAMPLES + 1)``.

    Source:
        Efron and Tibshirani, 1993, An Introduction to the Bootstrap, chapters 13 and 16.
    """
    generator = np.random.default_rng(seed)
    gain = first.astype(np.int8) - second.astype(np.int8)
    num_seeds, num_images = gain.shape
    # Images that gain alike over the seeds are one kind, so a resample of all N images is one draw
    # of how many there are of each kind: the same distribution, in time that does not grow with N.
    kinds, counts = np.unique(gain, axis=1, return_counts=True)
    images = generator.multinomial(num_images, counts / num_images, size=RESAMPLES)
    seeds = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=RESAMPLES)
    means = images @ kinds.T.astype(np.float64) / num_images  # (RESAMPLES, S)
    drawn = (means * seeds).sum(axis=1) / num_seeds
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum())) + 1
    return float(low), float(high), min(1.0, 2 * beyond / (RESAMPLES + 1))


def compare(
    first: Bool[np.ndarray, "S N"],
    second: Bool[np.ndarray, "S N"],
    *,
    dataset: str,
    names: tuple[str, str],
) -> Comparison:
    """Compare two rows on the same test images and seeds, as if nothing else were compared.

    Args:
        first: Whether each image is classified correctly, a row for each shared seed.
        second: The same of the other row.
        dataset: Name of the dataset.
        names: What the rows are called.
    """
    num_seeds, n_test = first.shape
    low, high, p_value = paired_bootstrap(first, second)
    if num_seeds == 1:
        p_value = mcnemar(first[0], second[0])
    return Comparison(
        dataset=dataset,
        first=names[0],
        second=names[1],
        difference=float(first.mean() - second.mean()),
        low=low,
        high=high,
        p_value=p_value,
        p_adjusted=p_value,
        test="McNemar" if num_seeds == 1 else "bootstrap",
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
