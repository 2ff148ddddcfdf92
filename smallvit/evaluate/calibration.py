"""How far the probabilities of a classifier can be believed.

Shapes in this file:
    N    images of a split
    C    classes
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from smallvit.core.errors import DataError
from smallvit.evaluate.classify import predicted_classes

NUM_BINS = 15
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0
HALVINGS = 50  # of the logarithm's range, which is 9.2: to the last bit of a temperature


@dataclass(frozen=True, kw_only=True)
class ReliabilityBins:
    """Images sorted by confidence, the probability of the predicted class.

    Attributes:
        count: Images of each bin; the bins are of equal width and cover (0, 1], from low to high.
        confidence: Their mean confidence, in [0, 1]; ``None`` where a bin is empty.
        accuracy: Part of them that is right, in [0, 1]; ``None`` where a bin is empty.
    """

    count: tuple[int, ...]
    confidence: tuple[float | None, ...]
    accuracy: tuple[float | None, ...]


def reliability_bins(
    logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"], *, num_bins: int = NUM_BINS
) -> ReliabilityBins:
    """Sort images into bins of equal width by their confidence; an upper edge is in its bin."""
    probability = logits.double().softmax(dim=1)
    predicted = predicted_classes(logits)
    confidence = probability.gather(1, predicted[:, None])[:, 0]
    edges = torch.linspace(0, 1, num_bins + 1, dtype=torch.float64, device=logits.device)
    place = torch.bucketize(confidence, edges[1:-1])
    right = (predicted == labels).double()
    facts = torch.stack([torch.ones_like(right), confidence, right])
    sums = facts.new_zeros(3, num_bins).index_add_(1, place, facts)
    count, total, correct = sums.tolist()
    return ReliabilityBins(
        count=tuple(int(n) for n in count),
        confidence=tuple(x / n if n else None for x, n in zip(total, count, strict=True)),
        accuracy=tuple(x / n if n else None for x, n in zip(correct, count, strict=True)),
    )


def expected_calibration_error(
    logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"], *, num_bins: int = NUM_BINS
) -> float:
    """Return the distance of confidence and accuracy, in [0, 1], averaged over images by bin.

    Source:
        Guo et al., 2017, On Calibration of Modern Neural Networks,
        https://arxiv.org/abs/1706.04599, Eq. 3, with the 15 bins of its experiments and of
        gpleiss/temperature_scaling@126a509, temperature_scaling.py. The softmax is in
        float64 here, so an image at the edge of two bins may be in the other one.
    """
    bins = reliability_bins(logits, labels, num_bins=num_bins)
    gaps = (
        count * abs(confidence - accuracy)
        for count, confidence, accuracy in zip(
            bins.count, bins.confidence, bins.accuracy, strict=True
        )
        if confidence is not None and accuracy is not None
    )
    return sum(gaps) / len(labels)


def brier(logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> float:
    """Return the squared distance of the probabilities from the truth, in [0, 2].

    It is summed over classes and averaged over images, as Brier defined it; for two classes it is
    twice the score that counts one of them, scikit-learn's ``brier_score_loss``.

    Source:
        Brier, 1950, Verification of Forecasts Expressed in Terms of Probability, Monthly Weather
        Review 78, 1-3.
    """
    probability = logits.double().softmax(dim=1)
    truth = F.one_hot(labels, logits.shape[1])
    return (probability - truth).square().sum(dim=1).mean().item()


def fit_temperature(val_logits: Float[Tensor, "N C"], val_labels: Int[Tensor, " N"]) -> float:
    """Return the number that logits are divided by to give the lowest cross-entropy.

    The cross-entropy is convex in the inverse temperature, so its slope is halved to zero. Where
    every image is right (or nearly), it falls for ever as the temperature does: such a set says
    nothing of how sure to be, and the temperature is left at 1. Logits that say nothing of the
    labels have no highest temperature either: theirs is ``MAX_TEMPERATURE``.

    Args:
        val_logits: Of images that are not scored afterwards.
        val_labels: Their classes.

    Raises:
        DataError: If there are no images.

    Source:
        Guo et al., 2017, https://arxiv.org/abs/1706.04599, section 4.2.
    """
    if not len(val_labels):
        raise DataError("temperature scaling needs validation images, and there are none")
    logits = val_logits.double()
    gaps = logits - logits.gather(1, val_labels[:, None])  # an image's own class is at 0

    def rises(log_inverse: Tensor) -> Tensor:
        """Tell whether the cross-entropy rises with the inverse temperature."""
        return ((gaps * log_inverse.exp()).softmax(dim=1) * gaps).sum(dim=1).mean() > 0

    low = logits.new_tensor(1 / MAX_TEMPERATURE).log()
    high = logits.new_tensor(1 / MIN_TEMPERATURE).log()
    has_minimum = rises(high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        beyond = rises(middle)
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    return torch.where(has_minimum, (-low).exp(), 1.0).item()


def calibration_metrics(
    logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"], *, temperature: float
) -> dict[str, float]:
    """Score the probabilities of a split as they are and with their logits divided.

    Args:
        logits: Of the images to score.
        labels: Their classes.
        temperature: Fitted on other images, see ``fit_temperature``.

    Returns:
        ``brier``, ``ece``, ``temperature``, and ``nll_scaled`` in nats, ``brier_scaled`` and
        ``ece_scaled`` after the division.
    """
    scaled = logits.double() / temperature
    return {
        "brier": brier(logits, labels),
        "ece": expected_calibration_error(logits, labels),
        "temperature": temperature,
        "nll_scaled": F.cross_entropy(scaled, labels).item(),
        "brier_scaled": brier(scaled, labels),
        "ece_scaled": expected_calibration_error(scaled, labels),
    }
