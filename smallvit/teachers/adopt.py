"""Fitting a trained network to another data set, so that it can annotate its images.

Shapes in this file:
    B    images
    N    rows that a classifier is fitted on
    C    classes
    D    width of what the classifier reads
    c    colours
    H W  image in pixels
"""

import math
import warnings
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from smallvit.core.errors import ConfigError
from smallvit.models.cait import CaitBackbone
from smallvit.models.tokens import AbstractBackbone
from smallvit.models.vit import VitBackbone

MAX_ITERATIONS = 1000
Colors = tuple[float, float, float]


def mean_pooling(backbone: AbstractBackbone) -> dict[str, Any]:
    """Return the arguments that let a network read the mean of its patch tokens.

    Its weights stay the same: a class token is computed, but not read. A ViT keeps its last norm
    before the pooling, so that the classifier's logits of the mean are the mean of its logits.

    Args:
        backbone: The network as its own arguments build it.

    Returns:
        More arguments for timm; none for what reads no class token, or cannot do without.
    """
    if isinstance(backbone, VitBackbone) and backbone.model.global_pool == "token":
        return {"global_pool": "avg", "fc_norm": False}
    if isinstance(backbone, CaitBackbone) and backbone.model.global_pool == "token":
        return {"global_pool": "avg"}
    return {}


def linear_classifier(backbone: AbstractBackbone) -> nn.Linear:
    """Return the classifier of a network, which can be replaced where it is a linear layer.

    Raises:
        ConfigError: If it is something else.
    """
    classifier = backbone.model.get_classifier()  # pyright: ignore[reportCallIssue]
    if not isinstance(classifier, nn.Linear) or classifier.bias is None:
        kind = type(classifier).__name__
        raise ConfigError(
            f"{backbone.model_name} has no linear classifier with a bias ({kind}), so that no new "
            "one can be fitted: name another network"
        )
    return classifier


@torch.no_grad()
def read_features(
    backbone: AbstractBackbone, images: Float[Tensor, "B 3 H W"]
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]:
    """Return what the classifier reads of images, in evaluation mode.

    Norms between the tokens and the classifier are part of what it reads.

    Returns:
        The mean over the patch tokens of each image, and what it reads for the image logits; the
        two are one for a network that pools by the mean.
    """
    read: list[Tensor] = []
    classifier = linear_classifier(backbone)
    hook = classifier.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].float()))
    try:
        tokens = backbone.eval()(images)
        read.clear()  # of a network whose own forward pass classifies
        backbone.classify(tokens.patch)
        backbone.classify(tokens.pooled)
    finally:
        hook.remove()
    patch, pooled = read
    return patch.reshape(len(images), -1, classifier.in_features).mean(dim=1), pooled


def fit_regression(
    features: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    *,
    max_iterations: int = MAX_ITERATIONS,
) -> tuple[Any, Any]:
    """Fit scikit-learn's logistic regression (C = 1) on standardised features.

    Args:
        features: What the classifier is to read.
        labels: Their classes.
        max_iterations: Most steps of the solver; where they do not do, the classifier is the one
            that they came to.

    Returns:
        The scaler and the regression, fitted.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler, regression = StandardScaler(), LogisticRegression(max_iter=max_iterations)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        rows = scaler.fit_transform(features.cpu().numpy())
        regression.fit(rows, labels.cpu().numpy())
    return scaler, regression


def fit_classifier(
    features: Float[Tensor, "N D"], labels: Int[Tensor, " N"], *, num_classes: int
) -> tuple[Float[Tensor, "C D"], Float[Tensor, " C"]]:
    """Fit a logistic regression as ``fit_regression`` does, in float64, and make it a linear layer.

    Args:
        features: What the classifier is to read.
        labels: Their classes; each class is among them.
        num_classes: C.

    Returns:
        Weight and bias of a linear layer for features as they are: the standardisation is folded
        in.
    """
    scaler, regression = fit_regression(features.double(), labels)
    assert len(regression.classes_) == num_classes, "a class has no image to fit on"
    weight = torch.from_numpy(regression.coef_)
    bias = torch.from_numpy(regression.intercept_)
    if num_classes == 2:  # one row: sigmoid(z) is the softmax of -z / 2 and z / 2
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    weight = weight / torch.from_numpy(scaler.scale_)
    bias = bias - weight @ torch.from_numpy(scaler.mean_)
    return weight.float(), bias.float()


@torch.no_grad()
def set_classifier(
    backbone: AbstractBackbone, weight: Float[Tensor, "C D"], bias: Float[Tensor, " C"]
) -> None:
    """Put weights into a network's classifier, and into its token head where it has one."""
    for layer in (linear_classifier(backbone), backbone.token_head):
        if layer is not None:
            assert isinstance(layer, nn.Linear), "token heads are linear"
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)


@torch.no_grad()
def match_colors(
    model: nn.Module, *, trained: tuple[Colors, Colors], now: tuple[Colors, Colors]
) -> str | None:
    """Let a network read images normalised for this data set as it read those it was trained on.

    The difference goes into its first convolution: exactly, where that has a bias and no padding.
    Without a bias the means stay different.

    Args:
        model: The timm model.
        trained: Mean and standard deviation a colour, in [0, 1], that it was trained with.
        now: Those of the images to come.

    Returns:
        What was done, for the log; ``None`` where both are the same.
    """
    pairs = [pair for a, b in zip(trained, now, strict=True) for pair in zip(a, b, strict=True)]
    if all(math.isclose(a, b, abs_tol=1e-6) for a, b in pairs):
        return None
    (old_mean, old_std), (mean, std) = torch.tensor(trained), torch.tensor(now)
    name = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv")
    first = model.get_submodule(name) if isinstance(name, str) else None
    shown = [" ".join(f"{value:.3f}" for value in values) for values in trained]
    before = f"trained on mean {shown[0]}, std {shown[1]}"
    # A weight-standardised convolution would undo the scale.
    if type(first) is not nn.Conv2d or first.in_channels != len(mean):
        return f"reads this data set's colours as they are, though {before}"
    scale = (std / old_std).to(first.weight)
    shift = ((mean - old_mean) / old_std).to(first.weight)
    if first.bias is not None:
        first.bias += torch.einsum("dcij,c->d", first.weight, shift)
    first.weight *= scale[:, None, None]
    what = "std" if first.bias is None else "mean and std"
    return f"{before}: {what} of this data set put into {name}"
