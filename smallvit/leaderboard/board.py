"""Everything that a leaderboard shows, before it is written down."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from smallvit.leaderboard.comparison import Comparison
from smallvit.leaderboard.published import Reference
from smallvit.leaderboard.rows import Entry, Row
from smallvit.leaderboard.verdict import verdict, warnings_of


@dataclass(frozen=True, kw_only=True)
class Bin:
    """One bin of a reliability diagram.

    Attributes:
        count: Test images whose confidence falls in it.
        confidence: Their mean confidence, in [0, 1]; 0 without images.
        accuracy: The part of them that is classified correctly; 0 without images.
    """

    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the pictures of a row are drawn of; counts are summed over its runs.

    Attributes:
        class_names: In the order of the confusion matrix.
        confusion: Test images by true class (rows) and predicted class (columns).
        reliability: 15 bins of equal width of the largest probability, as the network gives it.
        reliability_scaled: The same after temperature scaling.
        attention: PNG picture of where the network of the first seed looks; ``None`` without.
    """

    class_names: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    reliability: tuple[Bin, ...]
    reliability_scaled: tuple[Bin, ...]
    attention: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """Everything that a leaderboard shows.

    Attributes:
        title: Its heading.
        rows: What ``build_rows`` made of ``entries``.
        entries: The scored runs.
        comparisons: Paired tests between rows of one dataset.
        evidence: What is drawn of a row, by its key.
        references: Published figures on the same datasets, marked as such.
        protocol: How each group of figures was measured: its name, and a sentence.
        notes: What else is to be said, such as runs that were left out.
        verdict: What the rows show and what they cannot, in sentences.
        warnings: What keeps the runs from being compared.
    """

    title: str
    rows: Sequence[Row]
    entries: Sequence[Entry]
    comparisons: Sequence[Comparison] = ()
    evidence: Mapping[tuple[Any, ...], Evidence] = field(default_factory=dict)
    references: Sequence[Reference] = ()
    protocol: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    verdict: Sequence[str] = field(init=False)
    warnings: Sequence[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "verdict", verdict(self.rows, self.comparisons))
        object.__setattr__(self, "warnings", warnings_of(self.entries))


def sum_evidence(evidence: Sequence[Evidence]) -> Evidence:
    """Add up the counts of a row's runs."""
    first = evidence[0]
    confusion = np.sum([each.confusion for each in evidence], axis=0).tolist()
    return Evidence(
        class_names=first.class_names,
        confusion=tuple(tuple(row) for row in confusion),
        reliability=_sum_bins([each.reliability for each in evidence]),
        reliability_scaled=_sum_bins([each.reliability_scaled for each in evidence]),
    )


def _sum_bins(runs: Sequence[Sequence[Bin]]) -> tuple[Bin, ...]:
    summed = []
    for bins in zip(*runs, strict=True):
        count = sum(each.count for each in bins)
        confidence, accuracy = (
            sum(each.count * getattr(each, name) for each in bins) / max(count, 1)
            for name in ("confidence", "accuracy")
        )
        summed.append(Bin(count=count, confidence=confidence, accuracy=accuracy))
    return tuple(summed)
