"""Accuracy of a linear classifier over frozen features.

Shapes in this file:
    N    training images
    M    images to classify
    D    embed dim
"""

from jaxtyping import Float, Int
from torch import Tensor


def linear_top1(
    bank: Float[Tensor, "N D"],
    bank_labels: Int[Tensor, " N"],
    features: Float[Tensor, "M D"],
    labels: Int[Tensor, " M"],
) -> float:
    """Fit scikit-learn's logistic regression (C = 1) on standardised features and score it."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit(bank.cpu().numpy(), bank_labels.cpu().numpy())
    return float(probe.score(features.cpu().numpy(), labels.cpu().numpy()))
