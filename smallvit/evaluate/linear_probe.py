"""Accuracy of a linear classifier over frozen features.

Shapes in this file:
    N    training images
    M    images to classify
    D    embed dim
"""

import warnings

from jaxtyping import Float, Int
from torch import Tensor

MAX_ITERATIONS = 1000


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
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=max_iterations))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(bank.cpu().numpy(), bank_labels.cpu().numpy())
    return float(probe.score(features.cpu().numpy(), labels.cpu().numpy()))
