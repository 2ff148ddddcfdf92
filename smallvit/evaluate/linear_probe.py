"""Accuracy of a linear classifier over frozen features.

Shapes in this file:
    N    training images
    M    images to classify
    D    embed dim
"""

from jaxtyping import Float, Int
from torch import Tensor

from smallvit.teachers.adopt import MAX_ITERATIONS, fit_regression


def linear_top1(
    bank: Float[Tensor, "N D"],
    bank_labels: Int[Tensor, " N"],
    features: Float[Tensor, "M D"],
    labels: Int[Tensor, " M"],
    *,
    max_iterations: int = MAX_ITERATIONS,
) -> float:
    """Fit scikit-learn's logistic regression (C = 1) on standardised features and score it.

    Args:
        bank: Features to fit on.
        bank_labels: Their classes.
        features: Features of the images to classify.
        labels: Their true classes.
        max_iterations: Most steps of the solver; where they do not do, the classifier is the one
            that they came to.

    Returns:
        The fraction that is right.
    """
    scaler, regression = fit_regression(bank, bank_labels, max_iterations=max_iterations)
    rows = scaler.transform(features.cpu().numpy())
    return float(regression.score(rows, labels.cpu().numpy()))
