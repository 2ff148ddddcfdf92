"""What an accuracy is held against: naming the commonest class for every image.

Shapes in this file:
    C    classes
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

NEARLY_ALWAYS = 0.9  # part of the images
UNEVEN = 1.5  # images of the largest class over those of the smallest
SIGNIFICANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """How the answers of a classifier compare with one answer for all images of a split.

    Attributes:
        top1: Accuracy, in [0, 1].
        n: Images.
        commonest: The class that most images have.
        commonest_share: Its part of the images, in [0, 1]: the accuracy of naming it always.
        named: The class that is predicted most often.
        named_share: Part of the images that it is predicted for, in [0, 1].
        mean_per_class: Accuracy of each class, averaged over the classes that have images.
        uneven: Whether the largest class has 1.5 times the images of the smallest, or more.
        p_value: That an accuracy so far above ``commonest_share`` is chance, one-sided.
        names_one_class: Whether ``named`` is predicted for 90 % of the images or more, and for more
            than half of those that are of other classes.
    """

    top1: float
    n: int
    commonest: str
    commonest_share: float
    named: str
    named_share: float
    mean_per_class: float
    uneven: bool
    p_value: float
    names_one_class: bool

    @property
    def fault(self) -> str:
        """Say why the accuracy is none to go by; nothing where it may be.

        Two rules. It names one class nearly always: data of which one class is 95 % may be
        answered so and well, hence the images of other classes. Or its accuracy is not told apart
        from that of naming the commonest class always, by a one-sided exact binomial test at 5 %,
        and is not 100 % of images of several classes.

        Source:
            Kuhn, 2008, Building Predictive Models in R Using the caret Package, Journal of
            Statistical Software 28(5): ``confusionMatrix`` tests the accuracy so against the
            "no information rate", the part of the largest class.
        """
        faults = []
        if self.names_one_class:
            faults.append(f"it names {self.named!r} for {_percent(self.named_share)} of the images")
        all_right = self.top1 == 1 and self.commonest_share < 1  # no fault, however few images
        if self.p_value >= SIGNIFICANCE and not all_right:
            faults.append(
                f"its top-1 of {_percent(self.top1)} is not told apart from the "
                f"{_percent(self.commonest_share)} of naming {self.commonest!r} always "
                f"({self.n:,} images, one-sided binomial p = {self.p_value:.2g})"
            )
        return "; ".join(faults)


def measure_yardstick(
    confusion: Sequence[Sequence[int]] | np.ndarray, class_names: Sequence[str]
) -> Yardstick:
    """Return what the accuracy of a classifier is held against.

    Args:
        confusion: Images by true class (rows) and predicted class (columns); at least one.
        class_names: In its order.
    """
    counts = np.asarray(confusion)
    n, correct = int(counts.sum()), int(counts.trace())
    true, predicted = counts.sum(axis=1), counts.sum(axis=0)
    commonest, named = int(true.argmax()), int(predicted.argmax())
    others = n - int(true[named])
    taken_for_it = int(predicted[named] - counts[named, named])
    there = true > 0
    share = float(true[commonest] / n)
    return Yardstick(
        top1=correct / n,
        n=n,
        commonest=class_names[commonest],
        commonest_share=share,
        named=class_names[named],
        named_share=float(predicted[named] / n),
        mean_per_class=float((counts.diagonal()[there] / true[there]).mean()),
        uneven=bool(true.max() >= UNEVEN * true[there].min()),
        p_value=float(binomtest(correct, n, share, alternative="greater").pvalue),
        names_one_class=int(predicted[named]) >= NEARLY_ALWAYS * n and 2 * taken_for_it > others,
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
