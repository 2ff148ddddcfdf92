"""Whether a classifier is less sure of images that are of none of its classes.

Shapes in this file:
    N    images of the classifier's own data
    M    foreign images
    B    images
    C    classes
    H W  image in pixels
"""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from smallvit.core import rng
from smallvit.core.errors import DataError

Noise = Literal["uniform-noise", "gaussian-noise"]
NOISES: tuple[Noise, ...] = ("uniform-noise", "gaussian-noise")
NOISE_MEAN, NOISE_STD = 0.5, 0.25
RECALL_PERCENT = 95


def ood_scores(logits: Float[Tensor, "N C"]) -> dict[str, Float[Tensor, " N"]]:
    """Return how sure the classifier is of each image, in three ways; own images should be higher.

    Returns:
        ``msp``, the largest probability; ``max_logit``; and ``energy``, the logarithm of the sum of
        the logits' exponentials, which is the negative free energy at temperature 1.

    Source:
        Hendrycks & Gimpel, 2017, https://arxiv.org/abs/1610.02136 (``msp``); Hendrycks et al.,
        2022, https://arxiv.org/abs/1911.11132 (``max_logit``); Liu et al., 2020,
        https://arxiv.org/abs/2010.03759 (``energy``).
    """
    logits = logits.double()  # in float32, the probabilities of a sure network are all 1
    return {
        "msp": logits.softmax(dim=1).amax(dim=1),
        "max_logit": logits.amax(dim=1),
        "energy": logits.logsumexp(dim=1),
    }


def ood_metrics(
    in_logits: Float[Tensor, "N C"], out_logits: Float[Tensor, "M C"]
) -> dict[str, float]:
    """Score how well each of ``ood_scores`` tells own images from foreign ones.

    Returns:
        For each score, ``<score>_auroc``, the part of all pairs in which the own image scores
        higher, ties counted half; and ``<score>_fpr95``, the part of the foreign images that score
        no lower than the threshold that 95 % of the own images reach. Both in [0, 1].

    Raises:
        DataError: If there are no images of either kind.

    Source:
        Own images are the positives of ``fpr95``, as in Hendrycks & Gimpel and Liu et al.;
        Jingkang50/OpenOOD@a59cdac, openood/evaluators/metrics.py, takes the foreign ones in its
        place, so its FPR@95 is another figure. The AUROC is the same either way.
    """
    if not len(in_logits) or not len(out_logits):
        raise DataError(
            f"OOD scores need images of both kinds: {len(in_logits)} own, {len(out_logits)} foreign"
        )
    own, foreign = ood_scores(in_logits), ood_scores(out_logits)
    metrics = {}
    for name in own:
        metrics[f"{name}_auroc"] = auroc(own[name], foreign[name])
        metrics[f"{name}_fpr95"] = fpr95(own[name], foreign[name])
    return metrics


def auroc(positive: Float[Tensor, " N"], negative: Float[Tensor, " M"]) -> float:
    """Return the part of pairs in which the positive scores higher, in [0, 1]; a tie is half."""
    ranked = negative.sort().values
    below = torch.searchsorted(ranked, positive, right=False)
    not_above = torch.searchsorted(ranked, positive, right=True)
    return ((below + not_above).double().mean() / (2 * len(negative))).item()


def fpr95(positive: Float[Tensor, " N"], negative: Float[Tensor, " M"]) -> float:
    """Return the part of the negatives that 95 % of the positives cannot be told from."""
    accepted = -(-RECALL_PERCENT * len(positive) // 100)  # rounded up, in whole numbers
    threshold = positive.sort(descending=True).values[accepted - 1]
    return (negative >= threshold).double().mean().item()


def noise_images(
    kind: Noise, indices: Int[Tensor, " B"], image_size: int, *, seed: int
) -> UInt8[Tensor, "B 3 H W"]:
    """Draw images whose every colour is independent of all others.

    Args:
        kind: ``uniform-noise``, all 256 levels alike; ``gaussian-noise``, of mean 0.5 and standard
            deviation 0.25 in [0, 1], cut off at both ends.
        indices: Number of each image.
        image_size: Side, in pixels.
        seed: Another one draws other images.

    Returns:
        Images on the device of ``indices``.
    """
    size = 3 * image_size**2
    epoch = torch.zeros_like(indices)
    if kind == "uniform-noise":
        levels = rng.uniform(seed, f"ood/{kind}", epoch, indices, size) * 256
    else:
        radius, angle = rng.uniform(seed, f"ood/{kind}", epoch, indices, 2 * size).chunk(2, dim=1)
        normal = (-2 * (1 - radius).log()).sqrt() * (2 * math.pi * angle).cos()  # Box-Muller
        levels = ((NOISE_MEAN + NOISE_STD * normal) * 255).round().clamp(0, 255)
    return levels.to(torch.uint8).view(-1, 3, image_size, image_size)
