"""Targets of stage 2: what the image and each patch token are trained towards.

Shapes in this file:
    B    images
    C    classes
    h w  token grid
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from smallvit.finetuning.config import ClsTarget, TokenTarget

# Part of the pooled score map in a blend: where it and the label agree on the class, and where not.
AGREED, DISAGREED = 0.5, 0.9


def smooth(labels: Float[Tensor, "*batch C"], smoothing: float) -> Float[Tensor, "*batch C"]:
    """Spread a part of distributions over the last axis evenly over all classes."""
    return torch.lerp(labels, torch.full_like(labels, 1 / labels.shape[-1]), smoothing)


def image_target(
    labels: Float[Tensor, "B C"],
    score_maps: Float[Tensor, "B C h w"],
    kind: ClsTarget,
    *,
    smoothing: float,
) -> Float[Tensor, "B C"]:
    """Return the target of each image.

    Args:
        labels: Smoothed labels, mixed where images were.
        score_maps: Teacher probabilities of the crop, mixed where images were.
        kind: ``label`` is the label; ``pooled`` the mean of the map, that is what the teacher sees
            in the crop; ``blend`` half of each where they agree on the likeliest class, else nine
            parts of the map and one of the label.
        smoothing: Of the map, as of the labels.

    Source:
        ``pooled`` is that of ReLabel, Yun et al., 2021, https://arxiv.org/abs/2101.05022, and of
        zihangJiang/TokenLabeling@9dbfd59, tlt/loss/cross_entropy.py, whose ``--ground-truth`` is
        ``blend``. Both pool logits; here probabilities are pooled, as the file of maps holds them.
    """
    if kind == "label":
        return labels
    pooled = smooth(score_maps.mean(dim=(2, 3)), smoothing)
    if kind == "pooled":
        return pooled
    agreed = pooled.argmax(dim=1, keepdim=True) == labels.argmax(dim=1, keepdim=True)
    part = torch.where(agreed, AGREED, DISAGREED)
    return torch.lerp(labels, pooled, part.to(labels.dtype))


def token_targets(
    token_labels: Float[Tensor, "*batch C"], kind: TokenTarget, *, smoothing: float
) -> Float[Tensor, "*batch C"]:
    """Return the target of each patch token.

    Args:
        token_labels: Teacher probabilities.
        kind: ``soft`` are these; ``hard`` the likeliest class; ``gumbel`` a class drawn from them,
            anew in each step.
        smoothing: Part that is spread evenly over all classes.

    Source:
        ``gumbel``: Zhao et al., 2023, Fully Attentional Networks with Self-emerging Token Labeling,
        https://arxiv.org/abs/2401.03844; the Gumbel trick at temperature 1.
    """
    match kind:
        case "soft":
            chosen = token_labels
        case "hard":
            chosen = F.one_hot(token_labels.argmax(dim=-1), token_labels.shape[-1]).float()
        case "gumbel":
            tiny = torch.finfo(token_labels.dtype).tiny
            chosen = F.gumbel_softmax(token_labels.clamp(min=tiny).log(), hard=True)
    return smooth(chosen, smoothing) if smoothing else chosen
